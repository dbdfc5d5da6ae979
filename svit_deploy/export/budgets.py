"""How many tokens each gate may keep in `budget` mode."""

from __future__ import annotations

import math

from svit_deploy.config import TokenMode, spread_over_gates
from svit_deploy.errors import UsageError
from svit_deploy.export.settings import ExportSettings
from svit_deploy.models import Model


def choose_budgets(model: Model, settings: ExportSettings) -> tuple[int, ...]:
    """Gated tokens per gate from `--budget`; empty in other modes.

    Raises:
        UsageError: missing, malformed, or outside 1 … gated tokens.
    """
    from svit_deploy.calibrate import auto_budgets
    from svit_deploy.models.reference import Reference

    if settings.mode is not TokenMode.BUDGET:
        return ()
    config, text = model.config, settings.budget
    if text is None:
        raise UsageError(
            "--tokens budget needs to know how many tokens each gate may keep",
            "add --budget 0.75,0.55,0.4 (ratios), --budget 150,110,80 (counts) or "
            "--budget auto --calibration IMAGES",
        )
    if text == "auto":
        if settings.calibration is None:
            raise UsageError("--budget auto needs images", "add --calibration IMAGES")
        inputs = settings.calibration.inputs(config.preprocess, config.image_size)
        outputs = Reference(model).run(inputs)
        return auto_budgets(outputs.keep_mask, config, settings.budget_percentile)
    parts = spread_over_gates(tuple(text.split(",")), config.num_gates, "--budget")
    return tuple(
        _one_budget(part, config.gated_tokens(gate), gate) for gate, part in enumerate(parts)
    )


def _one_budget(text: str, gated: int, gate: int) -> int:
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
