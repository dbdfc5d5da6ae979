"""The reference of a whole model: one forward pass for every backbone, method and task."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svit_deploy.backbones.rules import Decide, drive, keep_above, keep_forced
from svit_deploy.images.prepared import Prepared
from svit_deploy.methods.families import family_of
from svit_deploy.model.model import Model
from svit_deploy.model.precision import FORMATS
from svit_deploy.model.result import Result
from svit_deploy.names import INPUT
from svit_deploy.tasks.runs import Part, Rounded
from svit_deploy.tasks.task import Task


class Reference:
    """A model's plain PyTorch forward on the CPU, float32, as its paper evaluates it.

    Args:
        steps: of a quantised graph, the step of the inputs of each such layer.
    """

    def __init__(
        self, model: Model, task: Task, steps: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        self.config, self.task, self.family = model.config, task, family_of(model.config)
        family = self.family
        self.backbone = family.backbone.reference()(model, family.method, family.eps)
        self.input_steps = steps
        self._rounded: dict[tuple[str, bool], Reference] = {}

    def with_weights_in(self, precision: str, *, inputs: bool = False) -> Reference:
        """The same in float32, the weights of products rounded to what a precision can hold.

        Args:
            inputs: of int8 and fp8, whether the inputs of its layers are rounded, too.
        """
        if (precision, inputs) not in self._rounded:
            rounded, backbone = copy(self), self.backbone
            rounded.backbone = (
                backbone.with_quantised(precision, self.input_steps, inputs=inputs)
                if precision in FORMATS
                else backbone.with_weights_in(precision)
            )
            self._rounded[precision, inputs] = rounded
        return self._rounded[precision, inputs]

    def part(
        self,
        images: Sequence[Prepared],
        decide: Decide,
        precision: str,
        *,
        stages: bool = False,
    ) -> Part:
        """What is expected of images of one size, and what rounding moves in it.

        Args:
            precision: of the graph that it is expected of.
            stages: also what every stage gives.
        """
        result, shaken = self.run(images, decide, stages=stages), None
        if shake := self.task.shakes.get(precision):
            found, inner = self.repeat(images, result, shake=shake), self.task.inner()
            shaken = [{n: v for n, v in one.items() if n not in inner} for one in found.outputs]
        part = Part(tuple(images), result, shaken=shaken)
        if precision == "fp32":
            return part

        def again(*, inputs: bool) -> Rounded:
            rounded = self.with_weights_in(precision, inputs=inputs)
            by_stage = rounded.repeat(images, result, stages=True) if stages else None
            return Rounded(rounded.repeat(images, result), by_stage)

        computed = again(inputs=True) if precision in FORMATS else None
        return replace(part, rounded=again(inputs=False), computed=computed)

    def repeat(
        self,
        images: Sequence[Prepared],
        earlier: Result,
        *,
        stages: bool = False,
        shake: float = 0.0,
    ) -> Result:
        """Runs images on the decisions of an earlier run.

        Args:
            stages: each by itself: it is seen what one gives, and the next begins with what it
                gave in the earlier run.
            shake: move each place of the `Task.inner` values by this share of its size, in a
                direction drawn at random.
        """
        forced = keep_forced(earlier.selected.keep_mask)
        steps = self.steps(images, stages=stages, earlier=earlier, shake=shake)
        result: Result = drive(steps, forced)
        return result

    def run(
        self, images: Sequence[Prepared], decide: Decide | None = None, *, stages: bool = False
    ) -> Result:
        """Runs images of one size at once.

        Args:
            decide: the gates' rule; default is margin > the configured threshold.
            stages: also return what every stage gave.
        """
        decide = decide or keep_above(self.config.thresholds)
        result: Result = drive(self.steps(images, stages=stages), decide)
        return result

    @torch.no_grad()
    def steps(
        self,
        images: Sequence[Prepared],
        *,
        stages: bool = False,
        earlier: Result | None = None,
        shake: float = 0.0,
    ) -> Generator[tuple[int, Tensor], Tensor, Result]:
        """The forward pass of images of one size, stopping at each gate that a threshold decides.

        It gives the gate's number and margins `[n, S]`, and takes its keep mask.

        Args:
            earlier: a run whose decisions, and stages, if known, to go on with; see `repeat`.
            shake: see `repeat`.
        """
        seen: dict[str, np.ndarray] = {}
        given = earlier.stages if earlier is not None and stages else {}
        moved = self.task.inner() if shake else ()
        draw = torch.Generator().manual_seed(0)

        def see(name: str, value: Tensor) -> Tensor:
            if stages:  # of a video, the tokens of all its views
                seen[name] = value.numpy().reshape(len(images), -1, *value.shape[2:])
            if name in moved:
                size = value.square().mean(dim=1, keepdim=True).sqrt()
                noise = torch.randn(value.shape, generator=draw)
                return value + shake * size * noise
            return torch.from_numpy(given[name]).reshape(value.shape) if name in given else value

        config = self.config.at(images[0].size)
        backbone = copy(self.backbone)
        backbone.config = config
        if earlier is not None:
            kinds = self.family.method.values(config)
            backbone.forced = {
                name: torch.from_numpy(earlier.values[name])
                for name, (kind, _) in kinds.items()
                if kind is not np.float32
            }
        output: Any
        rows = torch.from_numpy(self.task.feeds(images)[INPUT])
        output, tokens = yield from backbone.forward(rows, see)
        values = {name: value.numpy() for name, value in tokens.values.items()}
        selected = self.family.method.decode_selection(config, values, len(images))
        outputs = self.task.reference_outputs(backbone, output, images, see)
        return Result(outputs, selected, values, seen)
