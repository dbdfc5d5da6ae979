"""DynamicViT: small predictors rank the tokens, and a fixed share of them goes on.

Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification",
NeurIPS 2021; the numbers are those of raoyongming/DynamicViT @ 1322e626, its DeiT and LV-ViT
families.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svit_deploy.backbones.tokens import Decided, GraphTokens, ReferenceTokens
from svit_deploy.errors import InputError
from svit_deploy.graph.builder import INT64_MAX
from svit_deploy.graph.maps import Dim, total
from svit_deploy.graph.rows import flat_rows, gather_rows, with_prefix
from svit_deploy.graph.tokens import share_of, top_tokens
from svit_deploy.methods.method import Gates, Method, Values, shared_out
from svit_deploy.methods.ranking import decode_survivors, ranked_values
from svit_deploy.methods.removal import (
    RankedGraph,
    RemovalSettings,
    RemovingReference,
    check_removal,
)
from svit_deploy.model.arch import Arch
from svit_deploy.model.assumption import typed
from svit_deploy.model.config import ModelConfig, TokenMode, check_ratios
from svit_deploy.model.keys import Shape, Tensors, linear, norm
from svit_deploy.model.result import Selected
from svit_deploy.model.sizes import Misfit
from svit_deploy.names import decision_name, margin_name

if TYPE_CHECKING:
    from torch import Tensor

OFFICIAL = {"norm": "in_conv.0", "fc0": "in_conv.1", "fc1": "out_conv.0", "fc2": "out_conv.2"}
OFFICIAL["fc3"] = "out_conv.4"
STAGES = 3  # of every published model; others must say where they prune


@dataclass(frozen=True, kw_only=True)
class DynamicVitSettings:
    """What a training chooses.

    Attributes:
        base_rate: the share of all patches kept at each stage; of one number, its powers.
        prune_blocks: the block in front of which each stage prunes; by default three that share
            out the blocks evenly.
    """

    base_rate: tuple[float, ...]
    prune_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DynamicVitInAdapterSettings(RemovalSettings, DynamicVitSettings):
    """In a ViT-Adapter."""


class DynamicVitGraph(RankedGraph):
    def __init__(self, writer: Any, rows: str, shares: tuple[float, ...]) -> None:
        super().__init__(writer, rows)
        self.shares = shares

    def block(self, block: int) -> str:
        graph, writer, prefix = self.graph, self.writer, self.config.prefix_tokens
        if (stage := self.config.gate_of.get(block)) is not None:
            share = self.shares[stage]
            with graph.scope("gate"):
                score = graph.rename(self.score(stage), margin_name(stage))
                count = share_of(graph, share, writer.num_tokens, prefix)
                most = int((writer.most_tokens - prefix) * share)
                kept = graph.rename(top_tokens(graph, score, count, most), decision_name(stage))
            with graph.scope("select"):
                places = with_prefix(graph, kept, prefix)
                margin = self.survivors.spread(score)
                self.leave(self.rows)
                self.decided.append(Decided(self.survivors.keep(places), margin))
                self.rows = gather_rows(graph, self.rows, flat_rows(graph, places, self.count))
                self.count = total(graph, count, prefix)
        return super().block(block)

    def score(self, stage: int) -> str:
        """Of the tokens after the prefix `[B, M]`."""
        graph, tokens = self.graph, self.count
        prefix, width = self.config.prefix_tokens, self.config.embed_dim
        ranked = total(graph, tokens, -prefix)
        rows = graph.to_float32(self.rows)
        if prefix:
            split = graph.reshape(rows, -1, tokens, width)
            last = tokens if isinstance(tokens, int) else INT64_MAX
            rows = graph.reshape(graph.slice(split, prefix, last), -1, width)
        return predict(self, rows, ranked, stage)


def predict(tokens: GraphTokens, rows: str, count: Dim, stage: int) -> str:
    """Keep logit minus prune logit of float32 rows `[B * count, C]`: `[B, count]` float32.

    What all tokens share, the mean of half the channels, is multiplied once for each image.
    """
    graph, layers, name = tokens.graph, tokens.writer.layers, f"predictors.{stage}"
    weight = layers.weights[f"{name}.fc1.weight"]
    half = len(weight)
    z = layers.layer_norm(rows, f"{name}.norm", tokens.config.gate_eps)
    z = layers.exact_linear(z, f"{name}.fc0")
    local, whole = graph.ops("Split", graph.op("Gelu", z), outputs=2, axis=1, num_outputs=2)
    whole = graph.reshape(whole, -1, count, half)
    whole = graph.op("ReduceMean", whole, graph.constant([1]), keepdims=0)  # [B, C / 2]
    local_weight = graph.weight(f"{name}.fc1.local.weight", weight[:, :half])
    whole_weight = graph.weight(f"{name}.fc1.whole.weight", weight[:, half:])
    shared = graph.op("Gemm", whole, whole_weight, layers.weight(f"{name}.fc1.bias"), transB=1)
    own = graph.reshape(graph.op("Gemm", local, local_weight, transB=1), -1, count, half)
    z = graph.op("Gelu", graph.op("Add", own, graph.reshape(shared, -1, 1, half)))
    z = graph.reshape(z, -1, half)
    z = graph.op("Gelu", layers.exact_linear(z, f"{name}.fc2"))
    return graph.reshape(layers.difference(z, f"{name}.fc3", f"{name}.margin"), -1, count)


class DynamicVitReference(RemovingReference):
    def __init__(self, backbone: Any, rows: Tensor, shares: tuple[float, ...]) -> None:
        super().__init__(backbone, rows)
        self.shares, self.prefix = shares, self.config.prefix_tokens

    def step(self, block: int) -> None:
        import torch

        if (stage := self.config.gate_of.get(block)) is not None:
            score = predict_in_torch(self.backbone, self.rows[:, self.prefix :], stage)
            order = score.argsort(dim=1, descending=True, stable=True)
            count = int((self.tokens - self.prefix) * self.shares[stage])
            kept = self.decide(decision_name(stage), order[:, :count])
            first = torch.arange(self.prefix).repeat(len(kept), 1)
            self.rows = self.keep(self.rows, torch.cat([first, kept + self.prefix], dim=1))
            self.values[margin_name(stage)] = score
        super().step(block)


def predict_in_torch(reference: Any, x: Tensor, stage: int) -> Tensor:
    """Keep logit (channel 0) minus prune logit of every token `[B, M, C]` -> `[B, M]`.

    The published code ranks by the logarithm of the keep probability, which is 0 for several
    confident tokens at once; the difference of the logits orders them the same and has no such
    ties.
    """
    import torch
    from torch.nn.functional import gelu

    name = f"predictors.{stage}"
    z = reference.norm(x, f"{name}.norm", reference.gate_eps)
    z = gelu(reference.exact_linear(z, f"{name}.fc0"))
    local, whole = z.chunk(2, dim=2)
    z = torch.cat([local, whole.mean(dim=1, keepdim=True).expand_as(whole)], dim=2)
    z = gelu(reference.exact_linear(z, f"{name}.fc1"))
    z = gelu(reference.exact_linear(z, f"{name}.fc2"))
    keep, prune = reference.exact_linear(z, f"{name}.fc3").unbind(-1)
    margin: Tensor = keep - prune
    return margin


def predictor_shapes(stage: int, width: int) -> dict[str, Shape]:
    name = f"predictors.{stage}"
    shapes = norm(f"{name}.norm", width) | linear(f"{name}.fc0", width, width)
    shapes |= linear(f"{name}.fc1", width // 2, width)
    shapes |= linear(f"{name}.fc2", width // 4, width // 2)
    return shapes | linear(f"{name}.fc3", 2, width // 4)


class DynamicVit(Method):
    """Its weights have `predictors.{s}.{norm, fc0, fc1, fc2, fc3}` beside the backbone's.

    Args:
        patches: the only number of patches that the published code counts from; any if None.
    """

    title = "DynamicViT"
    modes = (TokenMode.STATIC, TokenMode.DENSE)
    blocks_setting = "prune_blocks"
    settings: ClassVar[type | None] = DynamicVitSettings
    removes = True

    def __init__(self, patches: int | None = None) -> None:
        self.patches = patches

    def matches(self, keys: Collection[str]) -> bool:
        return any(key.startswith("score_predictor.") for key in keys)

    def settings_from_args(self, args: Mapping[str, Any]) -> dict[str, Any] | None:
        return {"base_rate": args["base_rate"]} if "base_rate" in args else None

    def upgrade(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        rate = settings.get("base_rate")
        return {**settings, "base_rate": [rate]} if isinstance(rate, int | float) else settings

    def official_name(self, name: str) -> str:
        found = re.fullmatch(r"predictors\.(\d+)\.(\w+)\.(\w+)", name)
        return f"score_predictor.{found[1]}.{OFFICIAL[found[2]]}.{found[3]}" if found else name

    def infer(self, tensors: Tensors, dims: Any) -> Any:
        return replace(dims, num_gates=tensors.count("score_predictor"))

    def shapes(self, shapes: dict[str, Shape], dims: Any) -> dict[str, Shape]:
        for stage in range(dims.num_gates):
            shapes |= predictor_shapes(stage, dims.embed_dim)
        return shapes

    def dims_from_arch(self, dims: Any, arch: Arch) -> Any:
        rates, blocks = (arch.settings.get(name, ()) for name in ("base_rate", "prune_blocks"))
        return replace(dims, num_gates=len(blocks) or (len(rates) if rates[1:] else STAGES))

    def settle(self, settings: Any, dims: Any) -> Any:
        if settings.prune_blocks:
            return settings
        return replace(settings, prune_blocks=shared_out(dims.depth, STAGES))

    def gates(self, arch: Arch, dims: Any, settings: Any, class_token: bool) -> Gates:
        if len(settings.prune_blocks) != dims.num_gates:
            raise InputError(
                f"prune_blocks has {len(settings.prune_blocks)} values, the checkpoint has "
                f"{dims.num_gates} predictors",
                "give the block, counted from 0, in front of which each stage prunes",
            )
        return super().gates(arch, dims, settings, class_token)

    def misfit(self, config: ModelConfig) -> Misfit | None:
        if not config.gate_blocks or self.patches in (None, config.num_patches):
            return None
        height, width = config.image_size
        return Misfit(
            f"DynamicViT counts from {self.patches} patches, and an image of {height}x{width} has "
            f"{config.num_patches}",
            (14 * config.patch_size,) * 2,
        )

    def check(self, config: ModelConfig) -> None:
        rates, stages = config.settings.base_rate, len(config.settings.prune_blocks)
        check_ratios(rates, "base_rate")
        if len(rates) not in (1, stages):
            raise InputError(
                f"base_rate has {len(rates)} values for {stages} stages",
                f"give the share of all patches that is kept at each, {stages} values, or one "
                "number for its powers",
            )
        if list(rates) != sorted(rates, reverse=True):
            raise InputError(
                f"base_rate {typed(rates)} rises, and no stage keeps more than the one before",
                "give shares of all patches, for example 0.7,0.49,0.343",
            )
        if config.distilled:
            raise InputError("DynamicViT has no distillation token", "give another checkpoint")
        if config.prefix_tokens in self.kept(config):
            raise InputError(
                f"of {config.num_patches} patches, base_rate {typed(rates)} keeps none at stage "
                f"{self.kept(config).index(config.prefix_tokens)}",
                "give larger shares",
            )

    def shares(self, config: ModelConfig) -> tuple[float, ...]:
        """Of all patches, what each stage keeps."""
        # The published code's own float arithmetic: 0.7 ** 3 * 196 is 67.2…, 0.5 ** 2 * 196 is 49.
        rates: tuple[float, ...] = config.settings.base_rate
        if len(rates) == 1:
            rates = tuple(rates[0] ** (gate + 1) for gate in range(config.num_gates))
        return rates[: config.num_gates]

    def kept(self, config: ModelConfig) -> tuple[int, ...]:
        counts = (int(config.num_patches * share) for share in self.shares(config))
        return tuple(config.prefix_tokens + count for count in counts)

    def values(self, config: ModelConfig) -> Values:
        kept = [count - config.prefix_tokens for count in self.kept(config)]
        return ranked_values([config.num_patches, *kept][: len(kept)], kept)

    def decode_selection(
        self, config: ModelConfig, values: Mapping[str, np.ndarray], images: int
    ) -> Selected:
        return decode_survivors(config, values, images, config.num_tokens)

    def graph(self, writer: Any, rows: str) -> GraphTokens:
        return DynamicVitGraph(writer, rows, self.shares(writer.config))

    def reference(self, backbone: Any, x: Tensor) -> ReferenceTokens:
        return DynamicVitReference(backbone, x, self.shares(backbone.config))


class DynamicVitInAdapter(DynamicVit):
    """Of any number of patches, without a class token."""

    settings = DynamicVitInAdapterSettings

    def check(self, config: ModelConfig) -> None:
        super().check(config)
        check_removal(config.settings)
