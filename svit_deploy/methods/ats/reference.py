"""The plain PyTorch forward pass of ATS."""

from __future__ import annotations

import torch
from torch import Tensor

from svit_deploy.export.names import decision_name, margin_name
from svit_deploy.export.tokens import TINY
from svit_deploy.methods.ats.settings import FAR
from svit_deploy.models.reference import Passed, Reference, Steps


def forward(reference: Reference, images: Tensor) -> Steps:
    """See `Method.forward`."""
    config = reference.config
    gate_of = config.gate_of
    x = reference.embed(images)
    maps = [x]
    values: dict[str, Tensor] = {}
    alive = torch.ones(x.shape[:2], dtype=torch.bool)
    for block in range(config.depth):
        hidden = torch.zeros(alive.shape).masked_fill(~alive, -torch.inf)
        y, weights, key_value = reference.attention(x, block, hidden)
        if (gate := gate_of.get(block)) is not None:
            length = key_value[1].transpose(1, 2).flatten(2).norm(dim=2)
            score = weights[:, :, 0].sum(dim=1) * length
            margin = torch.stack([sample(s, a) for s, a in zip(score, alive, strict=True)])
            keep = yield gate, margin
            alive = alive & keep
            values |= {margin_name(gate): margin, decision_name(gate): alive}
        x = torch.where(alive[..., None], reference.feed_forward(y, block), x)
        maps.append(x.masked_fill(~alive[..., None], torch.nan))  # nothing is left of those
    return Passed(reference.classify(x), maps, values)


def sample(score: Tensor, alive: Tensor) -> Tensor:
    """Margins `[S]` of one image's significances `[S]`; positive where a sample picks the token."""
    margin = torch.full(score.shape, -torch.inf)
    margin[0] = torch.inf
    there = alive.clone()
    there[0] = False
    places = there.nonzero()[:, 0]
    if len(places) < 2:
        margin[places] = FAR
        return margin
    ranked, order = (score[places] / score[places].sum()).sort(stable=True)
    cdf = ranked.cumsum(0)
    cdf = (cdf - cdf.min()) / (cdf.max() - cdf.min())
    count = len(score) - 1  # as many samples as the image had patches at first
    start = cdf[cdf > 0].min()
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
