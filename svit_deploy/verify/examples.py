"""Images of a verification, and which of their tokens the exported model keeps."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from svit_deploy.images.overlay import beside, enlarge, overlay, survival_map, with_legend
from svit_deploy.images.prepared import Prepared
from svit_deploy.images.preprocess import denormalise
from svit_deploy.model.config import ModelConfig


@dataclass(frozen=True)
class Example:
    """An image that was compared: what the model sees of it, and what its gates keep.

    Attributes:
        picture: uint8 `[h, w, 3]`.
        keep_mask: of the exported model, `[G, S]`, without tokens that the method adds.
        prefix_tokens: tokens before the patches.
        grid: patches per column and per row.
    """

    name: str
    picture: np.ndarray
    keep_mask: np.ndarray
    prefix_tokens: int
    grid: tuple[int, int]

    def png(self) -> bytes:
        """The image beside the same under the colours of how many gated blocks keep each patch."""
        gates = len(self.keep_mask)
        (counts,) = survival_map(self.keep_mask[None], self.prefix_tokens, self.grid)
        shown = Image.fromarray(overlay(self.picture, counts, gates))
        pair = beside(Image.fromarray(enlarge(self.picture)), shown)
        file = io.BytesIO()
        with_legend(pair, gates).save(file, "PNG")
        return file.getvalue()


def examples(
    images: Sequence[Prepared], keep_masks: np.ndarray, config: ModelConfig
) -> Iterator[Example]:
    """Of each image, its keep mask being `[G, S]`."""
    for image, keep_mask in zip(images, keep_masks, strict=True):
        at_size = config.at(image.size)
        picture = denormalise(image.pixels, config.preprocess)
        kept = keep_mask[:, : at_size.num_tokens]
        yield Example(image.name, picture, kept, at_size.prefix_tokens, at_size.grid)
