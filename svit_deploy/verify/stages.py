"""Every stage of a model by itself: on the reference's decisions and, if known, its values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from svit_deploy import names
from svit_deploy.engines.base import Engine
from svit_deploy.graph.edit import FED, add_outputs, feed_values
from svit_deploy.model.config import TokenMode
from svit_deploy.model.result import Outputs
from svit_deploy.tasks import Part
from svit_deploy.tasks.distance import margin_error, token_error
from svit_deploy.verify.exported import ModelUnderTest
from svit_deploy.verify.forced_decisions import decisions_of, forced_graph
from svit_deploy.verify.report import Stage


class Stages:
    """The largest error of each stage, and the verdict on them.

    Args:
        alone: whether the reference's values are known, so that each stage runs by itself; else
            errors add up from stage to stage.
    """

    def __init__(self, model: ModelUnderTest, alone: bool) -> None:
        self.model, self.alone = model, alone
        self.errors: dict[str, float] = {}
        self.fed_maps = model.task.fed_maps(model.config) if alone else {}
        self._heads: list[tuple[Outputs, Outputs]] = []
        self.decisions = decisions_of(model)
        self.ranked = [name for name in model.values if name not in self.decisions]

    def graph(self) -> onnx.ModelProto:
        """The graph with these for inputs."""
        model = add_outputs(forced_graph(self.model), self.ranked)
        if not self.alone:
            return model
        shapes: dict[str, tuple[int | str, ...]] = {
            name: (f"{name}.rows", f"{name}.width") for name in self.model.bundle.stages
        }
        return feed_values(model, shapes | self.fed_maps)

    @property
    def packs(self) -> bool:
        """Whether the graph's tokens are only those that are still there."""
        return self.model.method.removes and self.model.bundle.mode is TokenMode.DYNAMIC

    def run(self, engine: Engine, part: Part) -> None:
        """Adds the errors of some images' stages."""
        task, expected = self.model.task, part.result
        feeds = task.feeds(part.images)
        for name in self.decisions:
            feeds[name] = np.ascontiguousarray(expected.values[name])
        for name in self.fed_maps:
            feeds[name + FED] = expected.stages[name]
        tokens = {name: expected.stages[name] for name in self.model.bundle.stages if self.alone}
        there = {name: ~np.isnan(value[..., 0]) for name, value in tokens.items()}
        for name, value in tokens.items():
            rows = value[there[name]] if self.packs else np.nan_to_num(value)
            feeds[name + FED] = rows.reshape(-1, value.shape[-1])
        actual = engine.run(feeds)
        for name in self.ranked:
            self._add(name, margin_error(actual[name], expected.values[name]))
        for name, value in tokens.items():
            mine = actual[name] if self.packs else actual[name][there[name].ravel()]
            self._add(name, token_error(mine, value[there[name]]))
        found = task.read(actual, part.images)
        runs = self.model.runs(found, expected.outputs)
        for name, error in task.stage_errors(runs).items():
            self._add(name, error)
        if self.fed_maps:
            inner = task.inner()  # is compared already, and large
            self._heads += [
                ({n: v for n, v in mine.items() if n not in inner}, theirs)
                for mine, theirs in zip(found, expected.outputs, strict=True)
            ]

    def _add(self, name: str, error: float) -> None:
        self.errors[name] = max(self.errors.get(name, 0.0), error)

    def judge(self) -> None:
        """Lists the stages in the order they run and names the first that differs."""
        report, task = self.model.report, self.model.task
        stages = [
            Stage(label, self.errors[name], float(limit))
            for label, name, limit in self._limits()
            if name in self.errors
        ]
        report.stages += stages
        wrong = [stage for stage in stages if not stage.error <= stage.limit]
        detail = f"largest error is {max(s.error / s.limit for s in stages):.0%} of its limit"
        if wrong:
            first = wrong[0]
            by = f"by {first.error:.2g} (limit {first.limit:.2g})"
            if np.isinf(first.error):
                by = "by NaN, infinity or a token that only one of them always keeps"
            rest = f" of {len(wrong)}" if len(wrong) > 1 else ""
            detail = f"{first.name} is the first{rest} to differ from the reference, {by}"
        name = "every stage by itself" if self.alone else f"gates and {task.staged}"
        report.check(name, not wrong, detail)
        if self._heads:
            mine, theirs = ([pair[side] for pair in self._heads] for side in (0, 1))
            heads = task.judge_heads(self.model.runs(mine, theirs))
            if heads is not None:
                report.check(*heads)

    def _limits(self) -> list[tuple[str, str, float]]:
        """Label, the graph's value and limit of every stage, in order."""
        model, limits = self.model, self.model.limits
        margin = limits.margin if self.alone else limits.rounding
        if self.alone and model.method.ranks_inside:
            margin = max(margin, limits.block)
        gate_of = {names.block_name(b): gate for b, gate in model.config.gate_of.items()}
        order = []
        for name in model.bundle.stages:
            if (gate := gate_of.get(name)) is not None:
                order.append((f"gate {gate}", names.margin_name(gate), margin * model.scales[gate]))
            order.append((_label(name), name, _limit(name, limits)))
        own = model.task.stages(limits, self.alone)
        return order + [(stage.label, stage.name, stage.limit) for stage in own]


def _limit(name: str, limits: Any) -> float:
    """How far a stage of the backbone may be off."""
    if name == names.EMBEDDING:
        return float(limits.embedding)
    return float(limits.block if name.startswith("block_") else limits.stage)


def _label(name: str) -> str:
    """`block_3.out` -> `block 3`"""
    return name.removesuffix(".out").replace("_", " ")
