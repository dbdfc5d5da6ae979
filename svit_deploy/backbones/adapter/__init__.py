"""ViT-Adapter: a ViT and a convolutional branch that look at each other, for dense predictions.

Chen et al., "Vision Transformer Adapter for Dense Predictions", ICLR 2023. Keys are those of mmdet
checkpoints without `backbone.`; blocks and gates as in `model.keys`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.backbones.adapter.graph import AdapterGraph
from svit_deploy.backbones.adapter.sizes import (
    PYRAMID,
    STEP,
    AdapterSettings,
    AdapterSizes,
    extractor_name,
    injector_name,
)
from svit_deploy.backbones.backbone import Backbone, Named
from svit_deploy.errors import InputError, UsageError
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.keys import Dims, Shape, Tensors
from svit_deploy.names import EMBEDDING, block_name

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference

NORM_STATES = ("weight", "bias", "running_mean", "running_var")
LEVELS = 3
"""Feature maps of the convolutional branch that an injector samples from."""
NATIVE_PATCHES = 14 * 14
INTERACTIONS = 4


@dataclass(frozen=True)
class AdapterDims(Dims):
    """What the shapes of the weights tell, beside what they tell of a ViT.

    `samples` is deformable heads times points.
    """

    conv_dim: int = 0
    samples: int = 0
    deform_dim: int = 0
    ffn_dim: int = 0
    interactions: int = 0
    extra_extractors: int = 0


class Adapter(Backbone):
    title = "ViT-Adapter"
    tasks = ("backbone", "detect")
    graph = AdapterGraph
    head = None
    class_token = False
    folds_norms = True
    settings = AdapterSettings
    sizes = AdapterSizes
    step = STEP

    def reference(self) -> type[BackboneReference]:
        from svit_deploy.backbones.adapter.reference import AdapterReference

        return AdapterReference

    def matches(self, keys: Collection[str]) -> bool:
        return "level_embed" in keys

    def is_unused(self, key: str) -> bool:
        return key.endswith(".num_batches_tracked")

    def infer(self, family: str, tensors: Tensors, named: Named) -> AdapterDims:
        def shape(name: str, rank: int) -> Shape:
            return tensors.shape(named(name), rank)

        width, _, patch_size, _ = shape("patch_embed.proj.weight", 4)
        extractor = "interactions.0.extractor"
        interactions = tensors.count("interactions")
        last = re.escape(f"interactions.{interactions - 1}.extra_extractors")
        return AdapterDims(
            family=family,
            embed_dim=width,
            depth=tensors.count("blocks"),
            mlp_dim=shape("blocks.0.mlp.fc1.weight", 2)[0],
            patch_size=patch_size,
            num_patches=shape("pos_embed", 3)[1] - 1,
            num_classes=0,
            conv_dim=shape("spm.stem.0.weight", 4)[0],
            samples=shape(f"{extractor}.attn.attention_weights.weight", 2)[0],
            deform_dim=shape(f"{extractor}.attn.value_proj.weight", 2)[0],
            ffn_dim=shape(f"{extractor}.ffn.fc1.weight", 2)[0],
            interactions=interactions,
            extra_extractors=tensors.count(last),
        )

    def dims_from_arch(self, family: str, arch: Arch) -> AdapterDims:
        """The sizes of the official ViT-Adapters, at the architecture's width."""
        if not arch.embed_dim or not arch.depth:
            raise UsageError(
                "the architecture does not say embed_dim and depth", "add these fields to the file"
            )
        heads = arch.settings.get("deform_heads", AdapterSettings.deform_heads)
        return AdapterDims(
            family=family,
            embed_dim=arch.embed_dim,
            depth=arch.depth,
            mlp_dim=4 * arch.embed_dim,
            patch_size=16,
            num_patches=NATIVE_PATCHES,
            num_classes=0,
            conv_dim=64,
            samples=4 * heads,
            deform_dim=arch.embed_dim,
            ffn_dim=arch.embed_dim // 4,
            interactions=len(arch.settings.get("interaction_blocks", ())) or INTERACTIONS,
            extra_extractors=2,
        )

    def shapes(self, dims: AdapterDims) -> dict[str, Shape]:
        width = dims.embed_dim
        shapes: dict[str, Shape] = {
            "pos_embed": (1, 1 + dims.num_patches, width),
            "level_embed": (LEVELS, width),
        }
        for name, weight in _layers(dims):
            shapes[f"{name}.weight"] = weight
            shapes[f"{name}.bias"] = weight[1:2] if name == "up" else weight[:1]
        for name, weight in _convolutions(dims):
            shapes[f"{name}.weight"] = weight
        for name, channels in norms_of(dims):
            shapes |= {f"{name}.{state}": (channels,) for state in NORM_STATES}
        for k in range(dims.interactions):
            shapes[f"interactions.{k}.injector.gamma"] = (width,)
        return shapes

    def random(self, name: str, shape: Shape, rng: np.random.Generator) -> np.ndarray | None:
        """Deformable attention samples a few pixels around each query, as trained ones do."""
        if name.endswith("running_mean"):
            return np.zeros(shape)
        if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            return np.ones(shape)
        if name.endswith("sampling_offsets.bias"):
            return 2 * rng.standard_normal(shape)
        if name.endswith("bias"):
            return 0.02 * rng.standard_normal(shape)
        if name == "level_embed" or name.endswith("gamma"):
            return 0.2 * rng.standard_normal(shape)
        return None

    def settle(self, settings: Any, dims: AdapterDims) -> Any:
        if settings.deform_heads < 1 or dims.samples % settings.deform_heads:
            raise InputError(
                f"{dims.samples} samples per query are no multiple of {settings.deform_heads} "
                "heads",
                "give the number that the model was trained with: --set deform_heads=NUMBER",
            )
        shares, rest = divmod(dims.depth, max(dims.interactions, 1))
        if rest and not settings.interaction_blocks:
            raise InputError(
                f"{dims.depth} blocks have no equal shares for {dims.interactions} interactions",
                "give the blocks of each interaction: --set interaction_blocks=3,3,3,3",
            )
        blocks = settings.interaction_blocks or (shares,) * dims.interactions
        if len(blocks) != dims.interactions:
            raise InputError(
                f"interaction_blocks has {len(blocks)} values, the checkpoint has "
                f"{dims.interactions} interactions",
                "give the number of blocks in each",
            )
        return replace(settings, interaction_blocks=blocks)

    def config_sizes(self, dims: AdapterDims, settings: Any) -> AdapterSizes:
        return AdapterSizes(
            conv_dim=dims.conv_dim,
            deform_points=dims.samples // settings.deform_heads,
            deform_dim=dims.deform_dim,
            ffn_dim=dims.ffn_dim,
            extra_extractors=dims.extra_extractors,
        )

    def check(self, config: ModelConfig) -> None:
        sizes, heads = config.backbone, config.settings.deform_heads
        counts = {name: getattr(sizes, name) for name in ("conv_dim", "deform_points")}
        counts |= {"deform_heads": heads, "deform_dim": sizes.deform_dim, "ffn_dim": sizes.ffn_dim}
        for name, count in counts.items():
            if count < 1:
                raise InputError(f"{name} is {count}", "give a complete checkpoint")
        if sizes.deform_dim % heads:
            raise InputError(
                f"deform_dim {sizes.deform_dim} is not divisible by deform_heads {heads}",
                "give the number that the model was trained with: --set deform_heads=NUMBER",
            )
        blocks = config.settings.interaction_blocks
        if not blocks or min(blocks) < 1 or sum(blocks) != config.depth:
            raise InputError(
                f"interaction_blocks {list(blocks)} do not share out {config.depth} blocks",
                "give the blocks of each interaction: --set interaction_blocks=3,3,3,3",
            )
        if config.patch_size != 16:  # the map beside the convolutions' second one, of stride 16
            raise InputError(
                f"patch_size is {config.patch_size}", "give a ViT-Adapter of patch size 16"
            )

    def stages(self, config: ModelConfig) -> list[str]:
        order, block, extractors = [PYRAMID, EMBEDDING], 0, 0
        for k, count in enumerate(config.settings.interaction_blocks):
            order.append(injector_name(k))
            order += [block_name(b) for b in range(block, block + count)]
            block += count
            extra = config.backbone.extra_extractors if block == config.depth else 0
            order += [extractor_name(extractors + i) for i in range(1 + extra)]
            extractors += 1 + extra
        return order


class ClassTokenAdapter(Adapter):
    """One whose ViT has a class token, which injectors and extractors leave alone."""

    class_token = True

    def matches(self, keys: Collection[str]) -> bool:
        return super().matches(keys) and "cls_token" in keys

    def shapes(self, dims: AdapterDims) -> dict[str, Shape]:
        return super().shapes(dims) | {"cls_token": (1, 1, dims.embed_dim)}


def norms_of(dims: AdapterDims) -> Iterator[tuple[str, int]]:
    """The batch norms and their channels."""
    conv = dims.conv_dim
    yield from ((f"spm.stem.{i}", conv) for i in (1, 4, 7))
    yield from (("spm.conv2.1", 2 * conv), ("spm.conv3.1", 4 * conv), ("spm.conv4.1", 4 * conv))
    yield from ((f"norm{i}", dims.embed_dim) for i in (1, 2, 3, 4))


def _convolutions(dims: AdapterDims) -> Iterator[tuple[str, Shape]]:
    """Convolutions without bias: each has a batch norm behind it."""
    conv = dims.conv_dim
    yield "spm.stem.0", (conv, 3, 3, 3)
    yield from ((f"spm.stem.{i}", (conv, conv, 3, 3)) for i in (3, 6))
    for i, (into, out) in enumerate(((1, 2), (2, 4), (4, 4)), 2):
        yield f"spm.conv{i}.0", (out * conv, into * conv, 3, 3)


def _layers(dims: AdapterDims) -> Iterator[tuple[str, Shape]]:
    """All that has a weight and a bias: layer norms, linear layers, other convolutions."""
    width, hidden = dims.embed_dim, dims.mlp_dim
    yield "patch_embed.proj", (width, 3, dims.patch_size, dims.patch_size)
    for i in range(dims.depth):
        block = f"blocks.{i}"
        yield from ((f"{block}.norm1", (width,)), (f"{block}.norm2", (width,)))
        yield from ((f"{block}.attn.qkv", (3 * width, width)),)
        yield from ((f"{block}.attn.proj", (width, width)),)
        yield from ((f"{block}.mlp.fc1", (hidden, width)), (f"{block}.mlp.fc2", (width, hidden)))
    for i, factor in enumerate((1, 2, 4, 4), 1):
        yield f"spm.fc{i}", (width, factor * dims.conv_dim, 1, 1)
    for k in range(dims.interactions):
        yield from _attention(dims, f"interactions.{k}.injector", LEVELS)
        yield from _extractor(dims, f"interactions.{k}.extractor")
    for e in range(dims.extra_extractors):
        yield from _extractor(dims, f"interactions.{dims.interactions - 1}.extra_extractors.{e}")
    yield "up", (width, width, 2, 2)


def _attention(dims: AdapterDims, name: str, levels: int) -> Iterator[tuple[str, Shape]]:
    width = dims.embed_dim
    yield from ((f"{name}.query_norm", (width,)), (f"{name}.feat_norm", (width,)))
    yield f"{name}.attn.sampling_offsets", (2 * levels * dims.samples, width)
    yield f"{name}.attn.attention_weights", (levels * dims.samples, width)
    yield f"{name}.attn.value_proj", (dims.deform_dim, width)
    yield f"{name}.attn.output_proj", (width, dims.deform_dim)


def _extractor(dims: AdapterDims, name: str) -> Iterator[tuple[str, Shape]]:
    width, hidden = dims.embed_dim, dims.ffn_dim
    yield from _attention(dims, name, 1)
    yield f"{name}.ffn_norm", (width,)
    yield f"{name}.ffn.fc1", (hidden, width)
    yield f"{name}.ffn.dwconv.dwconv", (hidden, 1, 3, 3)
    yield f"{name}.ffn.fc2", (width, hidden)
