"""Random weights of a detector, of sizes that a preset names."""

from __future__ import annotations

import numpy as np

from svit_deploy.detection.config import AdapterSettings
from svit_deploy.detection.layout import AdapterDims, adapter_shapes
from svit_deploy.errors import UsageError
from svit_deploy.methods import METHODS
from svit_deploy.models.presets import Arch

NATIVE_PATCHES = 14 * 14
INTERACTIONS = 4


def adapter_dims(arch: Arch) -> AdapterDims:
    """The sizes of the official (S)ViT-Adapters with Mask R-CNN, at the preset's width.

    Raises:
        UsageError: an architecture file without the width or the depth.
    """
    if not arch.embed_dim or not arch.depth:
        raise UsageError(
            "the architecture does not say embed_dim and depth", "add these fields to the file"
        )
    method = METHODS[arch.family]
    settings: AdapterSettings = method.choose(arch.settings)
    gates = (len(arch.gate_blocks) or arch.depth) if method.trained_gates else 0
    return AdapterDims(
        family=arch.family,
        embed_dim=arch.embed_dim,
        depth=arch.depth,
        mlp_dim=4 * arch.embed_dim,
        patch_size=16,
        num_patches=NATIVE_PATCHES,
        num_classes=arch.num_classes or 80,
        num_gates=gates,
        gate_dim=arch.embed_dim // 4 if gates else 0,
        conv_dim=64,
        samples=4 * settings.deform_heads,
        deform_dim=arch.embed_dim,
        ffn_dim=arch.embed_dim // 4,
        interactions=len(settings.interaction_blocks) or INTERACTIONS,
        extra_extractors=2,
        fpn_dim=256,
        fc_dim=1024,
    )


def random_adapter_weights(dims: AdapterDims, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Canonical weights of about unit gain, see `models.random.random_weights`.

    Deformable attention samples a few pixels around each query, as trained ones do.
    """
    weights = {}
    for name, shape in adapter_shapes(dims).items():
        fan_in = int(np.prod(shape[1:]))
        if name.endswith("running_mean"):
            array = np.zeros(shape)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            array = np.ones(shape)
        elif name.endswith("sampling_offsets.bias"):
            array = 2 * rng.standard_normal(shape)
        elif name.endswith("bias"):
            array = 0.02 * rng.standard_normal(shape)
        elif name in ("pos_embed", "level_embed") or name.endswith("gamma"):
            array = 0.2 * rng.standard_normal(shape)
        else:
            array = rng.standard_normal(shape) / np.sqrt(fan_in)
        if name.startswith("blocks.") and name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            array /= np.sqrt(2 * dims.depth)
        if name == "patch_embed.proj.weight":  # blind to brightness, as most trained filters are
            array = 3 * (array - array.mean(axis=(2, 3), keepdims=True))
        weights[name] = array.astype(np.float32)
    return weights
