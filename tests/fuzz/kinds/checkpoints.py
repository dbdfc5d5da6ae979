"""Checkpoints that torch.save wrote as it should, of objects that no training would save."""

from __future__ import annotations

import argparse
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from svit_deploy.methods.families import FAMILIES
from tests.fuzz.kinds.settings import odd_yaml
from tests.fuzz.sound import Sound
from tests.fuzz.values import NUMBERS, ODD, TEXTS, odd_tree

ENTRIES = ["model", "state_dict", "model_state", "model_ema", "ema", "module", "optimizer", "args",
           "config", "cfg", "meta", "epoch", "best"]  # fmt: skip
MADE = [(family.name, task) for family in FAMILIES.values() for task in family.backbone.tasks]


def make(rng: random.Random, folder: Path, sound: Sound) -> Sequence[Any]:
    import torch

    family, task = rng.choice(MADE)
    state = {name: torch.from_numpy(array) for name, array in sound.weights(family, task).items()}
    content: Any = {"model": state}
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        content = rng.choice(CHANGES)(rng, content)
    zip_format = rng.random() < 0.8
    try:
        torch.save(content, folder / "weights.pth", _use_new_zipfile_serialization=zip_format)
    except Exception:  # what torch.save itself refuses is no case
        torch.save({"model": state, "epoch": 1}, folder / "weights.pth")
    command = rng.choice(["inspect", "inspect", "export", "weights", "verify"])
    options = sound.options(family, task) if rng.random() < 0.7 else []
    if command == "export":
        return ["export", "weights.pth", *options, *sound.sizes(task), "-o", "out"]
    if command == "weights":
        return ["export", "weights.pth", "--weights", rng.choice(ENTRIES), *options, "-o", "out"]
    if command == "verify":
        return ["verify", sound.bundle(family, task), "--against", "weights.pth", *options]
    return ["inspect", "weights.pth"]


def _state(content: Any) -> Any:
    """The state dictionary, wherever earlier changes have put it; may be anything."""
    for key in ENTRIES:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            return content[key]
    return content if isinstance(content, dict) else {}


def _odd_tensor(rng: random.Random, tensor: Any) -> Any:
    import torch

    flat = tensor.reshape(-1)
    return rng.choice(
        [
            lambda: tensor.to(rng.choice([torch.float16, torch.bfloat16, torch.float64])),
            lambda: tensor.to(rng.choice([torch.int8, torch.int64, torch.bool, torch.complex64])),
            lambda: tensor.to(torch.float8_e4m3fn),
            lambda: torch.full_like(
                tensor, rng.choice([float("nan"), float("inf"), 1e38, 0, -1e-40])
            ),
            lambda: tensor[None],
            lambda: flat,
            lambda: flat[: rng.randrange(flat.numel() + 1)],
            lambda: flat[0] if flat.numel() else flat,
            lambda: torch.zeros([0, *tensor.shape[1:]]),
            lambda: torch.zeros(rng.choice([(), (1,), (0,), (1,) * 20, (3, 0, 5), (2**40, 0)])),
            lambda: torch.zeros(1).expand(rng.choice([10, 10**6, 10**10, 10**12])),
            lambda: torch.cat([tensor, tensor]) if tensor.ndim else tensor,
            lambda: tensor.T if tensor.ndim == 2 else tensor,
            lambda: torch.nn.Parameter(tensor),
            lambda: tensor.to_sparse(),
            lambda: tensor.to("meta"),
            lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
            lambda: torch.nested.nested_tensor([tensor, tensor]),
            lambda: flat.as_strided([2, 2], [0, 0]) if flat.numel() else flat,
        ]
    )()


def _change_tensors(rng: random.Random, content: Any) -> Any:
    import torch

    state = _state(content)
    tensors = ((name, value) for name, value in state.items() if isinstance(value, torch.Tensor))
    # Those that an earlier change made huge would take for ever to change again.
    names = [name for name, value in tensors if not value.is_meta and value.numel() < 10**6]
    for name in rng.sample(names, min(len(names), rng.choice([1, 1, 2, 5, 1000]))):
        try:
            state[name] = _odd_tensor(rng, state[name])
        except (RuntimeError, NotImplementedError, IndexError):
            continue  # PyTorch has no such tensor
    return content


def _change_names(rng: random.Random, content: Any) -> Any:
    state = _state(content)
    for name in rng.sample(list(state), min(len(state), rng.choice([1, 1, 3, 30]))):
        value = state.pop(name)
        text = str(name)
        other = rng.choice(
            [
                None,
                text + rng.choice(TEXTS),
                rng.choice(TEXTS),
                "module." + text,
                7,
                (text, 1),
                None,
            ]
        )
        number = str(rng.choice([10, 999, 10**6, 10**9, 10**30]))
        if rng.random() < 0.4:
            other = "".join(number if c.isdigit() and rng.random() < 0.7 else c for c in text)
        if other is not None:
            state[other] = value
    return content


def _put_in(rng: random.Random, content: Any) -> Any:
    state = _state(content)
    state[rng.choice([*TEXTS, 7, 10**5000, (1, 2), None])] = rng.choice(
        [*NUMBERS, *TEXTS, [], {}, None, b"bytes", state.copy()]
    )
    return content


def _wrap(rng: random.Random, content: Any) -> Any:
    state = _state(content)
    wrapped = [
        state, [state], (state,), {"x": state}, {1: state}, {("model",): state}, OrderedDict(state),
        {f"module.{k}": v for k, v in state.items()}, {k: {"model": v} for k, v in state.items()},
        {"state_dict": {"model": state}}, {rng.choice(ENTRIES): state, rng.choice(ENTRIES): 1},
        {rng.choice(ENTRIES): state for _ in range(3)}, {}, {"model": {}}, None, 7, "weights",
    ]  # fmt: skip
    return rng.choice(wrapped)


def _add_args(rng: random.Random, content: Any) -> Any:
    args: Any = {
        "model": "svit",
        "input_size": 56,
        "keep_ratio": [0.7, 0.5],
        "nb_classes": 5,
        "base_rate": 0.7,
        "base_keep_rate": 0.7,
        "fuse_token": True,
        "drop_loc": "(3, 6, 9)",
        "MODEL": {"SWIN": {"DEPTHS": [2, 1, 1, 1]}},
        "CLASSES": ["a"] * 5,
    }
    key = rng.choice(["args", "config", "cfg", "meta"])
    value = odd_tree(rng, args, rng.choice([1, 3, 6]))
    if rng.random() < 0.3:
        value = odd_yaml(rng, args).decode("utf-8", "replace")
    elif isinstance(value, dict) and rng.random() < 0.6:
        space = argparse.Namespace()
        space.__dict__.update(value)
        value = space
    return {**content, key: value} if isinstance(content, dict) else {key: value}


def _anything(rng: random.Random, content: Any) -> Any:
    value = rng.choice(ODD)
    return {**content, rng.choice(ENTRIES): value} if isinstance(content, dict) else value


CHANGES: list[Callable[[random.Random, Any], Any]] = [
    *([_change_tensors] * 4),
    *([_change_names] * 3),
    _put_in,
    _wrap,
    *([_add_args] * 3),
    _anything,
]
