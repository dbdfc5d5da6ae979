"""DynamicViT: small predictors rank the tokens, and a fixed share of them goes on.

Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification",
NeurIPS 2021; the numbers are those of raoyongming/DynamicViT @ 1322e626, its DeiT family.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.config import ModelConfig, TokenMode, check_ratios
from svit_deploy.errors import InputError
from svit_deploy.export.names import INPUT, block_name, decision_name, margin_name
from svit_deploy.export.rows import flat_rows, gather_rows, with_prefix
from svit_deploy.export.survivors import Survivors
from svit_deploy.export.tokens import Decided, attend_to_all, top_tokens
from svit_deploy.export.vit import VitGraph
from svit_deploy.methods.keys import Dims, Shape, Tensors, linear, norm
from svit_deploy.methods.method import Gates, Method, Selected, Values
from svit_deploy.methods.trace import ranked_values, trace_survivors

if TYPE_CHECKING:
    from torch import Tensor

    from svit_deploy.models.presets import Arch
    from svit_deploy.models.reference import Passed, Reference

NATIVE_PATCHES = 14 * 14
"""The published code counts from this number, whatever the image size."""
OFFICIAL = {"norm": "in_conv.0", "fc0": "in_conv.1", "fc1": "out_conv.0", "fc2": "out_conv.2"}
OFFICIAL["fc3"] = "out_conv.4"


@dataclass(frozen=True)
class DynamicVitSettings:
    """What a training chooses.

    Attributes:
        base_rate: the share of tokens kept at the first stage; at stage s its power s + 1.
        prune_blocks: the block in front of which each stage prunes.
    """

    base_rate: float
    prune_blocks: tuple[int, ...] = (3, 6, 9)


class DynamicVitGraph(VitGraph):
    def run(self, x: str) -> tuple[str, Sequence[Decided]]:
        config, graph, tokens = self.config, self.graph, self.config.num_tokens
        stage_of = config.gate_of
        counts = self.method.kept(config)
        decided: list[Decided] = []
        survivors = Survivors(graph, INPUT, tokens, tokens, 1)
        for block in range(config.depth):
            with graph.scope(f"block_{block}"):
                if (stage := stage_of.get(block)) is not None:
                    with graph.scope("gate"):
                        score = graph.rename(self.score(x, tokens, stage), margin_name(stage))
                        kept = top_tokens(graph, score, counts[stage] - 1)
                        kept = graph.rename(kept, decision_name(stage))
                    with graph.scope("select"):
                        places = with_prefix(graph, kept, 1)
                        margin = survivors.spread(score)
                        decided.append(Decided(survivors.keep(places), margin))
                        x = gather_rows(graph, x, flat_rows(graph, places, tokens))
                        tokens = counts[stage]
                x = self.block(x, block, attend_to_all(graph, self.grid_of(tokens)))
            x = graph.rename(x, block_name(block))
        return self.classify(x, tokens), decided

    def score(self, x: str, tokens: int, stage: int) -> str:
        """Keep logit minus prune logit `[B, M]` of rows `[B * tokens, C]`, all in float32.

        What all tokens share, the mean of half the channels, is multiplied once for each image.
        """
        config, graph, layers = self.config, self.graph, self.layers
        name, width = f"predictors.{stage}", config.embed_dim
        half = width // 2
        split = graph.reshape(graph.widen(x), -1, tokens, width)
        patches = graph.slice(split, 1, tokens)
        rows = graph.reshape(patches, -1, width)
        z = layers.layer_norm(rows, f"{name}.norm", config.gate_eps)
        z = layers.exact_linear(z, f"{name}.fc0")
        local, whole = graph.ops("Split", graph.op("Gelu", z), outputs=2, axis=1, num_outputs=2)
        whole = graph.reshape(whole, -1, tokens - 1, half)
        whole = graph.op("ReduceMean", whole, graph.constant([1]), keepdims=0)  # [B, C / 2]
        weight = layers.weights[f"{name}.fc1.weight"]
        local_weight = graph.weight(f"{name}.fc1.local.weight", weight[:, :half])
        whole_weight = graph.weight(f"{name}.fc1.whole.weight", weight[:, half:])
        shared = graph.op("Gemm", whole, whole_weight, layers.weight(f"{name}.fc1.bias"), transB=1)
        own = graph.reshape(graph.op("Gemm", local, local_weight, transB=1), -1, tokens - 1, half)
        z = graph.op("Add", own, graph.op("Unsqueeze", shared, graph.constant([1])))
        z = graph.op("Gelu", graph.reshape(z, -1, half))
        z = graph.op("Gelu", layers.exact_linear(z, f"{name}.fc2"))
        return graph.reshape(layers.difference(z, f"{name}.fc3", f"{name}.margin"), -1, tokens - 1)


class DynamicVit(Method):
    """Its weights have `predictors.{s}.{norm, fc0, fc1, fc2, fc3}` beside DeiT's."""

    name, title = "dynamicvit", "DynamicViT"
    modes = (TokenMode.STATIC, TokenMode.DENSE)
    eps = (1e-6, 1e-5, 1e-6)  # the predictors keep PyTorch's default
    settings = DynamicVitSettings
    graph = DynamicVitGraph
    removes = True

    def matches(self, keys: Collection[str]) -> bool:
        return any(key.startswith("score_predictor.") for key in keys)

    def told(self, args: Mapping[str, Any]) -> dict[str, Any] | None:
        return {"base_rate": float(args["base_rate"])} if "base_rate" in args else None

    def official_name(self, name: str) -> str:
        found = re.fullmatch(r"predictors\.(\d+)\.(\w+)\.(\w+)", name)
        return f"score_predictor.{found[1]}.{OFFICIAL[found[2]]}.{found[3]}" if found else name

    def infer(self, tensors: Tensors) -> Dims:
        return replace(super().infer(tensors), num_gates=tensors.count("score_predictor"))

    def shapes(self, dims: Dims) -> dict[str, Shape]:
        shapes, width = super().shapes(dims), dims.embed_dim
        for stage in range(dims.num_gates):
            name = f"predictors.{stage}"
            shapes |= norm(f"{name}.norm", width) | linear(f"{name}.fc0", width, width)
            shapes |= linear(f"{name}.fc1", width // 2, width)
            shapes |= linear(f"{name}.fc2", width // 4, width // 2)
            shapes |= linear(f"{name}.fc3", 2, width // 4)
        return shapes

    def sketch(self, arch: Arch) -> Dims:
        return replace(super().sketch(arch), num_gates=3)

    def gates(self, arch: Arch, dims: Dims, settings: DynamicVitSettings) -> Gates:
        if len(settings.prune_blocks) != dims.num_gates:
            raise InputError(
                f"prune_blocks has {len(settings.prune_blocks)} values, the checkpoint has "
                f"{dims.num_gates} predictors",
                "give the block, counted from 0, in front of which each stage prunes",
            )
        return super().gates(arch, dims, settings)

    def check(self, config: ModelConfig) -> None:
        check_ratios((config.settings.base_rate,), "base_rate")
        if config.gate_blocks and config.num_patches != NATIVE_PATCHES:
            height, width = (14 * config.patch_size,) * 2
            raise InputError(
                f"DynamicViT counts from {NATIVE_PATCHES} patches, and an image of "
                f"{config.image_size[0]}x{config.image_size[1]} has {config.num_patches}",
                f"use --image-size {height}x{width}",
            )
        if config.distilled:
            raise InputError("DynamicViT has no distillation token", "give another checkpoint")

    def kept(self, config: ModelConfig) -> tuple[int, ...]:
        # The published code's own float arithmetic: 0.7 ** 3 * 196 is 67.2…, 0.5 ** 2 * 196 is 49.
        rate, stages = config.settings.base_rate, range(1, config.num_gates + 1)
        return tuple(1 + int(NATIVE_PATCHES * rate**stage) for stage in stages)

    def values(self, config: ModelConfig) -> Values:
        kept = [count - 1 for count in self.kept(config)]
        return ranked_values([config.num_patches, *kept][: len(kept)], kept)

    def trace(self, config: ModelConfig, values: Mapping[str, np.ndarray], batch: int) -> Selected:
        return trace_survivors(config, values, batch, config.num_tokens)

    def forward(self, reference: Reference, images: Tensor) -> Passed:
        import torch

        from svit_deploy.models.reference import Passed

        config = reference.config
        stage_of = config.gate_of
        x = reference.embed(images)
        maps = [x]
        values: dict[str, Tensor] = {}
        for block in range(config.depth):
            if (stage := stage_of.get(block)) is not None:
                score = predict(reference, x[:, 1:], stage)
                order = score.argsort(dim=1, descending=True, stable=True)
                kept = order[:, : self.kept(config)[stage] - 1]
                chosen = torch.take_along_dim(x[:, 1:], kept[..., None], dim=1)
                x = torch.cat([x[:, :1], chosen], dim=1)
                values |= {margin_name(stage): score, decision_name(stage): kept}
            x = reference.block(x, block)
            maps.append(x)
        return Passed(reference.classify(x), maps, values)


def predict(reference: Reference, x: Tensor, stage: int) -> Tensor:
    """Keep logit (channel 0) minus prune logit of every token `[B, M, C]` -> `[B, M]`.

    The published code ranks by the logarithm of the keep probability, which is 0 for several
    confident tokens at once; the difference of the logits orders them the same and has no such
    ties.
    """
    import torch
    from torch.nn.functional import gelu

    name = f"predictors.{stage}"
    z = reference.norm(x, f"{name}.norm", reference.gate_eps)
    z = gelu(reference.linear(z, f"{name}.fc0"))
    local, whole = z.chunk(2, dim=2)
    z = torch.cat([local, whole.mean(dim=1, keepdim=True).expand_as(whole)], dim=2)
    z = gelu(reference.linear(z, f"{name}.fc1"))
    z = gelu(reference.linear(z, f"{name}.fc2"))
    keep, prune = reference.linear(z, f"{name}.fc3").unbind(-1)
    return keep - prune
