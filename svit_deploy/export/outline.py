"""What an export makes of what, line by line: told by a dry run before, and of a bundle after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from svit_deploy.bundle import MANIFEST, MODEL, REFERENCE
from svit_deploy.export.settings import DEFAULT_TASK, ExportSettings
from svit_deploy.export.shapes import whole_batch
from svit_deploy.model.assumption import in_words, typed
from svit_deploy.model.budget import Budget
from svit_deploy.model.config import BatchRange, ModelConfig, TokenMode
from svit_deploy.model.model import Model
from svit_deploy.model.profiles import Profile
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks import Task

Line = tuple[str, str]
"""Label and text."""
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
SET = "give --set NAME=VALUE for what was trained otherwise"


def outline(
    model: Model,
    task: Task,
    sizes: SizeRange,
    settings: ExportSettings,
    budgets: Sequence[Budget],
    targets: Sequence[float],
    profiles: Sequence[Profile],
) -> Iterator[Line]:
    """What will be exported, as far as it is known before the reference runs.

    Args:
        budgets: empty where images decide, or in another token mode.
        targets: keep ratios that gates will be calibrated to.
        profiles: of an engine; empty without one.
    """
    config, checkpoint = model.config, model.checkpoint
    if checkpoint is not None:
        name = checkpoint.origin.id if checkpoint.origin else checkpoint.path.name
        yield checkpoint_line(name, checkpoint.sha256)
    yield model_line(model.arch, config, task, sizes)
    yield gates_line(config)
    if targets:
        yield "  target", _numbers(targets)
    if budgets:
        yield "  budget", " ".join(f"{budget.value:>6}" for budget in budgets)
    elif settings.mode is TokenMode.BUDGET:
        yield "  budget", "what the images of --calibration keep"
    size = sum(weight.size for weight in model.weights.values()) * BYTES[settings.precision]
    batch = whole_batch(settings, task)
    yield graph_line(f"about {size / 2**20:.1f}", settings.precision, settings.opset,
                     settings.mode, batch)  # fmt: skip
    if settings.engine is not None:
        yield engine_line(settings.engine.target, profiles)
    yield from assumed_line({one.name: typed(one.value) for one in model.assumptions})
    for note in model.notes:
        yield "note", note


def checkpoint_line(name: str, sha256: str) -> Line:
    return "checkpoint", f"{name}, sha256 {sha256[:16]}"


def model_line(arch: str, config: ModelConfig, task: Task, sizes: SizeRange) -> Line:
    named = "" if task.name == DEFAULT_TASK else f"task {task.name}, "
    low, high = ("x".join(map(str, size)) for size in (sizes.min, sizes.max))
    size = low if sizes.fixed else f"{low} to {high}"
    frames = f", {config.frames} frames" if config.frames else ""
    return "model", f"{arch} ({config.family}), {named}{size} pixels{frames}"


def gates_line(config: ModelConfig) -> Line:
    count, blocks = config.num_gates, ", ".join(map(str, config.gate_blocks))
    if not count:
        return "gates", "none, the same tokens are computed of every image"
    if not config.thresholds:
        return "selections", f"{count}, at blocks {blocks}; as many tokens as the method keeps"
    return "gates", f"{count}, in front of blocks {blocks}; no sampling, a tie prunes"


def graph_line(
    mebibytes: str, precision: str, opset: int, mode: TokenMode, batch: BatchRange
) -> Line:
    return (
        "onnx",
        f"model.onnx, {mebibytes} MiB, {precision}, opset {opset}, token mode {mode.value}, batch "
        f"{batch.min} to {batch.max}, no random operator",
    )


def engine_line(target: str, profiles: Sequence[Profile]) -> Line:
    return "engine", f"{target}, profiles {', '.join(map(str, profiles))}; takes minutes"


def assumed_line(assumed: Mapping[str, str]) -> Iterable[Line]:
    return [("assumed", f"{in_words(assumed)}; {SET}")] if assumed else []


def written_files(output: Path, task: Task, precision: str, engine: bool) -> Iterator[Path]:
    """The files of a bundle; only the build knows the whole name of an engine."""
    beside = (f"model.{precision}-*.engine", f"model.{precision}-*.json", *task.engine_files)
    for name in (MANIFEST, MODEL, REFERENCE, *(beside if engine else ())):
        yield output / name


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:6.3f}" for value in values)
