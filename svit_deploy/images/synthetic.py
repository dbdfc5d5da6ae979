"""Paints pictures with the statistics of natural images, the same bytes on every machine.

A gate decides by content, so noise or a flat colour says little about a token-pruned model.
These scenes hold what natural pictures hold: smooth regions, objects with soft and hard edges,
and texture whose amplitude spectrum falls about as 1/f, of a strength that varies over the picture.

Only +, -, *, / and floor are used (exact in IEEE 754, unlike an FFT or a sine), so that
pictures, and numbers measured on them, can be compared between machines.
"""

from __future__ import annotations

import numpy as np


def paint_scene(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Paints one picture, uint8 `[H, W, 3]` RGB."""
    canvas = 0.5 + 0.5 * _octave(height, width, 2, rng)
    strength = np.full((height, width, 1), rng.random())
    for _ in range(3 + int(8 * rng.random())):
        alpha = _blob(height, width, rng)
        colour = rng.random() + 0.5 * (rng.random(3) - 0.5)
        canvas += alpha * (colour - canvas)
        strength += alpha * (rng.random() - strength)
    canvas += 0.5 * strength * strength * _pink_noise(height, width, rng)
    return np.floor(canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _blob(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Opacity `[H, W, 1]` of a random ellipse: a disc, a bar, or the edge of something large."""
    size = max(height, width)
    y = (np.arange(height)[:, None] + 0.5) / size - rng.random() * height / size
    x = (np.arange(width)[None, :] + 0.5) / size - rng.random() * width / size
    dy, dx = 2 * rng.random(2) - 1
    length = dy * dy + dx * dx + 1e-3
    along = (y * dy + x * dx) * (y * dy + x * dx) / length
    across = (y * dx - x * dy) * (y * dx - x * dy) / length
    radii = 0.03 + 0.6 * rng.random(2) * rng.random(2)
    distance = along / (radii[0] * radii[0]) + across / (radii[1] * radii[1])
    softness = 0.02 + rng.random()
    return ((1 - distance) / softness).clip(0, 1)[:, :, None]


def _pink_noise(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Coloured noise `[H, W, 3]` around 0: octaves of about equal energy, hence 1/f in amplitude.

    The share of the finest octaves varies from picture to picture, as focus does.
    """
    decay = 0.8 + 0.3 * rng.random()
    noise = np.zeros((height, width, 3))
    weight, cells = 1.0, 4
    while cells <= max(height, width, 4):
        noise += weight * _octave(height, width, cells, rng)
        weight, cells = weight * decay, cells * 2
    return noise


def _octave(height: int, width: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Noise `[H, W, 3]` of one spatial frequency, mostly grey as natural pictures are."""
    grey = _smooth_noise(height, width, cells, 1, rng)
    return 0.75 * grey + 0.25 * _smooth_noise(height, width, cells, 3, rng)


def _smooth_noise(
    height: int, width: int, cells: int, channels: int, rng: np.random.Generator
) -> np.ndarray:
    """Random values in [-1, 1], `cells` along the longer side, interpolated to `[H, W, C]`."""
    grid = 2 * rng.random((cells + 2, cells + 2, channels)) - 1
    step = cells / max(height, width)
    row, row_share = _positions(height, step, rng.random())
    column, column_share = _positions(width, step, rng.random())
    lines = grid[row] + row_share[:, None, None] * (grid[row + 1] - grid[row])
    left, right = lines[:, column], lines[:, column + 1]
    return left + column_share[None, :, None] * (right - left)


def _positions(count: int, step: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Grid cell and smoothstep position inside it, for `count` pixels of `step` cells each."""
    position = np.arange(count) * step + offset
    cell = np.floor(position)
    share = position - cell
    return cell.astype(np.int64), share * share * (3 - 2 * share)
