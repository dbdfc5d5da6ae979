"""The reference of a whole model: one forward pass for every backbone, method and task."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svit_deploy.backbones.rules import Decide, drive, keep_above
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
        self, images: Sequence[Prepared], *, stages: bool = False
    ) -> Generator[tuple[int, Tensor], Tensor, Result]:
        """The forward pass of images of one size, stopping at each gate that a threshold decides.

        It gives the gate's number and margins `[n, S]`, and takes its keep mask.
        """
        seen: dict[str, np.ndarray] = {}

        def see(name: str, value: Tensor) -> None:
            if stages:
                seen[name] = value.numpy()

        config = self.config.at(images[0].size)
        backbone = copy(self.backbone)
        backbone.config = config
        output: Any
        output, tokens = yield from backbone.forward(torch.from_numpy(stacked(images)), see)
        values = {name: value.numpy() for name, value in tokens.values.items()}
        selected = self.family.method.decode_selection(config, values, len(images))
        outputs = self.task.reference_outputs(backbone, output, images, see)
        return Result(outputs, selected, values, seen)
