"""One image or video, ready for a graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.images.preprocess import denormalise
from svit_deploy.model.config import Preprocess


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image, ready for a graph, or the views of one video.

    Attributes:
        pixels: `[3, H, W]` float32, normalised; of a video `[views, 3, T, H, W]`.
        image_size: (height, width) inside the padding.
        scale: input pixels per pixel of the original, for x, y, x, y.
        original_size: (height, width) of the picture.
        name: what the image is called.
        label: its class, if known.
    """

    pixels: np.ndarray
    image_size: tuple[int, int]
    scale: tuple[float, float, float, float]
    original_size: tuple[int, int]
    name: str = ""
    label: int | None = None

    @classmethod
    def whole(cls, pixels: np.ndarray, name: str = "", label: int | None = None) -> Prepared:
        """An image that is preprocessed already, float32, without padding."""
        size = (pixels.shape[-2], pixels.shape[-1])
        return cls(pixels, size, (1.0, 1.0, 1.0, 1.0), size, name, label)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) with the padding."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    def without_pixels(self) -> Prepared:
        """The same, its pixels one number: large ones do not all fit into memory."""
        return replace(self, pixels=np.broadcast_to(np.float32(0), self.pixels.shape))

    def __getstate__(self) -> dict[str, Any]:
        """Pixels that are one number are that number's shape."""
        blank = not any(self.pixels.strides)
        return vars(self) | {"pixels": self.pixels.shape} if blank else vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        pixels = state["pixels"]
        if isinstance(pixels, tuple):
            pixels = np.broadcast_to(np.float32(0), pixels)
        vars(self).update(state, pixels=pixels)

    def picture(self, preprocess: Preprocess) -> np.ndarray:
        """What the model sees inside the padding, uint8 `[h, w, 3]`.

        Of a video, the frame in the middle of its first view.
        """
        (height, width), pixels = self.image_size, self.pixels
        if pixels.ndim > 3:
            pixels = pixels[0, :, pixels.shape[2] // 2]
        return denormalise(pixels[:, :height, :width], preprocess)


def stacked(images: Sequence[Prepared]) -> np.ndarray:
    """The pixels of images of one size, `[n, 3, H, W]`.

    Raises:
        InputError: there are none, or their sizes differ.
    """
    if not images:
        raise InputError("there is no image to run", "give one or more")
    if len({image.size for image in images}) > 1:
        raise InputError(
            "the images of a batch have different sizes", "run them one by one, or pad them"
        )
    return np.stack([image.pixels for image in images])


def groups(images: Iterable[Prepared], most: int) -> Iterator[list[Prepared]]:
    """Neighbours of one size, at most so many at a time; images are asked for when it is theirs."""
    for _, same in groupby(images, key=lambda image: image.size):
        while some := list(islice(same, most)):
            yield some
