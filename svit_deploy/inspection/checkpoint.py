"""What a checkpoint's weights tell about its model, and what they cannot tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from svit_deploy.errors import InputError
from svit_deploy.inspection.report import Inspection, Section, listed, mebibytes
from svit_deploy.io.checkpoint import Checkpoint, read_checkpoint
from svit_deploy.loading.arch import parse_overrides, recognise
from svit_deploy.loading.known_settings import settings_from_args
from svit_deploy.loading.layout import (
    detect_family,
    has_heads,
    infer_dims,
    to_canonical,
    unwrap,
)
from svit_deploy.loading.load import build_model, check_task, which_family
from svit_deploy.loading.presets import PRESETS
from svit_deploy.loading.published import published_settings
from svit_deploy.methods.families import FAMILIES, Family
from svit_deploy.model.arch import Arch
from svit_deploy.model.assumption import OF_PICTURES, Assumption
from svit_deploy.model.keys import Dims
from svit_deploy.tasks import TASKS, Task

# Arguments of the official training scripts that say something about inference.
TRAINING_ARGS = (
    "model", "input_size", "nb_classes", "data_set", "eval_crop_ratio", "distillation_type",
    "keep_ratio", "base_keep_ratio", "ratio_loss_lambda", "base_rate", "base_keep_rate",
    "fuse_token", "drop_loc",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One property of the model.

    Attributes:
        value: JSON-able; None when it is not known. Of a setting that is needed it is a guess.
        source: `weights`, `training arguments`, `preset NAME`, `assumed`, or `needed`.
        option: what to type where the value is needed, or assumed and wrong.
    """

    name: str
    value: Any
    source: str
    option: str = ""

    def row(self) -> tuple[str, str, str]:
        value = listed(self.value if isinstance(self.value, list) else [self.value])
        source = self.source
        if source in ("assumed", "needed"):
            guess = ", and this a guess" if source == "needed" and self.value is not None else ""
            source = f"{source}{guess}: {self.option}"
        return self.name, "unknown" if self.value is None else value, source


def _taken(name: str, value: Any, published: Mapping[str, Any], of_inputs: bool = False) -> Fact:
    """A setting that nobody told, as an export would take it."""
    one = Assumption(name, value, published=published.get(name) == value, of_inputs=of_inputs)
    return Fact(name, _plain(value), "needed" if one.is_guess() else "assumed", one.option)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass
class _Found:
    """What a checkpoint tells of its model, as far as it was understood.

    Attributes:
        family: its name; None if the keys are of no family.
        candidates: all names that it could be, if there are several.
        facts: in the order of the table.
        problem: why it cannot be exported, if that is so.
    """

    family: str | None = None
    candidates: tuple[str, ...] = ()
    preset: str | None = None
    facts: list[Fact] = field(default_factory=list)
    problem: str | None = None

    @property
    def needed(self) -> str:
        """What to type for an export."""
        needed = [fact for fact in self.facts if fact.source == "needed"]
        unknown = " ".join(fact.option for fact in needed if fact.value is None)
        guessed = " ".join(fact.option for fact in needed if fact.value is not None)
        if guessed:
            guessed = f"the trained values for these guesses {guessed}"
        return ", and ".join(filter(None, (unknown, guessed)))


def inspect_checkpoint(path: Path) -> Inspection:
    """Describes a checkpoint, of a known model or not.

    Raises:
        InputError: see `read_checkpoint`.
        CapabilityError: a .pth file, and PyTorch is not installed.
    """
    checkpoint = read_checkpoint(path)
    found = _Found()
    try:
        _describe(checkpoint, found)
    except InputError as error:
        found.problem = error.message
    args = {
        name: checkpoint.training_args[name]
        for name in TRAINING_ARGS
        if _is_sensible(checkpoint.training_args.get(name))
    }
    facts = {
        "size_bytes": checkpoint.size_bytes,
        "sha256": checkpoint.sha256,
        "container": checkpoint.container,
        "family": found.family,
        "candidates": list(found.candidates),
        "preset": found.preset,
        "tensors": len(checkpoint.tensors),
        "parameters": sum(array.size for array in checkpoint.tensors.values()),
        "model": [
            {"name": f.name, "value": f.value, "source": f.source, "option": f.option}
            for f in found.facts
        ],
        "problem": found.problem,
        "training_args": args,
    }
    sections = [Section(_overview(facts, found.needed))]
    if found.facts:
        rows = tuple(fact.row() for fact in found.facts)
        sections.append(Section(rows, ("model", "value", "known from")))
    return Inspection("checkpoint", path.name, facts, tuple(sections), checkpoint.notes)


def _describe(checkpoint: Checkpoint, found: _Found) -> None:
    """Fills in what there is to know; raises InputError where an export would."""
    (tensors, _), args = unwrap(checkpoint.tensors), checkpoint.training_args
    keys = detect_family(tensors)
    served = [TASKS[name] for name in keys.backbone.tasks]
    tasks = [task for task in served if has_heads(tensors, task)]
    check_task(tensors, keys, tasks[-1])
    dims = infer_dims(tensors, keys, tasks[-1])
    found.preset = recognise(dims)
    found.family, found.candidates = which_family(keys.name, args)
    many_sizes, family = all(task.many_sizes for task in tasks), FAMILIES[found.family]
    heads = dims.num_heads or (PRESETS[found.preset].num_heads if found.preset else 0)
    published = published_settings(family, dims, heads)
    hub = parse_overrides(checkpoint.settings)
    beyond = _beyond_weights(keys, dims, found.preset, tasks[-1], published, hub)
    settings = _settings(family, dims, args, found.preset, published)
    found.facts = [Fact("tasks", [task.name for task in tasks], "weights")] if served[1:] else []
    found.facts += _from_weights(keys, dims, many_sizes) + _from_heads(served, dims)
    found.facts += settings + beyond if many_sizes else beyond + settings
    if all(fact.value is not None for fact in found.facts):
        build_model(checkpoint, task=tasks[-1].name)
    else:
        to_canonical(tensors, dims, tasks[-1])


def _is_sensible(value: Any) -> bool:
    """Whether JSON and the terminal can take it: no NaN, no integer of a thousand digits."""
    if isinstance(value, list | tuple):
        return all(map(_is_sensible, value))
    return isinstance(value, str) or (isinstance(value, int | float) and abs(value) < 2**53)


def _overview(facts: dict[str, Any], needed: str) -> tuple[tuple[str, str], ...]:
    export = "ready"
    if facts["problem"]:
        export = f"not possible: {facts['problem']}"
    elif needed:
        export = f"needs {needed}, or --arch FILE"
    return (
        ("sha256", facts["sha256"]),
        ("size", mebibytes(facts["size_bytes"])),
        ("container", facts["container"]),
        ("tensors", f"{facts['tensors']}, {facts['parameters']} parameters"),
        ("family", " or ".join(facts["candidates"]) or facts["family"] or "unknown"),
        ("preset", facts["preset"] or "none matches"),
        ("export", export),
        ("trained with", ", ".join(f"{k} {v}" for k, v in facts["training_args"].items()) or "-"),
    )


def _from_weights(keys: Family, dims: Any, many_sizes: bool) -> list[Fact]:
    """The sizes; a backbone with sizes of its own has all of them, but for what is unknown here."""
    hidden = {"family", "gate_dim", "semantic", "heads", "distilled" if many_sizes else "num_heads"}
    shown = (entry.name for entry in fields(dims if keys.backbone.sizes else Dims))
    facts = [Fact(name, getattr(dims, name), "weights") for name in shown if name not in hidden]
    if many_sizes:
        return facts
    side = math.isqrt(max(dims.num_patches, 0))
    square = side * side == dims.num_patches
    size = [side * dims.patch_size] * 2 if square else None
    source = "weights, as a square" if square else "needed"
    return [*facts, Fact("image_size", size, source, "--set image_size=HEIGHTxWIDTH")]


def _from_heads(served: Sequence[Task], dims: Any) -> list[Fact]:
    """The sizes of the heads that the backbone's tasks have, 0 where they are not there."""
    names = (entry.name for task in served if task.heads for entry in fields(task.heads))
    return [Fact(name, getattr(dims.heads, name, 0), "weights") for name in names]


def _beyond_weights(
    keys: Family,
    dims: Any,
    preset: str | None,
    task: Task,
    published: Mapping[str, Any],
    hub: Mapping[str, Any],
) -> list[Fact]:
    """What comes from a preset or an option: the weights are the same whatever these are.

    Args:
        hub: told by the hub that the weights are of, which wins over a preset.
    """
    arch = PRESETS[preset] if preset else Arch(dims.family, 0)

    def fact(name: str, value: Any, of_inputs: bool = False) -> Fact:
        if name in hub:
            return Fact(name, _plain(hub[name]), "hub")
        if preset:
            return Fact(name, _plain(value), f"preset {preset}")
        return _taken(name, value, published, of_inputs)

    if dims.num_heads:
        facts = [Fact("num_heads", dims.num_heads, "weights")]
    elif preset:
        facts = [fact("num_heads", arch.num_heads)]
    else:
        facts = [Fact("num_heads", None, "needed", "--set num_heads=NUMBER")]
    if keys.method.trained_gates:
        gates = keys.method.gates(arch, dims, None, keys.class_token)
        facts.append(fact("gate_blocks", gates.blocks))
        if keys.class_token:
            facts.append(fact("gate_class_token", gates.class_token))
        if arch.target_keep:
            facts.append(fact("target_keep", arch.target_keep))
    # Elsewhere how pictures are scaled is the task's.
    of_inputs = {n: getattr(arch, n) for n in (OF_PICTURES if task.crops else OF_PICTURES[:2])}
    if keys.backbone.frames:
        of_inputs["frames"] = arch.frames or keys.backbone.frames
    if task.settings:
        usual = vars(task.config_numbers(dims, {})) | arch.task
        of_inputs |= {name: usual[name] for name in task.settings}
    return facts + [fact(name, value, of_inputs=True) for name, value in of_inputs.items()]


def _settings(
    family: Family,
    dims: Any,
    args: Mapping[str, Any],
    preset: str | None,
    published: Mapping[str, Any],
) -> list[Fact]:
    """The family's own settings; a preset that is only recognised tells those of the backbone."""
    of_backbone, of_method = (
        fields(axis.settings) if axis.settings else () for axis in (family.backbone, family.method)
    )
    known, sources = (*of_backbone, *of_method), {}
    told = settings_from_args(family, args) | family.settings_from_weights(dims)
    if preset:
        names = {entry.name for entry in of_backbone} & published.keys()
        told = {name: published[name] for name in names} | told
        sources = dict.fromkeys(names, f"preset {preset}")
    sources |= dict.fromkeys(family.told_by_weights, "weights")
    needed = [e.name for e in known if e.default is MISSING and e.name not in told]
    try:
        chosen = family.choose({**told, **dict.fromkeys(needed)}, dims)
    except InputError:  # what is assumed is wrong, and the table says how to correct it
        chosen = None
    found = []
    for entry in known:
        name = entry.name
        if name in told:
            source = sources.get(name, "training arguments")
            found.append(Fact(name, _plain(told[name]), source))
        elif name in needed:
            found.append(Fact(name, None, "needed", f"--set {name}=VALUE"))
        else:
            found.append(_taken(name, getattr(chosen, name, entry.default), published))
    return found
