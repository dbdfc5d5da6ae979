"""ViT-Adapters, the backbones of detectors (`svit_deploy.detection`): dense, and with SViT's gates.

Chen et al., "Vision Transformer Adapter for Dense Predictions", ICLR 2023. They recognise their
own checkpoints and have graphs and forward passes of their own, for images of many sizes.
"""

from __future__ import annotations

from svit_deploy.config import ModelConfig
from svit_deploy.detection.config import AdapterConfig, AdapterSettings
from svit_deploy.errors import InputError
from svit_deploy.methods.method import Method
from svit_deploy.methods.svit import Svit


class VitAdapter(Method):
    """Dense; its gates' epsilon is never used."""

    name, title = "vit_adapter", "ViT-Adapter"
    config, settings = AdapterConfig, AdapterSettings
    class_token = classifies = False

    def check(self, config: ModelConfig) -> None:
        check_adapter(config)


class SvitAdapter(Svit):
    """Its blocks and gates are SViT's, but every gate may prune every token."""

    name, title = "svit_adapter", "SViT-Adapter"
    config, settings = AdapterConfig, AdapterSettings
    class_token = classifies = False

    def check(self, config: ModelConfig) -> None:
        check_adapter(config)


def check_adapter(config: ModelConfig) -> None:
    """Raises InputError for what no ViT-Adapter can have."""
    assert isinstance(config, AdapterConfig)
    counts = ["conv_dim", "deform_heads", "deform_points", "deform_dim", "ffn_dim"]
    if config.has_heads:
        counts.append("num_classes")
    for name in counts:
        if getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}", "give a complete checkpoint")
    if config.deform_dim % config.deform_heads:
        raise InputError(
            f"deform_dim {config.deform_dim} is not divisible by deform_heads "
            f"{config.deform_heads}",
            "give the number that the model was trained with: --set deform_heads=NUMBER",
        )
    blocks = config.interaction_blocks
    if not blocks or min(blocks) < 1 or sum(blocks) != config.depth:
        raise InputError(
            f"interaction_blocks {list(blocks)} do not share out {config.depth} blocks",
            "give the blocks of each interaction: --set interaction_blocks=3,3,3,3",
        )
    if config.patch_size != 16:  # the map beside the convolutions' second one, of stride 16
        raise InputError(
            f"patch_size is {config.patch_size}", "give a ViT-Adapter of patch size 16"
        )
