"""Keys of mmdet checkpoints with a (S)ViT-Adapter: names, shapes, and what they tell.

Canonical names are the official ones without `backbone.`; blocks and gates as in
`svit_deploy.models.layout`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.methods.keys import Dims, Shape, Tensors
from svit_deploy.models.layout import match_tensors, official_name
from svit_deploy.torch_file import some

HEADS = ("neck.", "rpn_head.", "roi_head.")
NORM_STATES = ("weight", "bias", "running_mean", "running_var")
LEVELS = 3
"""Feature maps of the convolutional branch that an injector samples from."""
ANCHORS = 3
BOX_SIDE, MASK_SIDE = 7, 14
"""Bins per side of what RoIAlign cuts out for the box head and the mask head."""


@dataclass(frozen=True)
class AdapterDims(Dims):
    """What the shapes of the weights tell, beside what they tell of a ViT.

    `samples` is deformable heads times points. `fpn_dim` and `fc_dim` are 0, and `num_classes`
    too, without Mask R-CNN's heads.
    """

    conv_dim: int = 0
    samples: int = 0
    deform_dim: int = 0
    ffn_dim: int = 0
    interactions: int = 0
    extra_extractors: int = 0
    fpn_dim: int = 0
    fc_dim: int = 0


def is_detection(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether these are the weights of a (S)ViT-Adapter, with or without heads."""
    return any(key.removeprefix("backbone.") == "level_embed" for key in tensors)


def strip_backbone(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Official keys less `backbone.`, and less the counters that only training needs."""
    return {
        key.removeprefix("backbone."): array
        for key, array in tensors.items()
        if not key.endswith(".num_batches_tracked")
    }


def infer_adapter_dims(tensors: Mapping[str, np.ndarray], *, heads: bool) -> AdapterDims:
    """Reads the sizes off a few tensors; `adapter_to_canonical` checks the rest against them.

    Args:
        tensors: official names, less `backbone.`.
        heads: whether Mask R-CNN's heads must be there.

    Raises:
        InputError: a tensor that tells is missing or has the wrong rank.
    """
    sparse = any(key.startswith("selective_modules.") for key in tensors)
    if not sparse and any(".TransformerEncoderLayer." in key for key in tensors):
        raise InputError(
            "the checkpoint has SViT's blocks but no gates (selective_modules.*)",
            "give a checkpoint from after the gates were trained",
        )
    family = "svit_adapter" if sparse else "vit_adapter"
    if heads and not any(key.startswith(HEADS) for key in tensors):
        raise InputError(
            "the checkpoint holds a backbone alone, without neck, rpn_head and roi_head",
            "use --task backbone, or give the checkpoint of the whole detector",
        )

    asked = Tensors(tensors, family)

    def shape(name: str, rank: int) -> Shape:
        return asked.shape(official_name(name, family), rank)

    width, _, patch_size, _ = shape("patch_embed.proj.weight", 4)
    extractor = "interactions.0.extractor"
    interactions = asked.count("interactions")
    last = re.escape(f"interactions.{interactions - 1}.extra_extractors")
    gates = asked.count("selective_modules")
    return AdapterDims(
        family=family,
        embed_dim=width,
        depth=asked.count("blocks"),
        mlp_dim=shape("blocks.0.mlp.fc1.weight", 2)[0],
        patch_size=patch_size,
        num_patches=shape("pos_embed", 3)[1] - 1,
        num_classes=shape("roi_head.bbox_head.fc_cls.weight", 2)[0] - 1 if heads else 0,
        num_gates=gates,
        gate_dim=shape("gates.0.mlp.fc1.weight", 2)[0] if gates else 0,
        conv_dim=shape("spm.stem.0.weight", 4)[0],
        samples=shape(f"{extractor}.attn.attention_weights.weight", 2)[0],
        deform_dim=shape(f"{extractor}.attn.value_proj.weight", 2)[0],
        ffn_dim=shape(f"{extractor}.ffn.fc1.weight", 2)[0],
        interactions=interactions,
        extra_extractors=asked.count(last),
        fpn_dim=shape("neck.lateral_convs.0.conv.weight", 4)[0] if heads else 0,
        fc_dim=shape("roi_head.bbox_head.shared_fcs.0.weight", 2)[0] if heads else 0,
    )


def adapter_to_canonical(
    tensors: Mapping[str, np.ndarray], dims: AdapterDims
) -> dict[str, np.ndarray]:
    """Renames (not copied) and checks that each tensor is there and fits.

    Without heads in `dims`, those of the checkpoint are left out.

    Raises:
        InputError: keys are missing or unexpected, or shapes or types differ.
    """
    if not dims.fpn_dim:
        tensors = {key: array for key, array in tensors.items() if not key.startswith(HEADS)}
    return match_tensors(tensors, dims, adapter_shapes(dims))


def adapter_to_official(weights: Mapping[str, np.ndarray], family: str) -> dict[str, np.ndarray]:
    """Canonical names to those of an mmdet checkpoint."""
    return {
        name if name.startswith(HEADS) else f"backbone.{official_name(name, family)}": array
        for name, array in weights.items()
    }


def adapter_shapes(dims: AdapterDims) -> dict[str, Shape]:
    """Canonical name to shape, for every tensor of a backbone and its heads, if any."""
    width = dims.embed_dim
    shapes: dict[str, Shape] = {
        "pos_embed": (1, 1 + dims.num_patches, width),
        "level_embed": (LEVELS, width),
    }
    for name, weight in _layers(dims):
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = weight[1:2] if name.endswith(("up", "upsample")) else weight[:1]
    for name, weight in _convolutions(dims):
        shapes[f"{name}.weight"] = weight
    for name, channels in norms_of(dims):
        shapes |= {f"{name}.{state}": (channels,) for state in NORM_STATES}
    for k in range(dims.interactions):
        shapes[f"interactions.{k}.injector.gamma"] = (width,)
    return shapes


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
    for g in range(dims.num_gates):
        yield f"gates.{g}.norm", (width,)
        yield f"gates.{g}.mlp.fc1", (dims.gate_dim, width)
        yield f"gates.{g}.mlp.fc2", (2, dims.gate_dim)
    for i, factor in enumerate((1, 2, 4, 4), 1):
        yield f"spm.fc{i}", (width, factor * dims.conv_dim, 1, 1)
    for k in range(dims.interactions):
        yield from _attention(dims, f"interactions.{k}.injector", LEVELS)
        yield from _extractor(dims, f"interactions.{k}.extractor")
    for e in range(dims.extra_extractors):
        yield from _extractor(dims, f"interactions.{dims.interactions - 1}.extra_extractors.{e}")
    yield "up", (width, width, 2, 2)
    if dims.fpn_dim:
        yield from _heads(dims)


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


def _heads(dims: AdapterDims) -> Iterator[tuple[str, Shape]]:
    """Mask R-CNN's pyramid, proposal head, box head and mask head."""
    width, fc, classes = dims.fpn_dim, dims.fc_dim, dims.num_classes
    for i in range(4):
        yield f"neck.lateral_convs.{i}.conv", (width, dims.embed_dim, 1, 1)
        yield f"neck.fpn_convs.{i}.conv", (width, width, 3, 3)
        yield f"roi_head.mask_head.convs.{i}.conv", (width, width, 3, 3)
    yield "rpn_head.rpn_conv", (width, width, 3, 3)
    yield "rpn_head.rpn_cls", (ANCHORS, width, 1, 1)
    yield "rpn_head.rpn_reg", (4 * ANCHORS, width, 1, 1)
    yield "roi_head.bbox_head.shared_fcs.0", (fc, width * BOX_SIDE**2)
    yield "roi_head.bbox_head.shared_fcs.1", (fc, fc)
    yield "roi_head.bbox_head.fc_cls", (classes + 1, fc)
    yield "roi_head.bbox_head.fc_reg", (4 * classes, fc)
    yield "roi_head.mask_head.upsample", (width, width, 2, 2)
    yield "roi_head.mask_head.conv_logits", (classes, width, 1, 1)


def refuse_classification(tensors: Mapping[str, np.ndarray], task: str) -> None:
    """Raises InputError for weights that are no (S)ViT-Adapter's."""
    if not is_detection(tensors):
        raise InputError(
            f"--task {task} needs a ViT-Adapter, and the checkpoint's {len(tensors)} keys begin "
            f"with {some(tensors)}",
            "leave --task out for a classification model",
        )
