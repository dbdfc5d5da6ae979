"""What a detection bundle is verified against, image by image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from svit_deploy.config import TokenMode
from svit_deploy.detection.bundle import DetectionBundle, Sample, subsample
from svit_deploy.detection.config import AdapterConfig, Task
from svit_deploy.detection.postprocess import Detections
from svit_deploy.detection.preprocess import Prepared, prepare_all
from svit_deploy.images import ImageSet
from svit_deploy.models import Model, without_gates
from svit_deploy.verify.expected import CHOSEN, compare_configs, count_images


@dataclass(frozen=True, eq=False)
class Expectation:
    """One image and what the reference computes of it.

    Attributes:
        features: per stride `[C, cells]`, at the places that a bundle records.
        keep_mask, margin: `[1, G, N]`.
        stages: rows `[rows, C]` by the names of the graph's values; empty if unknown.
        maps: the whole feature maps `[1, C, h, w]`; empty if unknown.
    """

    image: Prepared
    features: tuple[np.ndarray, ...]
    keep_mask: np.ndarray
    margin: np.ndarray
    detections: Detections | None
    stages: Mapping[str, np.ndarray] = field(default_factory=dict)
    maps: tuple[np.ndarray, ...] = ()


class DetectionExpectations:
    """The bundle's recorded samples: no PyTorch needed, no stage by itself."""

    differences: Mapping[str, list[str]] = MappingProxyType({})
    notes: tuple[str, ...] = ()
    has_stages = False

    def __init__(self, bundle: DetectionBundle) -> None:
        self.samples: list[Sample] = bundle.load_samples()
        self.count = count_images(np.empty(len(self.samples)))
        self.description = f"reference recorded at export ({self.count} images)"

    def images(self) -> Iterator[Prepared]:
        yield from (sample.image for sample in self.samples)

    def names(self) -> list[str]:
        """What the images are called."""
        return [f"sample-{i}" for i in range(self.count)]

    def each(self) -> Iterator[Expectation]:
        for sample in self.samples:
            yield Expectation(
                sample.image,
                sample.features,
                sample.keep_mask[None],
                sample.margin[None],
                sample.detections,
            )

    def extreme(self, image: Prepared, keep: str) -> Expectation | None:
        """What the reference computes when every gate keeps "all" or "none", if it can be run."""
        return None


class RecomputedDetections(DetectionExpectations):
    """The checkpoint's plain PyTorch forward, on given images or the recorded ones.

    Args:
        model: the checkpoint, loaded independently of the bundle.
    """

    has_stages = True

    def __init__(self, bundle: DetectionBundle, model: Model, images: ImageSet | None) -> None:
        exported = bundle.config
        if bundle.mode is TokenMode.DENSE:
            model = without_gates(model)
        self.differences = compare_configs(exported, model.config)
        recorded, checkpoint = bundle.manifest.get("checkpoint"), model.checkpoint
        if recorded and checkpoint and recorded["sha256"] != checkpoint.sha256:
            self.notes = (f"the bundle was exported from another file, {recorded['name']}",)
        if not self.differences["configuration"]:
            chosen = {name: getattr(exported, name) for name in CHOSEN}
            model = dataclasses.replace(model, config=dataclasses.replace(model.config, **chosen))
        self.bundle, self.model, self.pictures = bundle, model, images
        if images is None:
            self.samples = bundle.load_samples()
        self.count = count_images(np.empty(len(self.samples if images is None else images)))
        self.description = f"PyTorch reference ({self.count} images)"

    def images(self) -> Iterator[Prepared]:
        if self.pictures is None:
            yield from super().images()
        else:
            yield from prepare_all(self.pictures, self.bundle.config, self.bundle.sizes)

    def names(self) -> list[str]:
        return super().names() if self.pictures is None else list(self.pictures.names)

    def each(self) -> Iterator[Expectation]:
        for image in self.images():
            yield self.compute(image, None)

    def extreme(self, image: Prepared, keep: str) -> Expectation | None:
        return self.compute(image, keep)

    def compute(self, image: Prepared, keep: str | None) -> Expectation:
        """One image with the bundle's thresholds and budgets, or with all or none kept."""
        from svit_deploy.detection.reference import AdapterReference
        from svit_deploy.models.reference import keep_above, keep_all, keep_budget, keep_none

        config = self.model.config
        assert isinstance(config, AdapterConfig)
        decide = {None: keep_above(config.thresholds), "all": keep_all, "none": keep_none}[keep]
        cells = config.tokens_of(image.size)
        rule = keep_budget(decide, self.bundle.rows_for(cells))
        detections = None
        if self.bundle.task is Task.DETECT:
            from svit_deploy.detection.reference_heads import DetectorReference

            whole = DetectorReference(self.model)
            found = whole.detect(image.pixels, image.image_size, image.scale, rule, stages=True)
            outputs, detections = found.backbone, found.detections
        else:
            reference = AdapterReference(self.model)
            outputs = reference.backbone(image.pixels[None], rule, stages=True)
        maps = tuple(feature.numpy() for feature in outputs.features)
        return Expectation(
            image,
            subsample([feature[0] for feature in maps], image.size),
            outputs.keep_mask.numpy(),
            outputs.margin.numpy(),
            detections,
            {name: rows.reshape(-1, rows.shape[-1]) for name, rows in outputs.stages.items()},
            maps,
        )
