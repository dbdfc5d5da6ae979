"""The reference of a whole model: one forward pass for every backbone, method and task."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svit_deploy.backbones.rules import Decide, drive, keep_above, keep_forced
from svit_deploy.images.prepared import Prepared, stacked
from svit_deploy.methods.families import family_of
from svit_deploy.model.model import Model
from svit_deploy.model.result import Result
from svit_deploy.tasks.task import Task


class Reference:
    """A model's plain PyTorch forward on the CPU, float32, as its paper evaluates it."""

    def __init__(self, model: Model, task: Task) -> None:
        self.config, self.task, self.family = model.config, task, family_of(model.config)
        family = self.family
        self.backbone = family.backbone.reference()(model, family.method, family.eps)

    def with_weights_in(self, precision: str) -> Reference:
        """The same in float32, the weights of products rounded to what fp16 or bf16 can hold."""
        rounded = copy(self)
        rounded.backbone = self.backbone.with_weights_in(precision)
        return rounded

    def repeat(
        self, images: Sequence[Prepared], earlier: Result, *, stages: bool = False
    ) -> Result:
        """Runs images on the decisions of an earlier run.

        Args:
            stages: each by itself: it is seen what one gives, and the next begins with what it
                gave in the earlier run.
        """
        forced = keep_forced(earlier.selected.keep_mask)
        result: Result = drive(self.steps(images, stages=stages, earlier=earlier), forced)
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
        self, images: Sequence[Prepared], *, stages: bool = False, earlier: Result | None = None
    ) -> Generator[tuple[int, Tensor], Tensor, Result]:
        """The forward pass of images of one size, stopping at each gate that a threshold decides.

        It gives the gate's number and margins `[n, S]`, and takes its keep mask.

        Args:
            earlier: a run whose decisions, and stages, if known, to go on with; see `repeat`.
        """
        seen: dict[str, np.ndarray] = {}
        given = earlier.stages if earlier is not None and stages else {}

        def see(name: str, value: Tensor) -> Tensor:
            if stages:
                seen[name] = value.numpy()
            return torch.from_numpy(given[name]) if name in given else value

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
        output, tokens = yield from backbone.forward(torch.from_numpy(stacked(images)), see)
        values = {name: value.numpy() for name, value in tokens.values.items()}
        selected = self.family.method.decode_selection(config, values, len(images))
        outputs = self.task.reference_outputs(backbone, output, images, see)
        return Result(outputs, selected, values, seen)
