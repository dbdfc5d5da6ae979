"""The images that targets are benched on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from svit_deploy.bench.settings import BenchSettings, Provenance
from svit_deploy.bundle import Bundle
from svit_deploy.bundle.manifest import UNNAMED
from svit_deploy.errors import InputError, UsageError
from svit_deploy.images import ImageSet, images_of
from svit_deploy.images.medium import PICTURES, Medium
from svit_deploy.model.config import ModelConfig, Preprocess
from svit_deploy.model.sizes import Size, SizeRange
from svit_deploy.names import INPUT
from svit_deploy.progress import Progress
from svit_deploy.tasks import Task
from svit_deploy.tasks.samples import prepare_all

log = logging.getLogger(__name__)


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
    _made: dict[Hashable, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.noise and self.images is not None:
            raise UsageError("--random and --images exclude each other", "leave one out")

    @classmethod
    def load(cls, settings: BenchSettings, progress: Progress, medium: Medium = PICTURES) -> Inputs:
        """The images that the settings ask for, in memory."""
        count, most = max(32, *settings.batches), settings.max_images
        if medium.enough is not None:
            most = min(most, max(medium.enough, *settings.batches))
        images = images_of(settings.images, most, progress, medium=medium)
        if images is not None and len(images) == most < settings.max_images:
            log.info("%d %ss are enough for a benchmark, and no more are read", most, medium.noun)
        return cls(images, settings.noise, settings.allow_noise, count)

    def prepare_for(self, task: Task, config: ModelConfig, sizes: SizeRange) -> np.ndarray:
        """Images as the task's models get them, or noise, all of one size: rows of its input.

        In memory once for models that want the same.
        """

        def prepare(images: ImageSet) -> np.ndarray:
            whole = map(task.excerpt, prepare_all(images, task, config, sizes))
            return np.concatenate([task.feeds([image])[INPUT] for image in whole])

        key = (task.name, config.preprocess, config.task)
        return self._once(key, sizes.shape(sizes.opt), prepare)

    def prepare(self, preprocess: Preprocess, size: Size) -> np.ndarray:
        """The same for a file that does not tell its task: resized, and the centre cropped."""
        key = (UNNAMED, preprocess, None)
        return self._once(key, (3, *size), lambda images: images.inputs(preprocess, size))

    def _once(
        self, key: Hashable, row: tuple[int, ...], prepare: Callable[[ImageSet], np.ndarray]
    ) -> np.ndarray:
        key = row if self.images is None else (key, row)
        if key not in self._made:
            if self.images is not None:
                self._made[key] = prepare(self.images)
            else:
                shape = (self.count, *row)
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
        return Provenance(model, sha256, size_bytes, self.images.kind, self.images.sha256)

    def of_bundle(self, bundle: Bundle, size: Size, file: Path) -> tuple[np.ndarray, Provenance]:
        """The images for a bundle, by default its recorded samples, and where all comes from.

        Args:
            size: of all of them.
            file: the one of the bundle's files that is benched.

        Raises:
            InputError: no sample was recorded at this size.
        """
        entry, samples = bundle.manifest["files"][file.name], bundle.manifest["reference"]
        provenance = self.provenance(bundle.name, entry["sha256"], entry["size_bytes"])
        if self.images is not None or self.noise:
            sizes = replace(bundle.sizes, min=size, opt=size, max=size)
            return self.prepare_for(bundle.task, bundle.config, sizes), provenance
        recorded = (image for part in bundle.load_samples() for image in part.images)
        chosen = [image for image in recorded if image.size == size]
        if not chosen:
            raise InputError(
                f"{bundle.name} has no sample of {size[0]}x{size[1]} pixels", "add --images IMAGES"
            )
        return bundle.task.feeds(chosen)[INPUT], replace(
            provenance, images=f"recorded ({samples['source']})", images_sha256=samples["sha256"]
        )

    def need_some(self, name: str, dynamic: bool) -> None:
        """Raises UsageError without pictures or noise, for what brings no samples of its own."""
        if self.images is None and not self.noise:
            fix = "add --images IMAGES" if dynamic else "add --images IMAGES, or --random"
            raise UsageError(f"{name} brings no sample inputs", fix)


def bench_size(name: str, sizes: SizeRange, settings: BenchSettings) -> Size:
    """The one size of all images; raises UsageError if the graph `name` cannot run it."""
    size = settings.image_size or sizes.opt
    if (nearest := sizes.nearest(size)) != size:
        height, width = size
        raise UsageError(
            f"{name} runs images of {sizes} pixels, and not of {height}x{width}",
            "leave --image-size out, or bench --image-size {}x{}".format(*nearest),
        )
    return size
