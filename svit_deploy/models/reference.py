"""The reference: each model's plain PyTorch forward, as its paper evaluates it.

All tokens are computed, pruned keys are masked, pruned rows keep their value. It shares no code
with the exported graphs, and takes the numbers a method fixes (LayerNorm epsilons, the keep
channel, GELU) from the method's published code rather than from the export's configuration:
SViT uzh-rpg/svit @ d2472c13, DeiT facebookresearch/deit @ 7e160fe4.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.models import Model
from svit_deploy.models.positions import interpolate_positions

EPSILONS = {"svit": (1e-5, 1e-5, 1e-6), "deit": (1e-6, 1e-6, 1e-6)}
"""LayerNorm epsilon of blocks, gates and the final norm."""

Decide = Callable[[int, Tensor], Tensor]
"""Gate number and margins `[B, S]` -> tokens to keep `[B, S]` bool."""


@dataclass
class ReferenceOutputs:
    """What one forward pass computed, as NumPy arrays.

    Attributes:
        logits: `[B, classes]` float32.
        keep_mask: `[B, G, S]` bool; column 0 is the class token.
        margin: `[B, G, S]` float32; +inf where a gate always keeps the class token.
        features: feature maps `[B, S, C]` after the embedding and after each block.
    """

    logits: np.ndarray
    keep_mask: np.ndarray
    margin: np.ndarray
    features: list[np.ndarray] = field(default_factory=list)


def keep_above(thresholds: Sequence[float]) -> Decide:
    """The deterministic rule: keep iff margin > threshold, a tie is pruned."""
    return lambda gate, margin: margin > torch.tensor(thresholds[gate], dtype=torch.float32)


def keep_forced(keep_mask: np.ndarray) -> Decide:
    """The given masks `[B, G, S]`, whatever the margins say."""
    forced = torch.from_numpy(np.ascontiguousarray(keep_mask))
    return lambda gate, margin: forced[:, gate]


def keep_budget(decide: Decide, rows: Sequence[int]) -> Decide:
    """At most `rows[gate]` tokens per image, always-kept ones included; lowest margins go first.

    Without `rows` there is no budget.
    """
    if not rows:
        return decide

    def decide_within(gate: int, margin: Tensor) -> Tensor:
        keep = decide(gate, margin)
        order = margin.masked_fill(~keep, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1]).expand_as(order)
        )
        return keep & (rank < rows[gate])

    return decide_within


def keep_all(gate: int, margin: Tensor) -> Tensor:
    return torch.ones_like(margin, dtype=torch.bool)


def keep_none(gate: int, margin: Tensor) -> Tensor:
    """Only what a gate may not prune."""
    return torch.isposinf(margin)


class Reference:
    """A model's plain forward pass on the CPU, float32."""

    def __init__(self, model: Model) -> None:
        self.config = model.config
        self.weights = {name: torch.from_numpy(array) for name, array in model.weights.items()}
        self.weights["pos_embed"] = torch.from_numpy(
            interpolate_positions(
                model.weights["pos_embed"],
                self.config.prefix_tokens,
                self.config.native_grid,
                self.config.grid,
            )
        )
        self.block_eps, self.gate_eps, self.norm_eps = EPSILONS[self.config.family]

    def run(
        self,
        images: np.ndarray,
        decide: Decide | None = None,
        *,
        batch: int = 32,
        features: bool = False,
    ) -> ReferenceOutputs:
        """Runs `images [n, 3, H, W]` in batches.

        Args:
            decide: the gates' rule; default is margin > the configured threshold. It sees each
                batch by itself, so `keep_forced` needs `batch >= n`.
            features: also return every feature map (n · S · C floats per block).
        """
        decide = decide or keep_above(self.config.thresholds)
        parts = []
        for start in range(0, len(images), batch):
            steps = self.steps(images[start : start + batch], features=features)
            parts.append(drive(steps, decide))
        return ReferenceOutputs(
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.keep_mask for part in parts]),
            np.concatenate([part.margin for part in parts]),
            [np.concatenate(maps) for maps in zip(*(part.features for part in parts), strict=True)],
        )

    @torch.no_grad()
    def steps(
        self, images: np.ndarray, *, features: bool = False
    ) -> Generator[tuple[int, Tensor], Tensor, ReferenceOutputs]:
        """The forward pass, stopping at each gate.

        Yields a gate's number and margins `[B, S]`, takes its keep mask `[B, S]`, and returns the
        outputs.
        """
        config, weights = self.config, self.weights
        gate_of = {block: gate for gate, block in enumerate(config.gate_blocks)}
        keeps, margins, maps = [], [], []
        x = self.embed(torch.from_numpy(images))
        maps.append(x)
        for block in range(config.depth):
            if block not in gate_of:
                x = self.block(x, block, None)
            else:
                margin = self.margin(x, gate_of[block])
                keep = yield gate_of[block], margin
                x = torch.where(keep[..., None], self.block(x, block, keep), x)
                keeps.append(keep)
                margins.append(margin)
            maps.append(x)
        x = F.layer_norm(
            x, x.shape[-1:], weights["norm.weight"], weights["norm.bias"], self.norm_eps
        )
        logits = self.linear(x[:, 0], "head")
        if config.distilled:
            logits = (logits + self.linear(x[:, 1], "head_dist")) / 2
        empty = torch.zeros(len(x), 0, x.shape[1])
        return ReferenceOutputs(
            logits.numpy(),
            (torch.stack(keeps, 1) if keeps else empty.bool()).numpy(),
            (torch.stack(margins, 1) if margins else empty).numpy(),
            [features_map.numpy() for features_map in maps] if features else [],
        )

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)

    def embed(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> `[B, S, C]`."""
        weights = self.weights
        patches = F.conv2d(
            images,
            weights["patch_embed.proj.weight"],
            weights["patch_embed.proj.bias"],
            stride=self.config.patch_size,
        )
        tokens = [weights["cls_token"].expand(len(images), -1, -1)]
        if self.config.distilled:
            tokens.append(weights["dist_token"].expand(len(images), -1, -1))
        return torch.cat([*tokens, patches.flatten(2).transpose(1, 2)], 1) + weights["pos_embed"]

    def block(self, x: Tensor, block: int, keep: Tensor | None) -> Tensor:
        """A block on all tokens `[B, S, C]`; keys outside `keep [B, S]` are not seen.

        Rows of an image that keeps nothing are undefined (NaN); the caller discards them.
        """
        name, heads = f"blocks.{block}", self.config.num_heads
        qkv = self.linear(self.norm(x, f"{name}.norm1", self.block_eps), f"{name}.attn.qkv")
        query, key, value = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if keep is None else keep[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.linear(mixed.transpose(1, 2).flatten(2), f"{name}.attn.proj")
        hidden = self.linear(self.norm(x, f"{name}.norm2", self.block_eps), f"{name}.mlp.fc1")
        return x + self.linear(F.gelu(hidden), f"{name}.mlp.fc2")

    def margin(self, x: Tensor, gate: int) -> Tensor:
        """Keep logit (channel 0) minus prune logit (channel 1) of every token `[B, S]`."""
        name = f"gates.{gate}"
        hidden = self.linear(self.norm(x, f"{name}.norm", self.gate_eps), f"{name}.mlp.fc1")
        keep, prune = self.linear(F.gelu(hidden), f"{name}.mlp.fc2").unbind(-1)
        margin = keep - prune
        if not self.config.gate_class_token[gate]:
            margin[:, : self.config.prefix_tokens] = torch.inf
        return margin


def drive(
    steps: Generator[tuple[int, Tensor], Tensor, ReferenceOutputs], decide: Decide
) -> ReferenceOutputs:
    """Runs a forward pass to its end with one rule for every gate."""
    try:
        gate, margin = next(steps)
        while True:
            gate, margin = steps.send(decide(gate, margin))
    except StopIteration as finished:
        return finished.value
