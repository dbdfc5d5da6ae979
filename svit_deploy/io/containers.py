"""Where in a file that training wrote the weights are, and with what arguments it ran."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from svit_deploy.errors import InputError
from svit_deploy.io.strict_yaml import parse_yaml
from svit_deploy.io.text import shown, some

SAVE_WEIGHTS = "save the weights alone: torch.save({'model': model.state_dict()}, 'weights.pth')"
MODEL_KEYS = ("model", "state_dict", "model_state")
EMA_KEYS = ("model_ema", "ema", "ema_state_dict", "state_dict_ema")


def find_weights(
    path: Path, loaded: Any, wanted: str | None
) -> tuple[str, dict[str, Any], list[str], dict[str, Any]]:
    """The container's name, the state dictionary, notes, training arguments.

    Args:
        wanted: the entry that holds the weights; the usual ones by default, averaged ones last.
    """
    import torch

    if isinstance(loaded, torch.nn.Module):
        return "pickled module", loaded.state_dict(), [], {}
    if not isinstance(loaded, dict):
        raise InputError(f"{path} holds a {type(loaded).__name__}, not weights", SAVE_WEIGHTS)
    if wanted is not None and wanted not in loaded:
        raise InputError(
            f"{path} has no entry {wanted!r}, its keys are {_keys(loaded)}",
            "name one of them after --weights",
        )
    key = wanted or next((key for key in (*MODEL_KEYS, *EMA_KEYS) if key in loaded), None)
    state = loaded if key is None else loaded[key]
    if isinstance(state, torch.nn.Module):
        state = state.state_dict()
    if not _is_state(state):
        kind = "optimizer state but no" if {"optimizer", "param_groups"} & set(loaded) else "no"
        keys = _keys(k for k in loaded if isinstance(k, str)) or "not strings"
        if odd := _odd_entry(state):
            raise InputError(
                f"the weights of {path} hold {odd} beside the tensors", "save it without that entry"
            )
        raise InputError(
            f"{path} holds {kind} model weights, its keys are {keys}",
            "give a checkpoint with the weights under 'model' or 'state_dict', or bare",
        )
    if key is None:
        return "bare state dict", state, [], {}
    is_training = not {"optimizer", "optimizer_state", "args"}.isdisjoint(loaded)
    others = [k for k in EMA_KEYS if k in loaded and k != key]
    notes = [f"{k} ignored, weights taken from {key!r}" for k in others]
    if key in EMA_KEYS:
        notes.append(f"averaged weights taken, from {key!r}")
    container = f"{'training checkpoint' if is_training else 'dictionary'} ({key})"
    args = _training_args(loaded) or _plain_values(loaded.get("meta"))
    return container, state, notes, args


def _keys(keys: Iterable[Any]) -> str:
    return some(f"'{shown(key, 90)}'" for key in keys)


def _is_state(state: Any) -> bool:
    import torch

    return (
        isinstance(state, dict)
        and len(state) > 0
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())
    )


def _odd_entry(state: Any) -> str:
    """What keeps a dictionary of tensors from being weights: `'epoch' (int)`."""
    import torch

    if not isinstance(state, dict):
        return ""
    odd = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    mostly = 0 < len(odd) < len(state) / 2
    return f"{shown(odd[0])} ({type(state[odd[0]]).__name__})" if mostly else ""


def _training_args(loaded: dict[str, Any]) -> dict[str, Any]:
    """The plain values of the training's arguments or configuration, nested names joined by dots.

    Scripts save a Namespace, Swin's a yacs configuration, SlowFast's its YAML text.
    """
    for key in ("args", "config", "cfg"):
        found = loaded.get(key)
        if isinstance(found, str):
            try:
                found = parse_yaml(found)
            except ValueError:
                continue
        if isinstance(found, argparse.Namespace | dict):
            values = _plain_values(found)
            for name, section in found.items() if isinstance(found, dict) else ():
                if isinstance(section, dict):
                    values |= {f"{name}.{k}": v for k, v in _plain_values(section).items()}
            return values
    return {}


def _plain_values(args: Any) -> dict[str, Any]:
    """Numbers that are no bomb, strings and lists of them, out of a Namespace or a dictionary."""
    values = vars(args) if isinstance(args, argparse.Namespace) else args
    if not isinstance(values, dict):
        return {}

    def is_plain(value: Any) -> bool:
        items = value if isinstance(value, list | tuple) else [value]
        return all(
            abs(item) < 2**63 if isinstance(item, int) else isinstance(item, float | str | None)
            for item in items
        )

    return {k: v for k, v in values.items() if isinstance(k, str) and is_plain(v)}
