"""Detections as NumPy arrays, and what is done with them outside the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

BOXES, SCORES, LABELS, MASKS, IMAGE_INDEX = "boxes", "scores", "labels", "masks", "image_index"
OUTPUTS = (BOXES, SCORES, LABELS, MASKS, IMAGE_INDEX)


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: `[D, 4]` float32, left, top, right, bottom in pixels of the original picture.
        scores: `[D]` float32, the class's probability.
        labels: `[D]` int64, class numbers from 0.
        masks: `[D, 28, 28]` float32, probability of the object on a grid inside its box.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray

    @classmethod
    def of(cls, outputs: Mapping[str, np.ndarray]) -> Detections:
        """Those among an image's outputs."""
        return cls(*(outputs[name] for name in (BOXES, SCORES, LABELS, MASKS)))

    def arrays(self) -> dict[str, np.ndarray]:
        """As an image's outputs."""
        values = (self.boxes, self.scores, self.labels, self.masks)
        return dict(zip((BOXES, SCORES, LABELS, MASKS), values, strict=True))

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Those of at least this score."""
        return self._where(self.scores >= score)

    def finite(self) -> Detections:
        """Those whose box, score and mask are numbers."""
        masks = np.isfinite(self.masks).all(axis=(1, 2))
        return self._where(np.isfinite(self.boxes).all(axis=1) & np.isfinite(self.scores) & masks)

    def _where(self, kept: np.ndarray) -> Detections:
        return Detections(*(v[kept] for v in (self.boxes, self.scores, self.labels, self.masks)))


def split_images(outputs: Mapping[str, np.ndarray], batch: int) -> list[Detections]:
    """A graph's outputs, those of all images of a batch together, image by image."""
    values = [outputs[name] for name in (BOXES, SCORES, LABELS, MASKS)]
    found = []
    for image in range(batch):
        own = np.flatnonzero(outputs[IMAGE_INDEX] == image)
        own = own[np.argsort(-outputs[SCORES][own], kind="stable")]
        found.append(Detections(*(value[own] for value in values)))
    return found


def paste_masks(
    masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float = 0.5
) -> np.ndarray:
    """Whole-picture masks bool `[D, H, W]` of masks `[D, h, w]` inside boxes `[D, 4]`.

    Bilinear between the grid's cell centres and zero outside, as mmdet pastes: a pixel belongs to
    an object where the probability at its centre is at least `threshold`.

    Args:
        size: (height, width) of the picture that the boxes are in.
    """
    height, width = size
    pasted = np.zeros((len(masks), height, width), bool)
    for mask, box, target in zip(masks, boxes, pasted, strict=True):
        rows = _sampling_matrix(mask.shape[0], box[1], box[3], height)
        columns = _sampling_matrix(mask.shape[1], box[0], box[2], width)
        target[:] = rows @ mask.astype(np.float32) @ columns.T >= threshold
    return pasted


def _sampling_matrix(cells: int, start: float, end: float, length: int) -> np.ndarray:
    """Bilinear weights `[length, cells]` of a grid of cells from `start` to `end`."""
    extent = np.float32(end) - np.float32(start)
    if not extent > 0:
        return np.zeros((length, cells), np.float32)
    pixels = np.arange(length, dtype=np.float32) + np.float32(0.5)
    place = (pixels - np.float32(start)) / extent * cells - np.float32(0.5)
    distance = np.abs(place[:, None] - np.arange(cells, dtype=np.float32))
    return np.maximum(1 - distance, 0).astype(np.float32)
