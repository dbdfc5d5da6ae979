"""SViT: gates that prune tokens of one block at a time, by content, and may take them back.

Liu et al., "Revisiting Token Pruning for Object Detection and Instance Segmentation", WACV 2024;
the numbers are those of uzh-rpg/svit @ d2472c13.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from svit_deploy.config import TokenMode
from svit_deploy.errors import InputError
from svit_deploy.export.names import decision_name, margin_name
from svit_deploy.methods.keys import Dims, Shape, Tensors, linear, norm
from svit_deploy.methods.method import Gates, Method

if TYPE_CHECKING:
    from torch import Tensor

    from svit_deploy.models.presets import Arch
    from svit_deploy.models.reference import Reference, Steps

BLOCK_NAMES = {
    "attn.qkv.weight": "self_attn.in_proj_weight",
    "attn.qkv.bias": "self_attn.in_proj_bias",
    "attn.proj.weight": "self_attn.out_proj.weight",
    "attn.proj.bias": "self_attn.out_proj.bias",
    "mlp.fc1.weight": "linear1.weight",
    "mlp.fc1.bias": "linear1.bias",
    "mlp.fc2.weight": "linear2.weight",
    "mlp.fc2.bias": "linear2.bias",
}


class Svit(Method):
    """Its weights have `gates.{g}.{norm, mlp.fc1, mlp.fc2}` beside DeiT's."""

    name, title = "svit", "SViT"
    modes = (TokenMode.DYNAMIC, TokenMode.BUDGET, TokenMode.MASKED, TokenMode.DENSE)
    # Blocks and gates keep PyTorch's default, where DeiT sets its own everywhere.
    eps = (1e-5, 1e-5, 1e-6)
    rule = "keep iff margin > threshold, margin = keep logit - prune logit, a tie is pruned"
    trained_gates = True

    def matches(self, keys: Collection[str]) -> bool:
        gates = any(key.startswith("selective_modules.") for key in keys)
        if not gates and any(".TransformerEncoderLayer." in key for key in keys):
            raise InputError(
                "the checkpoint has SViT's blocks but no gates (selective_modules.*)",
                "give a checkpoint from after the gates were trained",
            )
        return gates

    def official_name(self, name: str) -> str:
        parts = name.split(".", 2)
        if parts[0] == "blocks":
            leaf = BLOCK_NAMES.get(parts[2], parts[2])
            return f"blocks.{parts[1]}.TransformerEncoderLayer.{leaf}"
        return re.sub(r"^gates\.", "selective_modules.", name)

    def infer(self, tensors: Tensors) -> Dims:
        gate_dim = tensors.shape("selective_modules.0.mlp.fc1.weight", 2)[0]
        count = tensors.count("selective_modules")
        return replace(super().infer(tensors), num_gates=count, gate_dim=gate_dim)

    def shapes(self, dims: Dims) -> dict[str, Shape]:
        shapes = super().shapes(dims)
        for gate in range(dims.num_gates):
            shapes |= linear(f"gates.{gate}.mlp.fc1", dims.gate_dim, dims.embed_dim)
            shapes |= linear(f"gates.{gate}.mlp.fc2", 2, dims.gate_dim)
            shapes |= norm(f"gates.{gate}.norm", dims.embed_dim)
        return shapes

    def sketch(self, arch: Arch) -> Dims:
        dims = super().sketch(arch)
        gates = len(arch.gate_blocks) or dims.depth
        return replace(dims, num_gates=gates, gate_dim=dims.embed_dim // 4)

    def gates(self, arch: Arch, dims: Dims, settings: Any) -> Gates:
        """In front of the last blocks, and only the last one may prune the class token."""
        count, notes = dims.num_gates, []
        blocks = arch.gate_blocks or tuple(range(dims.depth - count, dims.depth))
        class_token = arch.gate_class_token or tuple(g == count - 1 for g in range(count))
        if not arch.gate_blocks:
            notes.append(f"assumed gates in front of the last {count} blocks")
        if not arch.gate_class_token:
            notes.append("assumed that only the last gate may prune the class token")
        return Gates(blocks, class_token, tuple(notes))

    def forward(self, reference: Reference, images: Tensor) -> Steps:
        """All tokens are computed, pruned keys are masked, pruned rows keep their value."""
        import torch

        from svit_deploy.models.reference import Passed

        config = reference.config
        gate_of = config.gate_of
        x = reference.embed(images)
        maps = [x]
        values: dict[str, Tensor] = {}
        for block in range(config.depth):
            if block not in gate_of:
                x = reference.block(x, block)
            else:
                gate = gate_of[block]
                margin = margin_of(reference, x, gate)
                keep = yield gate, margin
                x = torch.where(keep[..., None], reference.block(x, block, keep), x)
                values |= {margin_name(gate): margin, decision_name(gate): keep}
            maps.append(x)
        return Passed(reference.classify(x), maps, values)


def margin_of(reference: Reference, x: Tensor, gate: int) -> Tensor:
    """Keep logit (channel 0) minus prune logit (channel 1) of every token `[B, S]`."""
    import torch
    from torch.nn.functional import gelu

    config, name = reference.config, f"gates.{gate}"
    normed = reference.norm(x, f"{name}.norm", reference.gate_eps)
    hidden = reference.linear(normed, f"{name}.mlp.fc1")
    keep, prune = reference.linear(gelu(hidden), f"{name}.mlp.fc2").unbind(-1)
    margin = keep - prune
    if not config.gate_class_token[gate]:
        margin[:, : config.prefix_tokens] = torch.inf
    return margin
