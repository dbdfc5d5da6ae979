"""The reference: each model's plain PyTorch forward, as its paper evaluates it.

Here are the layers that backbones and methods share. They share no code with the exported graphs,
and take the numbers that a family fixes (LayerNorm epsilons, the keep channel, GELU) from its
published code rather than from the export's configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping
from copy import copy
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.backbones.stages import Staged
from svit_deploy.backbones.tokens import ReferenceTokens, See
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.model import Model
from svit_deploy.model.precision import FORMATS, Format
from svit_deploy.names import EMBEDDING, block_name

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
ROUND: Mapping[str, Callable[[Tensor], Tensor]] = {
    "int8": lambda x: x.round().clamp(-128, 127),
    "fp8": lambda x: x.clamp(-448, 448).to(torch.float8_e4m3fn).float(),
}
"""The nearest number that a format has, what is beyond its range cut off."""
PARTS = {"qkv": ("q", "k", "v"), "qk": ("q", "k"), "kv": ("k", "v")}
"""Layers that checkpoints keep in one, by the last part of its name."""


class Selects(Protocol):
    """What a forward pass must know of a method."""

    def reference(self, backbone: Any, x: Tensor) -> ReferenceTokens:
        """The embedded tokens `[B, S, C]`, ready for the first block."""


class BackboneReference:
    """A backbone's plain forward pass on the CPU, float32.

    Args:
        model: configuration and canonical weights.
        method: which tokens a block computes.
        eps: LayerNorm epsilon of blocks, gates and the final norm, by the published code.

    Attributes:
        weights: what products are made with.
        exact: the same in float32, for norms, gates and heads.
        forced: decisions to take instead of the method's own, by the graph's name for them.
        form: of int8 and fp8, what the linear layers in `quantised` have for weights.
        steps: of these, the step of the inputs of each; of others, inputs are not rounded.
    """

    forced: Mapping[str, Tensor] = MappingProxyType({})
    half: torch.dtype | None = None
    form: Format | None = None
    quantised: Collection[str] = ()
    steps: Mapping[str, float] = MappingProxyType({})

    def __init__(self, model: Model, method: Selects, eps: tuple[float, float, float]) -> None:
        self.config: ModelConfig = model.config
        self.method = method
        self.exact = {name: torch.from_numpy(array) for name, array in model.weights.items()}
        self.weights = self.exact
        self.block_eps, self.gate_eps, self.norm_eps = eps

    def with_weights_in(self, precision: str) -> BackboneReference:
        """The same forward pass in float32 with weights that a half, fp16 or bf16, can hold."""
        rounded = copy(self)
        rounded.half = HALVES[precision]
        rounded.weights = {name: rounded.rounded(value) for name, value in self.exact.items()}
        return rounded

    def with_quantised(
        self, precision: str, steps: Mapping[str, float], *, inputs: bool
    ) -> BackboneReference:
        """The same forward pass in float32 with weights that int8 or fp8 can hold.

        Args:
            steps: of the inputs, by layer; other layers stay as they are.
            inputs: whether the layers' inputs are rounded, too.
        """
        rounded = copy(self)
        rounded.form, rounded.quantised = FORMATS[precision], set(steps)
        rounded.steps = steps if inputs else {}
        rounded.weights = {
            name: rounded.quantise(name.removesuffix(".weight"), value)
            for name, value in self.exact.items()
        }
        return rounded

    def quantise(self, name: str, weight: Tensor) -> Tensor:
        """A layer's weights `[O, I]` where it is quantised: each row has its own step."""
        parts, form = _parts(name), self.form
        if form is None or not any(part in self.quantised for part in parts):
            return weight
        found = []
        for part, rows in zip(parts, weight.chunk(len(parts)), strict=True):
            largest = rows.abs().amax(1, keepdim=True)
            step = torch.where(largest > 0, largest, 1) / form.largest
            found.append(ROUND[form.name](rows / step) * step if part in self.quantised else rows)
        return torch.cat(found)

    def multiplied(self, x: Tensor, layer: str) -> Tensor:
        """What a layer multiplies for its inputs."""
        if self.form is None or layer not in self.steps:
            return x
        step = self.steps[layer]
        return ROUND[self.form.name](x / step) * step

    def product(self, x: Tensor, name: str, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A linear layer, its inputs rounded where it is quantised."""
        parts = _parts(name)
        if not any(part in self.steps for part in parts):
            return F.linear(x, weight, bias)
        found = [
            F.linear(self.multiplied(x, part), rows)
            for part, rows in zip(parts, weight.chunk(len(parts)), strict=True)
        ]
        return torch.cat(found, -1) + (0 if bias is None else bias)

    def rounded(self, value: Tensor) -> Tensor:
        """A constant as the products' weights are."""
        return value if self.half is None else value.to(self.half).float()

    def forward(self, images: Tensor, see: See) -> Generator[Any, Any, tuple[Any, ReferenceTokens]]:
        """Runs images `[B, 3, H, W]`: the backbone's output, and the tokens it ends with."""
        raise NotImplementedError

    def plain_block(self, x: Tensor, block: int) -> Tensor:
        """A block on all of some tokens `[B, T, C]`."""
        return self.block(x, block)

    # Layers.

    def linear(self, x: Tensor, name: str) -> Tensor:
        bias = self.weights.get(f"{name}.bias")
        return self.product(x, name, self.weights[f"{name}.weight"], bias)

    def scaled_linear(self, x: Tensor, name: str, scale: str) -> Tensor:
        """`linear` times a layer scale `[O]`; where weights are rounded, both are one weight."""
        factor = self.exact[scale]
        if self.half is None and name not in self.quantised:
            return factor * self.linear(x, name)
        weight = self.rounded(factor[:, None] * self.exact[f"{name}.weight"])
        bias = self.rounded(factor * self.exact[f"{name}.bias"])
        return self.product(x, name, self.quantise(name, weight), bias)

    def exact_linear(self, x: Tensor, name: str) -> Tensor:
        """`linear` with weights in float32."""
        return F.linear(x, self.exact[f"{name}.weight"], self.exact.get(f"{name}.bias"))

    def convolved(self, name: str) -> Tensor:
        """A convolution's weight or bias, which stays float32 beside bfloat16 products."""
        return self.exact[name] if self.half is torch.bfloat16 else self.weights[name]

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        weight, bias = self.exact[f"{name}.weight"], self.exact[f"{name}.bias"]
        return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)

    def conv(self, x: Tensor, name: str, padding: int = 0, stride: int = 1) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride=stride, padding=padding)

    def batch_norm(self, x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        mean, var, weight, bias = (
            self.exact[f"{name}.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        if self.half is None:
            return F.batch_norm(x, mean, var, weight, bias, eps=eps)
        scale = weight / (var + eps).sqrt()
        shift = self.rounded(bias - mean * scale)
        return x * self.rounded(scale)[:, None, None] + shift[:, None, None]

    def qkv(self, x: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B, H, T, D]` of normed tokens."""
        name, heads = f"blocks.{block}.attn", self.config.num_heads
        if f"{name}.qkv.weight" in self.weights:
            joined = self.linear(x, f"{name}.qkv")
        else:
            joined = torch.cat([self.linear(x, f"{name}.qk"), self.linear(x, f"{name}.v")], -1)
        query, key, value = joined.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value

    def scale(self, head_dim: int) -> float:
        """What attention scores are multiplied by."""
        return float(self.rounded(torch.tensor(head_dim**-0.5, dtype=torch.float64)))

    def add(self, x: Tensor, change: Tensor) -> Tensor:
        """A residual connection."""
        return x + change

    def block(self, x: Tensor, block: int, keep: Tensor | None = None) -> Tensor:
        """A block on all tokens `[B, S, C]`; keys outside `keep [B, S]` are not seen.

        Rows of an image that keeps nothing are undefined (NaN); the caller discards them.
        """
        name = f"blocks.{block}"
        query, key, value = self.qkv(self.norm(x, f"{name}.norm1", self.block_eps), block)
        mask = None if keep is None else keep[:, None, None, :]
        scale = self.scale(query.shape[-1])
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        x = self.add(x, self.linear(mixed.transpose(1, 2).flatten(2), f"{name}.attn.proj"))
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
        name = f"blocks.{block}"
        query, key, value = self.qkv(self.norm(x, f"{name}.norm1", self.block_eps), block)
        scores = query @ key.transpose(2, 3)
        hidden = 0 if bias is None else bias[:, None, None, :]
        weights = (scores * self.scale(query.shape[-1]) + hidden).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        x = self.add(x, self.linear(mixed, f"{name}.attn.proj"))
        if self.half is not None:  # ranks are of float32
            weights = (scores * query.shape[-1] ** -0.5 + hidden).softmax(-1)
        return x, weights, torch.stack([key, value])

    def feed_forward(self, x: Tensor, block: int) -> Tensor:
        """The second half of a block."""
        name = f"blocks.{block}"
        hidden = self.linear(self.norm(x, f"{name}.norm2", self.block_eps), f"{name}.mlp.fc1")
        return self.add(x, self.linear(F.gelu(hidden), f"{name}.mlp.fc2"))


class StagedReference(Staged[Tensor], BackboneReference):
    """A backbone in stages."""

    def plain_block(self, x: Tensor, block: int) -> Tensor:
        x, mixed = self.mix(x, block)
        return x + self.feed(mixed, block)

    def forward(self, images: Tensor, see: See) -> Generator[Any, Any, tuple[Any, ReferenceTokens]]:
        tokens = self.method.reference(self, self.embed(images))
        tokens.show(EMBEDDING, see)
        for number, (stage, block) in enumerate(self.places()):
            if stage.index and not block:
                tokens.put_map(self.shrink(tokens.map(), stage))
            yield from tokens.block(number)
            tokens.show(block_name(number), see)
        return tokens.for_head(), tokens


def _parts(name: str) -> list[str]:
    """The layers that a tensor of weights holds, by their names."""
    stem, _, last = name.rpartition(".")
    return [f"{stem}.{part}" for part in PARTS.get(last, (last,))]
