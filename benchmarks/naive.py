"""The exports that a user gets by tracing the paper's forward pass, written literally.

Boolean indexing, a scatter with an expanded index, SDPA with a boolean mask padded to all tokens:
correct, and no faster than the dense model. It is the benchmark's point of departure.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from svit_deploy.model.model import Model
from svit_deploy.model.positions import interpolate_positions


class NaiveSvit(nn.Module):
    """An SViT as one would write it first, one image after another in a padded batch."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.config = config = model.config
        weights = {name: torch.from_numpy(np.array(a)) for name, a in model.weights.items()}
        positions = interpolate_positions(
            model.weights["pos_embed"], config.prefix_tokens, config.native_grid, config.grid
        )
        weights["pos_embed"] = torch.from_numpy(np.array(positions))
        for name, tensor in weights.items():
            self.register_buffer(name.replace(".", "_"), tensor)

    def weight(self, name: str) -> Tensor:
        return self.get_buffer(name.replace(".", "_"))

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"))

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def forward(self, images: Tensor) -> Tensor:
        config, batch = self.config, images.shape[0]
        patches = F.conv2d(
            images,
            self.weight("patch_embed.proj.weight"),
            self.weight("patch_embed.proj.bias"),
            stride=config.patch_size,
        )
        tokens = self.weight("cls_token").expand(batch, -1, -1)
        x = torch.cat([tokens, patches.flatten(2).transpose(1, 2)], 1) + self.weight("pos_embed")
        gate_of = {block: gate for gate, block in enumerate(config.gate_blocks)}
        for block in range(config.depth):
            gate = gate_of.get(block)
            x = self.block(x, block, None if gate is None else self.keep(x, gate))
        return self.linear(self.norm(x, "norm", config.norm_eps)[:, 0], "head")

    def keep(self, x: Tensor, gate: int) -> Tensor:
        name = f"gates.{gate}"
        hidden = F.gelu(self.linear(self.norm(x, f"{name}.norm", 1e-5), f"{name}.mlp.fc1"))
        logits = F.log_softmax(self.linear(hidden, f"{name}.mlp.fc2"), dim=-1)
        keep = logits.argmin(-1) == 1
        if not self.config.gate_class_token[gate]:
            keep = torch.cat([torch.ones_like(keep[:, :1]), keep[:, 1:]], 1)
        return keep

    def block(self, x: Tensor, block: int, keep: Tensor | None) -> Tensor:
        config, name = self.config, f"blocks.{block}"
        batch, tokens, width = x.shape
        rows = x.reshape(-1, width) if keep is None else x[keep]
        qkv = self.linear(self.norm(rows, f"{name}.norm1", 1e-5), f"{name}.attn.qkv")
        if keep is None:
            padded, mask = qkv.reshape(batch, tokens, 3 * width), None
        else:
            index = keep.reshape(-1).nonzero().expand(-1, 3 * width)
            padded = torch.zeros(batch * tokens, 3 * width).scatter(0, index, qkv)
            padded, mask = padded.reshape(batch, tokens, 3 * width), keep[:, None, None, :]
        query, key, value = padded.unflatten(2, (3, config.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = mixed.transpose(1, 2).flatten(2)
        mixed = mixed.reshape(-1, width) if keep is None else mixed[keep]
        rows = rows + self.linear(mixed, f"{name}.attn.proj")
        hidden = self.linear(self.norm(rows, f"{name}.norm2", 1e-5), f"{name}.mlp.fc1")
        rows = rows + self.linear(F.gelu(hidden), f"{name}.mlp.fc2")
        if keep is None:
            return rows.reshape(x.shape)
        index = keep.reshape(-1).nonzero().expand(-1, width)
        return x.reshape(-1, width).scatter(0, index, rows).reshape(x.shape)


def trace(model: Model, path: Path, opset: int) -> None:
    """Traces the naive module with torch.onnx.export, any batch size."""
    images = torch.zeros(2, 3, *model.config.image_size)
    with torch.no_grad():
        program = torch.onnx.export(
            NaiveSvit(model).eval(),
            (images,),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.save(path)
