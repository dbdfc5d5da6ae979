"""ToMe's plain PyTorch forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from svit_deploy.backbones.tokens import ReferenceTokens
from svit_deploy.methods.tome.settings import merges
from svit_deploy.names import decision_name, lead_name, margin_name, target_name


class TomeReference(ReferenceTokens):
    sizes: Tensor | None = None

    def step(self, block: int) -> None:
        config, bias = self.config, None
        if self.sizes is not None and config.settings.prop_attn:
            bias = self.sizes.log()
        x, _, key_value = self.backbone.attention(self.rows, block, bias)
        if (gate := config.gate_of.get(block)) is not None:
            metric = key_value[0].mean(dim=1)
            metric = metric / metric.norm(dim=2, keepdim=True)
            similar = metric[:, 0::2] @ metric[:, 1::2].transpose(1, 2)
            similar[:, 0] = -torch.inf
            if config.distilled:
                similar[:, :, 0] = -torch.inf
            best, target = similar.max(dim=2)
            order = best.argsort(dim=1, descending=True, stable=True)
            pairs = merges(config)[gate].pairs
            gone = self.decide(decision_name(gate), order[:, :pairs])
            rest = torch.ones_like(best, dtype=torch.bool).scatter(1, gone, False)
            stay = rest.nonzero()[:, 1].view(len(best), best.shape[1] - pairs)
            into = torch.take_along_dim(target, gone, dim=1)
            into = self.decide(target_name(gate), into)
            x, self.sizes = merge_into(x, self.sizes, gone, stay, into, config.distilled)
            self.values |= {margin_name(gate): -best, lead_name(gate): lead_of(similar, gone)}
        self.rows = self.backbone.feed_forward(x, block)


def lead_of(similar: Tensor, gone: Tensor) -> Tensor:
    """How much more similar the nearest of B is than the next, for each token that merges."""
    if similar.shape[2] < 2:
        return torch.full(gone.shape, torch.inf)
    first, second = similar.topk(2, dim=2).values.unbind(dim=2)
    return torch.take_along_dim(first - second, gone, dim=1)


def merge_into(
    x: Tensor, sizes: Tensor | None, gone: Tensor, stay: Tensor, into: Tensor, distilled: bool
) -> tuple[Tensor, Tensor]:
    """Tokens `[B, T, C]` and their sizes `[B, T]` after a merge."""
    if sizes is None:
        sizes = torch.ones(x.shape[:2])

    def merge(value: Tensor) -> Tensor:
        a, b = value[:, 0::2], value[:, 1::2]
        moved = torch.take_along_dim(a, gone[..., None], dim=1)
        b = b.scatter_add(1, into[..., None].expand_as(moved), moved)
        a = torch.take_along_dim(a, stay[..., None], dim=1)
        return torch.cat([a[:, :1], b[:, :1], a[:, 1:], b[:, 1:]] if distilled else [a, b], dim=1)

    merged = merge(sizes[..., None])
    return merge(x * sizes[..., None]) / merged, merged[..., 0]
