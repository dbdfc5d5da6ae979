"""The reference: each model's plain PyTorch forward, as its paper evaluates it.

What the methods share; the forward pass of each is with its method (`svit_deploy.methods`). It
shares no code with the exported graphs, and takes the numbers a method fixes (LayerNorm epsilons,
the keep channel, GELU) from the method's published code rather than from the export's
configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.methods import method_of
from svit_deploy.models import Model
from svit_deploy.models.positions import interpolate_positions

Decide = Callable[[int, Tensor], Tensor]
"""Gate number and margins `[B, S]` -> tokens to keep `[B, S]` bool."""


@dataclass
class Passed:
    """One batch through the model.

    Attributes:
        logits: `[B, classes]`.
        maps: what the embedding and each block gave, `[B, tokens, C]`.
        values: `Method.values` of this run.
    """

    logits: Tensor
    maps: list[Tensor]
    values: dict[str, Tensor] = field(default_factory=dict)


Steps = Generator[tuple[int, Tensor], Tensor, Passed]
"""A forward pass that stops at each gate: gives its number and margins, takes its keep mask."""


@dataclass
class ReferenceOutputs:
    """What one forward pass computed, as NumPy arrays.

    Attributes:
        logits: `[B, classes]` float32.
        keep_mask: `[B, G, S]` bool; column 0 is the class token.
        margin: `[B, G, S]` float32; +inf where a gate always keeps the class token.
        source, lead: `[B, G, S]`, for a method that merges (`methods.Selected`).
        features: feature maps `[B, tokens, C]` after the embedding and after each block.
        values: the decisions as the graph holds them (`Method.values`).
    """

    logits: np.ndarray
    keep_mask: np.ndarray
    margin: np.ndarray
    source: np.ndarray | None = None
    lead: np.ndarray | None = None
    features: list[np.ndarray] = field(default_factory=list)
    values: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def concatenate(cls, parts: Sequence[ReferenceOutputs]) -> ReferenceOutputs:
        sources = [part.source for part in parts if part.source is not None]
        leads = [part.lead for part in parts if part.lead is not None]
        return cls(
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.keep_mask for part in parts]),
            np.concatenate([part.margin for part in parts]),
            np.concatenate(sources) if sources else None,
            np.concatenate(leads) if leads else None,
            [np.concatenate(maps) for maps in zip(*(part.features for part in parts), strict=True)],
            {
                name: np.concatenate([part.values[name] for part in parts])
                for name in parts[0].values
            },
        )


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
        self.config, self.method = model.config, method_of(model.config)
        self.weights = {name: torch.from_numpy(array) for name, array in model.weights.items()}
        if "pos_embed" in model.weights:
            self.weights["pos_embed"] = torch.from_numpy(
                interpolate_positions(
                    model.weights["pos_embed"],
                    self.config.prefix_tokens,
                    self.config.native_grid,
                    self.config.grid,
                )
            )
        self.block_eps, self.gate_eps, self.norm_eps = self.method.eps

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
        return ReferenceOutputs.concatenate(parts)

    @torch.no_grad()
    def steps(
        self, images: np.ndarray, *, features: bool = False
    ) -> Generator[tuple[int, Tensor], Tensor, ReferenceOutputs]:
        """The forward pass, stopping at each gate that a threshold may decide (see `Steps`)."""
        passed = self.method.forward(self, torch.from_numpy(images))
        if not isinstance(passed, Passed):
            passed = yield from passed
        values = {name: value.numpy() for name, value in passed.values.items()}
        selected = self.method.trace(self.config, values, len(images))
        return ReferenceOutputs(
            passed.logits.numpy(),
            selected.keep_mask,
            selected.margin,
            selected.source,
            selected.lead,
            [features_map.numpy() for features_map in passed.maps] if features else [],
            values,
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
        prefix = ("cls_token", "dist_token")[: self.config.prefix_tokens]
        tokens = [weights[name].expand(len(images), -1, -1) for name in prefix]
        return torch.cat([*tokens, patches.flatten(2).transpose(1, 2)], 1) + weights["pos_embed"]

    def block(self, x: Tensor, block: int, keep: Tensor | None = None) -> Tensor:
        """A block on all tokens `[B, S, C]`; keys outside `keep [B, S]` are not seen.

        Rows of an image that keeps nothing are undefined (NaN); the caller discards them.
        """
        name, heads = f"blocks.{block}", self.config.num_heads
        qkv = self.linear(self.norm(x, f"{name}.norm1", self.block_eps), f"{name}.attn.qkv")
        query, key, value = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if keep is None else keep[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.linear(mixed.transpose(1, 2).flatten(2), f"{name}.attn.proj")
        return self.feed_forward(x, block)

    def attention(
        self, x: Tensor, block: int, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The first half of a block, with what methods rank tokens by.

        Args:
            x: `[B, T, C]`.
            bias: added to the scores of each key, `[B, T]`.

        Returns:
            The new tokens `[B, T, C]`, the attention `[B, H, T, T]`, the keys and the values
            `[2, B, H, T, D]`.
        """
        name, heads = f"blocks.{block}", self.config.num_heads
        normed = self.norm(x, f"{name}.norm1", self.block_eps)
        if f"{name}.attn.qkv.weight" in self.weights:
            qkv = self.linear(normed, f"{name}.attn.qkv")
        else:
            parts = self.linear(normed, f"{name}.attn.qk"), self.linear(normed, f"{name}.attn.v")
            qkv = torch.cat(parts, -1)
        query, key, value = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        if bias is not None:
            scores = scores + bias[:, None, None, :]
        weights = scores.softmax(-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return x + self.linear(mixed, f"{name}.attn.proj"), weights, torch.stack([key, value])

    def feed_forward(self, x: Tensor, block: int) -> Tensor:
        """The second half of a block."""
        name = f"blocks.{block}"
        hidden = self.linear(self.norm(x, f"{name}.norm2", self.block_eps), f"{name}.mlp.fc1")
        return x + self.linear(F.gelu(hidden), f"{name}.mlp.fc2")

    def classify(self, x: Tensor) -> Tensor:
        """Final norm and head on the class token `[B, tokens, C]` -> `[B, classes]`.

        A distilled model averages the heads of its two first tokens.
        """
        x = self.norm(x, "norm", self.norm_eps)
        logits = self.linear(x[:, 0], "head")
        if self.config.distilled:
            logits = (logits + self.linear(x[:, 1], "head_dist")) / 2
        return logits

    def classify_mean(self, x: Tensor) -> Tensor:
        """Final norm, the mean of the tokens `[B, tokens, C]`, head."""
        return self.linear(self.norm(x, "norm", self.norm_eps).mean(dim=1), "head")


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
