"""How many tokens each gate may keep in `budget` mode."""

from __future__ import annotations

import math

import numpy as np

from svit_deploy.errors import UsageError
from svit_deploy.export.settings import AUTO_BUDGET, ExportSettings
from svit_deploy.images import Images
from svit_deploy.images.prepared import groups
from svit_deploy.model.budget import UNIT, Budget, budgets_of
from svit_deploy.model.config import ModelConfig, TokenMode, check_ratios, spread_over_gates
from svit_deploy.model.counts import kept_counts
from svit_deploy.model.model import Model
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks import Task
from svit_deploy.tasks.samples import prepare_all

RATIOS = "--budget 0.75,0.55,0.4 (ratios)"
COUNTS = "--budget 150,110,80 (counts)"
AUTO = "--budget auto --calibration IMAGES"


def choose_budgets(
    model: Model,
    task: Task,
    settings: ExportSettings,
    images: Images | None,
    sizes: SizeRange,
) -> tuple[Budget, ...]:
    """The budget of each gate, from `--budget`; empty in other modes.

    Raises:
        UsageError: missing, malformed, or out of range.
    """
    if settings.mode is not TokenMode.BUDGET:
        return ()
    config, text = model.config, settings.budget
    if text == AUTO_BUDGET:
        if images is None:
            raise UsageError("--budget auto needs images", "add --calibration IMAGES")
        return auto_budgets(model, task, images, sizes, settings.budget_percentile)
    values = _shares(text, config) if task.many_sizes else _counts(text, config)
    return budgets_of(config, values)


def auto_budgets(
    model: Model, task: Task, images: Images, sizes: SizeRange, percentile: float
) -> tuple[Budget, ...]:
    """Per gate what a percentage of the images does not exceed, at least something."""
    from svit_deploy.tasks.reference import Reference

    reference, config, used = Reference(model, task), model.config, []
    for group in groups(prepare_all(images, task, config, sizes), task.together):
        here = config.at(group[0].size)
        counts = kept_counts(reference.run(group).selected.keep_mask, here)
        gated = [
            here.gated_tokens(gate) if task.many_sizes else 1 for gate in range(counts.shape[1])
        ]
        used.append(counts / np.array(gated))
    needed = np.percentile(np.concatenate(used), percentile, axis=0, method="higher")
    if not task.many_sizes:
        return budgets_of(config, [max(1, int(count)) for count in needed])
    # Four digits are what the graph counts in; rounded up, and never nothing.
    shares = np.clip(np.ceil(needed * UNIT) / UNIT, 1 / UNIT, 1)
    return budgets_of(config, shares.tolist())


def _counts(text: str | None, config: ModelConfig) -> list[int | float]:
    """Gated tokens per gate, for images of one size."""
    if text is None:
        raise UsageError(
            "--tokens budget needs to know how many tokens each gate may keep",
            f"add {RATIOS}, {COUNTS} or {AUTO}",
        )
    parts = spread_over_gates(tuple(text.split(",")), config.num_gates, "--budget")
    return [_count(part, config.gated_tokens(gate), gate) for gate, part in enumerate(parts)]


def _count(text: str, gated: int, gate: int) -> int:
    """A count (whole number) or a ratio (with a point), checked against the gated tokens."""
    fix = f"give a ratio above 0 and at most 1.0, or a count from 1 to {gated}"
    try:
        count = math.ceil(float(text) * gated - 1e-9) if "." in text else int(text)
        sensible = 1 <= count <= gated and (0 < float(text) <= 1 or "." not in text)
    except (ValueError, OverflowError):
        raise UsageError(f"--budget {text!r} is neither a count nor a ratio", fix) from None
    if not sensible:
        raise UsageError(f"--budget {text} for gate {gate} is out of range", fix)
    return count


def _shares(text: str | None, config: ModelConfig) -> tuple[float, ...]:
    """The share of its tokens that each gate may keep, for images that differ in theirs."""
    fix = f"add {RATIOS} or {AUTO}"
    if text is None:
        raise UsageError(
            "--tokens budget needs to know which share of its tokens each gate may keep", fix
        )
    parts = text.split(",")
    try:
        shares = tuple(float(part) for part in parts)
    except ValueError:
        raise UsageError(f"--budget {text!r} is no list of ratios", fix) from None
    if not all("." in part for part in parts):
        raise UsageError(
            f"--budget {text} counts tokens, and a detector's images differ in theirs", fix
        )
    check_ratios(shares, "--budget")
    return spread_over_gates(shares, config.num_gates, "--budget")
