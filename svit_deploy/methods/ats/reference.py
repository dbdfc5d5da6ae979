"""The plain PyTorch forward pass of ATS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svit_deploy.backbones.tokens import GatedForward
from svit_deploy.graph.tokens import TINY
from svit_deploy.methods.ats.settings import FAR
from svit_deploy.methods.removal import RemovingReference
from svit_deploy.names import decision_name, margin_name


class AtsReference(RemovingReference):
    """All rows are kept; those of tokens that left are hidden as keys."""

    def __init__(self, backbone: Any, rows: Tensor) -> None:
        super().__init__(backbone, rows)
        self.alive = torch.ones(rows.shape[:2], dtype=torch.bool)
        self.sample_share = getattr(self.config.settings, "sample_share", 1.0)

    @property
    def visible(self) -> Tensor:
        return self.rows.masked_fill(~self.alive[..., None], torch.nan)  # nothing is left of those

    def block(self, block: int) -> GatedForward:
        hidden = torch.zeros(self.alive.shape).masked_fill(~self.alive, -torch.inf)
        y, weights, key_value = self.backbone.attention(self.rows, block, hidden)
        if (gate := self.config.gate_of.get(block)) is not None:
            length = key_value[1].transpose(1, 2).flatten(2).norm(dim=2)
            score = weights[:, :, 0].sum(dim=1) * length
            count = int((self.tokens - 1) * self.sample_share)
            pairs = zip(score, self.alive, strict=True)
            margin = torch.stack([sample(s, a, count) for s, a in pairs])
            keep = yield gate, margin
            if self.preserve:
                self.whole = self.complete(self.rows)
            self.alive = self.alive & keep
            self.values |= {margin_name(gate): margin, decision_name(gate): self.alive}
        computed = self.backbone.feed_forward(y, block)
        self.rows = torch.where(self.alive[..., None], computed, self.rows)

    def put(self, whole: Tensor, rows: Tensor) -> Tensor:
        return rows.where(self.alive[..., None], whole)


def sample(score: Tensor, alive: Tensor, count: int) -> Tensor:
    """Margins `[S]` of one image's significances `[S]`; positive where a sample picks the token.

    Args:
        count: of samples; as published, as many as the image had patches at first.
    """
    margin = torch.full(score.shape, -torch.inf)
    margin[0] = torch.inf
    there = alive.clone()
    there[0] = False
    places = there.nonzero()[:, 0]
    if len(places) < 2:
        margin[places] = FAR
        return margin
    # Where all are zero, TINY keeps the shares zero, too.
    ranked, order = (score[places] / score[places].sum().clamp_min(TINY)).sort(stable=True)
    cdf = ranked.cumsum(0)
    cdf = (cdf - cdf.min()) / (cdf.max() - cdf.min()).clamp_min(TINY)
    start = cdf.masked_fill(cdf <= 0, 1).min()
    samples = start + (1 - start) * torch.arange(count) / max(count - 1, 1)
    nearest = (samples[:, None] - cdf[None, :]).abs().argmin(dim=1)
    picked = torch.zeros(len(places), dtype=torch.bool)
    picked[nearest] = True
    half = (cdf[1:] + cdf[:-1]) / 2
    far = torch.tensor([FAR])
    left, right = torch.cat([-far, half]), torch.cat([half, far])
    inside = torch.minimum(samples[:, None] - left, right - samples[:, None]).amax(dim=0).abs()
    gap = torch.cat([torch.tensor([torch.inf]), ranked.diff(), torch.tensor([torch.inf])])
    size = torch.minimum(inside, torch.minimum(gap[1:], gap[:-1])).clamp_min(TINY)
    margin[places[order]] = torch.where(picked, size, -size)
    return margin
