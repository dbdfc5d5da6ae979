"""The images that targets are benched on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from svit_deploy.bench.settings import Provenance
from svit_deploy.bundle import Bundle
from svit_deploy.config import Preprocess
from svit_deploy.errors import UsageError
from svit_deploy.images import ImageSet


@dataclass(frozen=True)
class Inputs:
    """Where a benchmark's images come from: pictures, noise, or each bundle's own samples.

    Attributes:
        count: images of noise.
    """

    images: ImageSet | None = None
    noise: bool = False
    allow_noise: bool = False
    count: int = 32
    _made: dict[Any, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.noise and self.images is not None:
            raise UsageError("--random and --images exclude each other", "leave one out")

    def prepare(self, preprocess: Preprocess, image_size: tuple[int, int]) -> np.ndarray:
        """The pictures or noise `[n, 3, H, W]`, in memory once for models that want the same."""
        key = (preprocess, image_size)
        if key not in self._made:
            if self.images is not None:
                self._made[key] = self.images.inputs(preprocess, image_size)
            else:
                shape = (self.count, 3, *image_size)
                self._made[key] = np.random.default_rng(0).standard_normal(shape, np.float32)
        return self._made[key]

    def refuse_noise(self, name: str) -> None:
        """Raises UsageError if there is noise for a model whose latency depends on content."""
        if self.noise and not self.allow_noise:
            raise UsageError(
                f"the latency of {name} depends on the content of the images, so noise would "
                "measure something else",
                "give real pictures with --images, or add --allow-noise if noise is what you want",
            )

    def provenance(self, model: str, sha256: str, size_bytes: int) -> Provenance:
        """What the report says about a model that is run on these."""
        if self.images is None:
            return Provenance(model, sha256, size_bytes, "noise", None)
        return Provenance(model, sha256, size_bytes, self.images.source, self.images.sha256)

    def of_bundle(self, bundle: Bundle, file: Path) -> tuple[np.ndarray, Provenance]:
        """The images for a bundle, by default its recorded samples, and where all comes from.

        Args:
            file: the one of its files that is benched.
        """
        entry, config = bundle.manifest["files"][file.name], bundle.config
        provenance = self.provenance(bundle.name, entry["sha256"], entry["size_bytes"])
        if self.images is not None or self.noise:
            return self.prepare(config.preprocess, config.image_size), provenance
        samples = bundle.manifest["reference"]
        return bundle.load_reference()["images"], replace(
            provenance, images=f"recorded ({samples['source']})", images_sha256=samples["sha256"]
        )

    def need_some(self, name: str, dynamic: bool) -> None:
        """Raises UsageError without pictures or noise, for what brings no samples of its own."""
        if self.images is None and not self.noise:
            fix = "add --images IMAGES" if dynamic else "add --images IMAGES, or --random"
            raise UsageError(f"{name} brings no sample inputs", fix)
