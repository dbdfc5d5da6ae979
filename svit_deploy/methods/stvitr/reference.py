"""STViT-R's plain PyTorch forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svit_deploy.backbones.swin.settings import SwinStage, places
from svit_deploy.backbones.tokens import ReferenceTokens
from svit_deploy.methods.semantic.reference import begin, look, look_inside
from svit_deploy.methods.stvitr.settings import IN_WINDOW, SAMPLING, UNIT


class StvitRReference(ReferenceTokens):
    def __init__(self, backbone: Any, rows: Tensor) -> None:
        super().__init__(backbone, rows)
        self.image = self.semantic = rows

    def map(self) -> Tensor:
        return self.image

    def put_map(self, x: Tensor) -> None:
        self.rows = self.image = x

    def step(self, block: int) -> None:
        stage, number = places(self.config)[block]
        role = number % UNIT if stage.index == 2 else 0
        if role == 0:
            self.rows = self.image = self.backbone.plain_block(self.image, block)
        elif role == 5:
            found = look(self.backbone, self.image, self.semantic, stage, number)
            self.rows = self.image = found
        else:
            self.rows = self.semantic = self.next_semantic(role, stage, number)

    def next_semantic(self, role: int, stage: SwinStage, block: int) -> Tensor:
        """What a block inside a unit makes of the semantic tokens `[B, 36, C]`."""
        reference, s, settings = self.backbone, self.semantic, self.config.settings
        if role == 1:
            shortcut = settings.shortcut
            return begin(reference, self.image, SAMPLING, stage, block, shortcut=shortcut)
        if role == 2:
            both = torch.cat([s, self.image], dim=1)
            if block < UNIT and settings.use_global:
                s = s + reference.weights["layers.2.semantic_token2"]
            return look(reference, s, both, stage, block)
        return look_inside(reference, s, SAMPLING, stage, block, local=role == IN_WINDOW)

    def accept(self, visible: Tensor) -> None:
        if self.rows is self.image:
            self.image = visible
        else:
            self.semantic = visible
        self.rows = visible
