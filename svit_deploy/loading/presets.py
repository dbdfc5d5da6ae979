"""Published architectures, by the names that users know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from svit_deploy.model.arch import Arch


def _deit(num_heads: int, image_size: int = 224, distilled: bool = False) -> Arch:
    """DeiT's sizes differ by the number of heads, each 64 wide."""
    size = (image_size, image_size)
    return Arch("deit", num_heads, 64 * num_heads, 12, 16, size, distilled=distilled)


def _also(arch: Arch, family: str, **settings: Any) -> Arch:
    """A family on what another is published on, with settings of its own."""
    return replace(arch, family=family, settings={**arch.settings, **settings})


def _on_deit(family: str, num_heads: int, **settings: Any) -> Arch:
    """A method on a DeiT of 224 pixels, with its published settings."""
    return replace(_deit(num_heads), family=family, settings=settings)


def _swin(family: str, embed_dim: int, third_stage: int) -> Arch:
    """Swin's sizes differ by the width, in heads of 32, and the depth of the third stage."""
    depths = (2, 2, third_stage, 2)
    return Arch(
        family,
        embed_dim // 32,
        embed_dim,
        sum(depths),
        4,
        (224, 224),
        distilled=False,
        settings={"depths": depths},
        crop_ratio=224 / 256,
    )


def _video_swin(embed_dim: int, third_stage: int, frames: int = 8, **sampling: Any) -> Arch:
    """Video Swin's sizes differ as Swin's, and by the time that a window spans."""
    found = _swin("video_swin", embed_dim, third_stage)
    return replace(
        found,
        settings={**found.settings, "window_size": (frames, 7, 7)},
        task=sampling,
        frames=32,
        crop_ratio=1.0,
        interpolation="bilinear",
    )


def _stvit_swin(embed_dim: int, third_stage: int, generate_at: int, semantic: int = 36) -> Arch:
    """STViT on Swin; 16, 36 or 64 semantic tokens are 4, 9 or 16 of each window."""
    arch = _swin("swin", embed_dim, third_stage)
    return _also(arch, "stvit_swin", semantic=semantic, generate_at=generate_at)


def _stvit_video(third_stage: int, generate_at: int) -> Arch:
    """STViT on the two Video Swins of its paper, semantic tokens where they are on Swin."""
    arch = _video_swin(96, third_stage)
    return _also(arch, "stvit_video", semantic=36, generate_at=generate_at)


def _convnext(family: str, embed_dim: int, third_stage: int) -> Arch:
    """ConvNeXt's sizes differ by the width and the depth of the third stage."""
    depths = (3, 3, third_stage, 3)
    return Arch(
        family,
        1,
        embed_dim,
        sum(depths),
        4,
        (224, 224),
        distilled=False,
        settings={"depths": depths},
        crop_ratio=224 / 256,
    )


def _dynamicvit_in_stages(arch: Arch) -> Arch:
    return _also(arch, f"dynamicvit_{arch.family}", base_rate=(0.7,))


def _pyramid(family: str, embed_dim: int, third_stage: int) -> Arch:
    """A Swin in a Cascade Mask R-CNN."""
    found = _swin(family, embed_dim, third_stage)
    return replace(found, crop_ratio=1.0, interpolation="bilinear")


def _lvvit(
    num_heads: int, embed_dim: int, depth: int, skip_lam: float, size: int = 224, crop: float = 1.0
) -> Arch:
    return Arch(
        "lvvit",
        num_heads,
        embed_dim,
        depth,
        16,
        (size, size),
        distilled=False,
        settings={"skip_lam": skip_lam},
        crop_ratio=crop,
    )


def _dynamicvit_on_lvvit(arch: Arch, base_rate: tuple[float, ...]) -> Arch:
    """Evaluated with DeiT's crop."""
    return replace(_also(arch, "dynamicvit_lvvit", base_rate=base_rate), crop_ratio=0.875)


def _on_lvvit_s(family: str, **settings: Any) -> Arch:
    """A method on LV-ViT-S, as arXiv 2306.04897 evaluates it: 3.9 G multiply-adds."""
    return _also(_lvvit(6, 384, 16, 2, crop=0.9), family, **settings)


def _stvit_lvvit(arch: Arch, generate_at: int) -> Arch:
    """STViT on an LV-ViT, a third of whose blocks come first, as on DeiT; nobody published one."""
    return _also(arch, "stvit_lvvit", semantic=16, generate_at=generate_at)


def _adapter(
    num_heads: int, family: str, gate_blocks: tuple[int, ...] = (), **settings: Any
) -> Arch:
    """A ViT-Adapter in front of Mask R-CNN."""
    return Arch(
        family=family,
        num_heads=num_heads,
        embed_dim=64 * num_heads,
        depth=12,
        patch_size=16,
        distilled=False,
        gate_blocks=gate_blocks,
        target_keep=tuple(KEEP[block // 3 - 1] for block in gate_blocks),
        settings=settings,
        crop_ratio=1.0,
        interpolation="bilinear",
    )


KEEP = (0.7, 0.49, 0.343)
"""What SViT's gates of each three blocks are trained to keep."""
GATED = tuple(range(3, 12))
MERGED = {"inherit_mask": True, "merge_gates": True}
SVIT_S = replace(
    _deit(6),
    family="svit",
    gate_blocks=GATED,
    gate_class_token=(False,) * 8 + (True,),
    target_keep=(0.7,) * 3 + (0.49,) * 3 + (0.343,) * 3,
)
PRESETS: dict[str, Arch] = {
    "svit_s": SVIT_S,
    "svit_variant_s": replace(SVIT_S, family="svit_variant", settings={"inherit_mask": True}),
    "deit_tiny": _deit(3),
    "deit_small": _deit(6),
    "deit_base": _deit(12),
    "deit_tiny_distilled": _deit(3, distilled=True),
    "deit_small_distilled": _deit(6, distilled=True),
    "deit_base_distilled": _deit(12, distilled=True),
    "deit_base_384": _deit(12, image_size=384),
    "dynamicvit_256": _on_deit("dynamicvit", 4, base_rate=(0.7,)),
    "dynamicvit_s": _on_deit("dynamicvit", 6, base_rate=(0.7,)),
    "dynamicvit_b": _on_deit("dynamicvit", 12, base_rate=(0.7,)),
    "evit_s": _on_deit("evit", 6, keep_rate=0.7, fuse=True),
    "evovit_t": _on_deit("evovit", 3),
    "evovit_s": _on_deit("evovit", 6),
    "evovit_b": _on_deit("evovit", 12),
    "ats_s": _on_deit("ats", 6),
    "avit_t": _on_deit("avit", 3, gate_scale=10.0, gate_center=30.0),
    "avit_s": _on_deit("avit", 6, gate_scale=10.0, gate_center=75.0),
    "tome_t": _on_deit("tome", 3, r=(13,)),
    "tome_s": _on_deit("tome", 6, r=(13,)),
    "mergence_t": _on_deit("mergence", 3, keep_rate=0.7),
    "mergence_s": _on_deit("mergence", 6, keep_rate=0.7),
    "mergence_b": _on_deit("mergence", 12, keep_rate=0.7),
    "multiscale_t": _on_deit("multiscale", 3, keep_rate=0.7),
    "multiscale_s": _on_deit("multiscale", 6, keep_rate=0.7),
    "multiscale_b": _on_deit("multiscale", 12, keep_rate=0.7),
    "stvit_t": _on_deit("stvit", 3, semantic=16),
    "stvit_s": _on_deit("stvit", 6, semantic=16),
    "stvit_b": _on_deit("stvit", 12, semantic=16),
    "stvit_swin_t": _stvit_swin(96, 6, 6),
    "stvit_swin_t_4": _stvit_swin(96, 6, 6, semantic=16),
    "stvit_swin_t_16": _stvit_swin(96, 6, 6, semantic=64),
    "stvit_swin_t_moved": _stvit_swin(96, 6, 5),
    "stvit_swin_s": _stvit_swin(96, 18, 14),
    "stvit_swin_s_4": _stvit_swin(96, 18, 14, semantic=16),
    "stvit_swin_s_16": _stvit_swin(96, 18, 14, semantic=64),
    "stvit_swin_s_moved": _stvit_swin(96, 18, 12),
    "stvit_swin_b": _stvit_swin(128, 18, 14),
    "stvit_swin_b_4": _stvit_swin(128, 18, 14, semantic=16),
    "stvit_swin_b_16": _stvit_swin(128, 18, 14, semantic=64),
    "stvit_swin_b_moved": _stvit_swin(128, 18, 12),
    "swin_t": _swin("swin", 96, 6),
    "swin_s": _swin("swin", 96, 18),
    "swin_b": _swin("swin", 128, 18),
    "convnext_t": _convnext("convnext", 96, 9),
    "convnext_s": _convnext("convnext", 96, 27),
    "convnext_b": _convnext("convnext", 128, 27),
    "dynamicvit_swin_t": _dynamicvit_in_stages(_swin("swin", 96, 6)),
    "dynamicvit_swin_s": _dynamicvit_in_stages(_swin("swin", 96, 18)),
    "dynamicvit_swin_b": _dynamicvit_in_stages(_swin("swin", 128, 18)),
    "dynamicvit_convnext_t": _dynamicvit_in_stages(_convnext("convnext", 96, 9)),
    "dynamicvit_convnext_s": _dynamicvit_in_stages(_convnext("convnext", 96, 27)),
    "dynamicvit_convnext_b": _dynamicvit_in_stages(_convnext("convnext", 128, 27)),
    "swin_pyramid_t": _pyramid("swin_pyramid", 96, 6),
    "swin_pyramid_s": _pyramid("swin_pyramid", 96, 18),
    "swin_pyramid_b": _pyramid("swin_pyramid", 128, 18),
    "stvitr_pyramid_s": _pyramid("stvitr_pyramid", 96, 18),
    "stvitr_pyramid_b": _pyramid("stvitr_pyramid", 128, 18),
    "video_swin_t": _video_swin(96, 6),
    "video_swin_s": _video_swin(96, 18),
    "video_swin_b": _video_swin(128, 18),
    "stvit_video_t": _stvit_video(6, 6),
    "stvit_video_s": _stvit_video(18, 14),
    "video_swin_b_ssv2": _video_swin(128, 18, 16, clips=1, uniform=True),
    "stvitr_s": _swin("stvitr", 96, 18),
    "stvitr_b": _swin("stvitr", 128, 18),
    "lvvit_t": _lvvit(4, 240, 12, 1, crop=0.9),
    "lvvit_s": _lvvit(6, 384, 16, 2, crop=0.9),
    "lvvit_m": _lvvit(8, 512, 20, 2),
    "lvvit_l": _lvvit(12, 768, 24, 3, size=448),
    "dynamicvit_lvvit_s": _dynamicvit_on_lvvit(_lvvit(6, 384, 16, 2), base_rate=(0.7,)),
    "dynamicvit_lvvit_m": _dynamicvit_on_lvvit(_lvvit(8, 512, 20, 2), base_rate=(0.7,)),
    "evit_lvvit_s": _on_lvvit_s("evit_lvvit", keep_rate=0.5, fuse=True),
    "multiscale_lvvit_s": _on_lvvit_s("multiscale_lvvit", keep_rate=0.5),
    "mergence_lvvit_s": _on_lvvit_s("mergence_lvvit", keep_rate=0.5),
    "stvit_lvvit_t": _stvit_lvvit(_lvvit(4, 240, 12, 1, crop=0.9), generate_at=4),
    "stvit_lvvit_s": _stvit_lvvit(_lvvit(6, 384, 16, 2, crop=0.9), generate_at=5),
    "stvit_lvvit_m": _stvit_lvvit(_lvvit(8, 512, 20, 2), generate_at=6),
    "svit_adapter_t": _adapter(3, "svit_adapter", GATED),
    "svit_adapter_s": _adapter(6, "svit_adapter", GATED),
    "svit_adapter_variant_t": _adapter(3, "svit_adapter_variant", (3, 6, 9), **MERGED),
    "svit_adapter_variant_s": _adapter(6, "svit_adapter_variant", (3, 6, 9), **MERGED),
    "vit_adapter_t": _adapter(3, "vit_adapter"),
    "vit_adapter_s": _adapter(6, "vit_adapter"),
    "vit_window_adapter_t": _adapter(3, "vit_window_adapter"),
    "vit_window_adapter_s": _adapter(6, "vit_window_adapter"),
    "vit_window_adapter_b": _adapter(12, "vit_window_adapter"),
    "evovit_adapter_t": _adapter(3, "evovit_adapter"),
    "evovit_adapter_s": _adapter(6, "evovit_adapter"),
    "dynamicvit_adapter_t": _adapter(3, "dynamicvit_adapter", base_rate=(0.7,)),
    "dynamicvit_adapter_s": _adapter(6, "dynamicvit_adapter", base_rate=(0.7,)),
    "vit_adapter_class_t": _adapter(3, "vit_adapter_class"),
    "vit_adapter_class_s": _adapter(6, "vit_adapter_class"),
    "evit_adapter_t": _adapter(3, "evit_adapter", keep_rate=0.7, fuse=True),
    "evit_adapter_s": _adapter(6, "evit_adapter", keep_rate=0.7, fuse=True),
    "ats_adapter_t": _adapter(3, "ats_adapter"),
    "ats_adapter_s": _adapter(6, "ats_adapter"),
}
