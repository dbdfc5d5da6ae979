"""Every stage of a model by itself: on the reference's decisions and, if known, its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from svit_deploy.engines.base import Engine
from svit_deploy.graph.edit import FED, add_outputs, feed_values
from svit_deploy.model.config import TokenMode
from svit_deploy.model.result import Outputs, Result
from svit_deploy.tasks import Part
from svit_deploy.tasks.distance import margin_error, token_error
from svit_deploy.verify.exported import ModelUnderTest
from svit_deploy.verify.forced_decisions import decisions_of, forced_graph
from svit_deploy.verify.report import Stage
from svit_deploy.verify.rounding import StageLimits

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Seen:
    """What is compared of a run: margins and tokens that are there, by stage, and outputs."""

    margins: Arrays
    tokens: Arrays
    outputs: list[Outputs]


@dataclass(frozen=True)
class StageErrors:
    """What is seen of some images' stages.

    Attributes:
        errors: by stage, the largest.
        moved: the same of what rounding the weights moves; None where it is not known.
        heads: of a task whose heads are looked at, what came out and what is expected.
    """

    errors: dict[str, float]
    moved: dict[str, float] | None
    heads: list[tuple[Outputs, Outputs]]


class Stages:
    """The largest error of each stage, and the verdict on them.

    Args:
        alone: whether the reference's values are known, so that each stage runs by itself; else
            errors add up from stage to stage.
        exact: look at a half-precision graph in float32 arithmetic, its weights as they are. It is
            held against the reference with weights rounded, which it equals to float32.
    """

    def __init__(self, model: ModelUnderTest, alone: bool, *, exact: bool = False) -> None:
        self.model, self.alone, self.exact = model, alone, exact
        self.errors: dict[str, float] = {}
        self.limits = StageLimits(model, alone=alone, exact=exact)
        self.fed_maps = model.task.fed_maps(model.config) if alone else {}
        self._heads: list[tuple[Outputs, Outputs]] = []
        self.decisions = decisions_of(model)
        self.ranked = [name for name in model.values if name not in self.decisions]

    def engine(self) -> Engine:
        """Runs the graph with these for inputs."""
        base = self.model.in_float32() if self.exact else self.model.model
        graph = add_outputs(forced_graph(self.model, base), self.ranked)
        if self.alone:
            shapes: dict[str, tuple[int | str, ...]] = {
                name: (f"{name}.rows", f"{name}.width") for name in self.model.bundle.stages
            }
            graph = feed_values(graph, shapes | self.fed_maps)
        return self.model.engine(graph, exact=self.exact)

    @property
    def packs(self) -> bool:
        """Whether the graph's tokens are only those that are still there."""
        return self.model.method.removes and self.model.bundle.mode is TokenMode.DYNAMIC

    def run(self, engine: Engine, part: Part) -> StageErrors:
        """The errors of some images' stages."""
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
        graph = self._of_graph(engine.run(feeds), part, there)
        reference = self._of_reference(expected, there)
        errors = self._errors(graph, reference)
        run, moved = part.rounded if self.exact else part.moved, None
        rounded = None if run is None else run.stages if self.alone else run.result
        if rounded is not None:
            target = self._of_reference(rounded, there)
            moved = self._errors(target, reference)
            # A weight may also stay as it is, where a half has no such operator.
            if self.exact or part.computed is not None:
                closer = self._errors(graph, target)
                errors = {name: min(error, errors[name]) for name, error in closer.items()}
        heads = []
        if self.fed_maps and not self.exact:
            inner = task.inner()  # is compared already, and large
            heads = [
                ({n: v for n, v in mine.items() if n not in inner}, theirs)
                for mine, theirs in zip(graph.outputs, expected.outputs, strict=True)
            ]
        return StageErrors(errors, moved, heads)

    def add(self, seen: StageErrors) -> None:
        """Takes in what was seen of some images."""
        for name, error in seen.errors.items():
            self.errors[name] = max(self.errors.get(name, 0.0), error)
        if seen.moved is not None:
            self.limits.add(seen.moved)
        self._heads += seen.heads

    def _of_graph(self, actual: Mapping[str, np.ndarray], part: Part, there: Arrays) -> Seen:
        tokens = {
            name: np.asarray(actual[name] if self.packs else actual[name][mask.ravel()])
            for name, mask in there.items()
        }
        outputs = self.model.task.read(actual, part.images, self.model.config)
        return Seen({name: actual[name] for name in self.ranked}, tokens, outputs)

    def _of_reference(self, result: Result, there: Arrays) -> Seen:
        tokens = {name: result.stages[name][mask] for name, mask in there.items()}
        return Seen({name: result.values[name] for name in self.ranked}, tokens, result.outputs)

    def _errors(self, mine: Seen, theirs: Seen) -> dict[str, float]:
        errors = {
            name: margin_error(mine.margins[name], theirs.margins[name]) for name in self.ranked
        }
        for name, tokens in theirs.tokens.items():
            errors[name] = token_error(mine.tokens[name], tokens)
        return errors | self.model.task.stage_errors(self.model.runs(mine.outputs, theirs.outputs))

    def judge(self) -> None:
        """Lists the stages in the order they run and names the first that differs."""
        report, task = self.model.report, self.model.task
        stages = [
            Stage(label, name, self.errors[name], float(limit))
            for label, name, limit in self.limits.of_stages()
            if name in self.errors
        ]
        if not stages:
            return
        (report.stages_in_float32 if self.exact else report.stages).extend(stages)
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
        report.check(f"{name}, in float32" if self.exact else name, not wrong, detail)
        if self._heads:
            mine, theirs = ([pair[side] for pair in self._heads] for side in (0, 1))
            heads = task.judge_heads(self.model.runs(mine, theirs))
            if heads is not None:
                report.check(*heads)
