"""Position embeddings for another image size."""

from __future__ import annotations

import numpy as np


def interpolate_positions(
    table: np.ndarray, prefix_tokens: int, native: tuple[int, int], wanted: tuple[int, int]
) -> np.ndarray:
    """Resizes a position table bicubically, as DeiT does; prefix rows stay as they are.

    Args:
        table: `[1, prefix + native patches, C]` float32.
        prefix_tokens: rows before the patches.
        native: grid of the table, (rows, columns).
        wanted: grid to resize to.

    Returns:
        `[1, prefix + wanted patches, C]` float32.
    """
    if native == wanted:
        return table
    import torch
    from torch.nn.functional import interpolate

    width = table.shape[2]
    patches = torch.from_numpy(table[:, prefix_tokens:]).reshape(1, *native, width)
    patches = interpolate(
        patches.permute(0, 3, 1, 2), size=wanted, mode="bicubic", align_corners=False
    )
    rows = patches.permute(0, 2, 3, 1).reshape(1, -1, width).numpy()
    return np.concatenate([table[:, :prefix_tokens], rows], axis=1)
