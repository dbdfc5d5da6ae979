"""Limits of a half-precision graph, out of what rounded weights move in the reference itself.

The reference with weights that a half can hold is what such a graph computes but for the rounding
of its own results. So in float32 arithmetic the graph must equal it as a float32 graph does, and as
it ships it may be off by a small multiple of what rounding the weights has moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from svit_deploy import names
from svit_deploy.model.result import Outputs
from svit_deploy.tasks import Part
from svit_deploy.verify.exported import ModelUnderTest

STAGE = {"fp16": 4, "bf16": 4, "int8": 2, "fp8": 2}
"""What a stage's results may be off by, in units of what rounding moves in it. In half precision
that of its weights and of one result, and correct ones reach 2.7; of int8 and fp8 all is known,
and what remains is how near ties fall; correct ones reach 0.6."""
WHOLE = {"fp16": 8, "bf16": 8, "int8": 3, "fp8": 3}
"""The same of the whole model, against the reference without rounding; correct ones reach 4.5 in
half precision and 1.1 of int8."""
TYPICAL = 2
"""The same of a margin that is not the worst."""
FOLDED = 2
"""What a stage may differ by in float32 arithmetic whose batch norms and convolutions are rounded
as one, in units of what rounding them apart moves; correct ones reach 1.2."""
UNIT = {"fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 0.0, "fp8": 0.0}
"""Half the distance of two neighbouring numbers around 1, of stages' results."""


class StageLimits:
    """How far each stage may be off.

    Args:
        alone, exact: as `stages.Stages` takes them.
    """

    def __init__(self, model: ModelUnderTest, *, alone: bool, exact: bool) -> None:
        self.model, self.alone, self.exact = model, alone, exact
        self.moved: dict[str, float] = {}
        self.ranked = {names.margin_name(gate): gate for gate in model.gates}

    def add(self, moved: Mapping[str, float]) -> None:
        """Takes in what rounding the weights has moved in each stage, for some images."""
        for name, error in moved.items():
            self.moved[name] = max(self.moved.get(name, 0.0), error)

    def of_stages(self) -> list[tuple[str, str, float]]:
        """Label, the graph's value and limit of every stage, in order."""
        model = self.model
        exact = self._listed(model.task.limits["fp32"])
        table = {name: limit for _, name, limit in self._listed(model.limits)}
        return [
            (label, name, limit + self._allowed(name) if name in self.moved else table[name])
            for label, name, limit in exact
        ]

    def _listed(self, limits: Any) -> list[tuple[str, str, float]]:
        """The stages with the limits of a precision."""
        model, order = self.model, []
        margin = limits.margin if self.alone else limits.rounding
        if self.alone and model.method.ranks_inside:
            margin = max(margin, limits.block)
        gate_of = {names.block_name(b): gate for b, gate in model.config.gate_of.items()}
        for name in model.bundle.stages:
            if (gate := gate_of.get(name)) is not None:
                ranked = names.margin_name(gate)
                order.append((f"gate {gate}", ranked, margin * float(model.scales[gate])))
            label = name.removesuffix(".out").replace("_", " ")
            order.append((label, name, _limit(name, limits)))
        own = model.task.stages(limits, self.alone)
        return order + [(stage.label, stage.name, stage.limit) for stage in own]

    def _allowed(self, name: str) -> float:
        """What rounding explains of a stage's error, beside what float32 does."""
        moved, model = self.moved[name], self.model
        if self.exact:
            apart = model.bundle.family.backbone.folds_norms
            if self.alone:  # of the stages with convolutions
                apart = apart and not name.startswith(("block_", "gate_"))
            return FOLDED * moved if apart else 0.0
        if name in model.bundle.stages or name in model.task.inner():
            moved += UNIT[model.bundle.precision]
        elif model.method.ranks_inside and name in self.ranked:
            moved += UNIT[model.bundle.precision] * float(model.scales[self.ranked[name]])
        return (STAGE if self.alone else WHOLE)[model.bundle.precision] * moved


@dataclass(frozen=True)
class Moved:
    """What rounding moves in some images' results.

    Attributes:
        shaken: outputs where what the heads read is off by rounding, and those where it is not.
        outputs: the largest errors of outputs by name, and `margins` `[n, G, S]`, how far each
            moved; None where it is not known.
    """

    shaken: list[tuple[Outputs, Outputs]]
    outputs: dict[str, float] | None = None
    margins: np.ndarray | None = None


class WholeRounding:
    """What rounding moves in margins and outputs of the whole model."""

    def __init__(self, model: ModelUnderTest) -> None:
        self.model = model
        self.shaken: list[tuple[Outputs, Outputs]] = []
        self.margins = np.zeros(len(model.gates))
        self.outputs: dict[str, float] = {}
        self.known = False

    def moved(self, part: Part) -> Moved:
        """What it moves in some images."""
        shaken = []
        if part.shaken is not None:
            inner = self.model.task.inner()
            for found, exact in zip(part.shaken, part.result.outputs, strict=True):
                shaken.append((found, {n: v for n, v in exact.items() if n not in inner}))
        if part.moved is None:
            return Moved(shaken)
        rounded = part.moved.result
        errors = self.model.task.stage_errors(self.model.runs(rounded.outputs, part.result.outputs))
        mine, theirs = rounded.selected.margin, part.result.selected.margin
        with np.errstate(invalid="ignore"):
            moved = np.where(np.isfinite(theirs), np.abs(mine - theirs), 0.0)
        return Moved(shaken, errors, moved)

    def add(self, moved: Moved) -> None:
        """Takes in some images."""
        self.shaken += moved.shaken
        if moved.outputs is None or moved.margins is None:
            return
        self.known = True
        for name, error in moved.outputs.items():
            self.outputs[name] = max(self.outputs.get(name, 0.0), error)
        self.margins = np.maximum(self.margins, moved.margins.max(axis=(0, 2), initial=0.0))

    def set_limits(self) -> None:
        """Gives the model limits of its own, once `scales` are known."""
        model, exact = self.model, self.model.task.limits["fp32"]
        if self.shaken:
            mine, theirs = ([pair[side] for pair in self.shaken] for side in (0, 1))
            swayed = model.runs(mine, theirs)
            model.limits = model.task.swayed(model.limits, swayed)
            model.float32 = model.task.swayed(model.float32, swayed)
        if not self.known:
            return
        times = WHOLE[model.bundle.precision]
        model.reach = exact.rounding * model.scales + times * self.margins
        allowed = {name: times * error for name, error in self.outputs.items()}
        model.limits = model.task.widened(model.limits, exact, allowed)


def predicted_flips(distance: np.ndarray, moved: np.ndarray) -> float:
    """How many decisions rounding turns, to go by how densely margins lie around their cut.

    Args:
        distance: `[n, G, S]`, how far each margin must move to turn its decision.
        moved: `[n, G, S]`, how far rounding the weights moves margins.
    """
    expected = 0.0
    for gate in range(distance.shape[1]):
        step = np.sort(TYPICAL * moved[:, gate][moved[:, gate] > 0], axis=None)
        if step.size:
            reached = step.size - np.searchsorted(step, distance[:, gate])
            expected += float(reached.sum() / step.size)
    return expected


def _limit(name: str, limits: Any) -> float:
    """How far a stage of the backbone may be off."""
    if name == names.EMBEDDING:
        return float(limits.embedding)
    return float(limits.block if name.startswith("block_") else limits.stage)
