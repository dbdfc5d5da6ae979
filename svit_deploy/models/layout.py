"""The key layouts of the official repositories, and one set of canonical names for all of them.

Canonical names are those of DeiT (timm), with `gates.{g}.` for the gates:
`cls_token, dist_token, pos_embed, patch_embed.proj, blocks.{i}.{norm1, attn.qkv, attn.proj, norm2,
mlp.fc1, mlp.fc2}, norm, head, head_dist, gates.{g}.{norm, mlp.fc1, mlp.fc2}`.
The layouts differ in names only: no tensor is split, joined or transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.torch_file import some

SVIT_BLOCK_NAMES = {
    "attn.qkv.weight": "self_attn.in_proj_weight",
    "attn.qkv.bias": "self_attn.in_proj_bias",
    "attn.proj.weight": "self_attn.out_proj.weight",
    "attn.proj.bias": "self_attn.out_proj.bias",
    "mlp.fc1.weight": "linear1.weight",
    "mlp.fc1.bias": "linear1.bias",
    "mlp.fc2.weight": "linear2.weight",
    "mlp.fc2.bias": "linear2.bias",
}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Dims:
    """What the shapes of the weights tell about a model.

    `num_patches` is the number of rows of the position embedding without its prefix tokens,
    `gate_dim` the hidden width of a gate (0 without gates).
    """

    family: str
    embed_dim: int
    depth: int
    mlp_dim: int
    patch_size: int
    num_patches: int
    num_classes: int
    distilled: bool = False
    num_gates: int = 0
    gate_dim: int = 0

    def __str__(self) -> str:
        gates = f", {self.num_gates} gates" if self.num_gates else ""
        return (
            f"embed_dim {self.embed_dim}, depth {self.depth}, patch_size {self.patch_size}, "
            f"num_classes {self.num_classes}{gates}{', distilled' if self.distilled else ''}"
        )


def official_name(name: str, family: str) -> str:
    """A canonical name in the layout of the family's official repository."""
    parts = name.split(".", 2)
    if family in ("svit", "svit_adapter") and parts[0] == "blocks":
        leaf = SVIT_BLOCK_NAMES.get(parts[2], parts[2])
        return f"blocks.{parts[1]}.TransformerEncoderLayer.{leaf}"
    return re.sub(r"^gates\.", "selective_modules.", name)


def expected_shapes(dims: Dims) -> dict[str, Shape]:
    """Canonical name to shape, for every tensor of a model."""
    width, hidden = dims.embed_dim, dims.mlp_dim
    linears: dict[str, tuple[int, int]] = {"head": (dims.num_classes, width)}
    norms = ["norm"]
    for i in range(dims.depth):
        linears[f"blocks.{i}.attn.qkv"] = (3 * width, width)
        linears[f"blocks.{i}.attn.proj"] = (width, width)
        linears[f"blocks.{i}.mlp.fc1"] = (hidden, width)
        linears[f"blocks.{i}.mlp.fc2"] = (width, hidden)
        norms += [f"blocks.{i}.norm1", f"blocks.{i}.norm2"]
    for g in range(dims.num_gates):
        linears[f"gates.{g}.mlp.fc1"] = (dims.gate_dim, width)
        linears[f"gates.{g}.mlp.fc2"] = (2, dims.gate_dim)
        norms.append(f"gates.{g}.norm")
    prefix_tokens = 2 if dims.distilled else 1
    shapes: dict[str, Shape] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, prefix_tokens + dims.num_patches, width),
        "patch_embed.proj.weight": (width, 3, dims.patch_size, dims.patch_size),
        "patch_embed.proj.bias": (width,),
    }
    if dims.distilled:
        shapes["dist_token"] = (1, 1, width)
        linears["head_dist"] = linears["head"]
    for name in norms:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)
    for name, shape in linears.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    return shapes


def detect_family(tensors: Mapping[str, np.ndarray]) -> str:
    """`svit` or `deit`, by key names.

    Raises:
        InputError: another model, or SViT blocks without gates.
    """
    gates = any(key.startswith("selective_modules.") for key in tensors)
    svit_blocks = any(".TransformerEncoderLayer." in key for key in tensors)
    if any("level_embed" in key or "rpn_head" in key for key in tensors):
        raise InputError(
            "the checkpoint is a detection model",
            "export it with --task detect or --task backbone",
        )
    if svit_blocks and not gates:
        raise InputError(
            "the checkpoint has SViT's blocks but no gates (selective_modules.*)",
            "give a checkpoint from after the gates were trained",
        )
    if gates:
        return "svit"
    if "blocks.0.attn.qkv.weight" in tensors:
        return "deit"
    raise InputError(
        f"the checkpoint is neither SViT nor DeiT: its {len(tensors)} keys begin with "
        f"{some(tensors)}",
        "give a checkpoint in the layout of uzh-rpg/svit (classification) or facebookresearch/deit",
    )


def infer_dims(tensors: Mapping[str, np.ndarray], family: str) -> Dims:
    """Reads the sizes off a few tensors; `to_canonical` checks all of them against the rest.

    Raises:
        InputError: one of the tensors that tell is missing or has the wrong rank.
    """

    def shape(name: str, rank: int) -> Shape:
        key = official_name(name, family)
        if key not in tensors or tensors[key].ndim != rank:
            found = f"has shape {list(tensors[key].shape)}" if key in tensors else "is missing"
            raise InputError(
                f"{key} {found} in the checkpoint", f"give a complete {family} checkpoint"
            )
        return tensors[key].shape

    width, _, patch_size, _ = shape("patch_embed.proj.weight", 4)
    num_gates = count_members(tensors, "selective_modules") if family == "svit" else 0
    distilled = family == "deit" and "dist_token" in tensors
    return Dims(
        family=family,
        embed_dim=width,
        depth=count_members(tensors, "blocks"),
        mlp_dim=shape("blocks.0.mlp.fc1.weight", 2)[0],
        patch_size=patch_size,
        num_patches=shape("pos_embed", 3)[1] - (2 if distilled else 1),
        num_classes=shape("head.weight", 2)[0],
        distilled=distilled,
        num_gates=num_gates,
        gate_dim=shape("gates.0.mlp.fc1.weight", 2)[0] if num_gates else 0,
    )


def to_canonical(tensors: Mapping[str, np.ndarray], dims: Dims) -> dict[str, np.ndarray]:
    """Renames an official checkpoint's tensors (not copied) and checks that they all fit.

    Raises:
        InputError: keys are missing or unexpected, or tensors have other shapes or types than
            `dims` asks for; the one sentence names the first few of each.
    """
    return match_tensors(tensors, dims, expected_shapes(dims))


def match_tensors(
    tensors: Mapping[str, np.ndarray], dims: Dims, shapes: Mapping[str, Shape]
) -> dict[str, np.ndarray]:
    """The tensors under the canonical names of `shapes`; raises InputError as `to_canonical`."""
    keys = {name: official_name(name, dims.family) for name in shapes}
    missing = [key for key in keys.values() if key not in tensors]
    unexpected = sorted(set(tensors) - set(keys.values()))
    misshapen = [
        f"{key} is {tensors[key].dtype}{list(tensors[key].shape)}, not float32{list(shapes[name])}"
        for name, key in keys.items()
        if key in tensors
        and (tensors[key].shape != shapes[name] or tensors[key].dtype != np.float32)
    ]
    faults = [
        f"{len(names)} {kind} ({some(names, 3)})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", misshapen),
        )
        if names
    ]
    if faults:
        raise InputError(
            f"the checkpoint does not fit family {dims.family} with {dims}: {', '.join(faults)}",
            "give an unchanged checkpoint of the official training code",
        )
    return {name: tensors[key] for name, key in keys.items()}


def to_official(weights: Mapping[str, np.ndarray], family: str) -> dict[str, np.ndarray]:
    """The inverse of `to_canonical`: canonical names to those of the official repository."""
    return {official_name(name, family): array for name, array in weights.items()}


def count_members(tensors: Mapping[str, np.ndarray], group: str, part: int = 1) -> int:
    """Distinct N among the keys `group.N.*`; a gap in the numbers shows as a missing key later.

    Args:
        group: a regular expression for the parts of a key before the number.
        part: how many parts those are.
    """
    return len({key.split(".")[part] for key in tensors if re.match(rf"{group}\.\d+\.", key)})
