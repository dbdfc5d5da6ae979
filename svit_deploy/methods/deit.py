"""DeiT: no selection; the dense twin, and the weights, of many methods.

Touvron et al., "Training data-efficient image transformers & distillation through attention",
ICML 2021; facebookresearch/deit @ 7e160fe4.
"""

from __future__ import annotations

from collections.abc import Collection

from svit_deploy.methods.method import Method


class Deit(Method):
    name, title = "deit", "DeiT"

    def matches(self, keys: Collection[str]) -> bool:
        return "blocks.0.attn.qkv.weight" in keys

    def is_spare(self, key: str) -> bool:
        return key.endswith(".attn.out_zero_mask")  # zeros that ATS saves with such weights
