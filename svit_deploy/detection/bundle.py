"""The folder that the export of a detection model writes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svit_deploy.bundle import MAX_REFERENCE_BYTES, REFERENCE, Bundle
from svit_deploy.config import BatchRange
from svit_deploy.detection.config import STRIDES, AdapterConfig, SizeRange, Task
from svit_deploy.detection.graph.backbone import (
    PYRAMID,
    extractor_name,
    feature_name,
    injector_name,
    rows_within,
)
from svit_deploy.detection.graph.detector import IMAGE_SIZES, SCALE_FACTORS
from svit_deploy.detection.parts import HEADS, DetectorParts, engine_graph
from svit_deploy.detection.postprocess import BOXES, LABELS, MASKS, OUTPUTS, SCORES, Detections
from svit_deploy.detection.preprocess import Prepared
from svit_deploy.engines.base import Engine
from svit_deploy.errors import InputError
from svit_deploy.export import names
from svit_deploy.manifest import EXPORT_AGAIN
from svit_deploy.npz import read_npz
from svit_deploy.profiles import Profile

MAX_SAMPLES = 64
CELLS = 2048
"""At most so many places of each feature map are recorded."""


@dataclass(frozen=True)
class Sample:
    """A recorded image and what the reference computes of it.

    Attributes:
        image: the input.
        features: per stride `[C, cells]`, at the places that `recorded_cells` names.
        keep_mask, margin: `[G, N]`.
        detections: None for a backbone.
    """

    image: Prepared
    features: tuple[np.ndarray, ...]
    keep_mask: np.ndarray
    margin: np.ndarray
    detections: Detections | None


@dataclass(frozen=True)
class DetectionBundle(Bundle):
    """An exported backbone or detector on disk."""

    config: AdapterConfig

    def __post_init__(self) -> None:
        if not isinstance(self.config, AdapterConfig):
            raise InputError(f"a {self.config.family} has no task", EXPORT_AGAIN)
        if self.config.has_heads is not (self.task is Task.DETECT):
            raise InputError(f"the heads do not fit the task {self.task.value}", EXPORT_AGAIN)
        if self.is_parted and HEADS not in self.manifest["files"]:
            raise InputError(f"{HEADS} is not listed", EXPORT_AGAIN)
        if self.sizes.opt != self.config.image_size:
            raise InputError("two image sizes are named", EXPORT_AGAIN)

    @property
    def is_parted(self) -> bool:
        return self.engine_path is not None and self.task is Task.DETECT

    def profile(self, batch: BatchRange) -> Profile:
        return self.sizes.profile(batch)

    def check_profiles(self, profiles: Sequence[Profile]) -> None:
        self.sizes.check_profiles(profiles)

    def engine_graph(self, folder: Path) -> AbstractContextManager[Path]:
        return engine_graph(folder, self.task)

    def complete(self, engine: Engine) -> Engine:
        return DetectorParts(engine, self.path / HEADS) if self.is_parted else engine

    @property
    def task(self) -> Task:
        return Task(self.manifest["task"])

    @property
    def sizes(self) -> SizeRange:
        """Image sizes that the graph runs."""
        low, opt, high = (self.manifest["image"][name] for name in ("min", "opt", "max"))
        return SizeRange.parse(":".join(f"{'x'.join(map(str, size))}" for size in (low, opt, high)))

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of its tokens that each gate may keep; empty unless the mode is `budget`."""
        return tuple(self.manifest["tokens"]["budgets"])

    @property
    def budget_rows(self) -> tuple[int, ...]:
        """None for all images: see `rows_for`."""
        return ()

    def rows_for(self, tokens: int) -> tuple[int, ...]:
        """Tokens that the budgets let through of an image's; empty without budgets."""
        return tuple(rows_within(share, tokens) for share in self.shares)

    def allows_budget(self, budget: float, gate: int) -> bool:
        return 0 < budget <= 1

    @property
    def stages(self) -> list[str]:
        config = self.config
        order, block, extractors = [PYRAMID, names.EMBEDDING], 0, 0
        for k, count in enumerate(config.interaction_blocks):
            order.append(injector_name(k))
            order += [names.block_name(b) for b in range(block, block + count)]
            block += count
            extra = config.extra_extractors if block == config.depth else 0
            order += [extractor_name(extractors + i) for i in range(1 + extra)]
            extractors += 1 + extra
        return order

    @property
    def features(self) -> list[str]:
        return [feature_name(stride) for stride in STRIDES]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return (names.INPUT, *((IMAGE_SIZES, SCALE_FACTORS) if self.config.has_heads else ()))

    @property
    def task_outputs(self) -> tuple[str, ...]:
        return OUTPUTS if self.task is Task.DETECT else tuple(self.features)

    def load_samples(self) -> list[Sample]:
        """The recorded images.

        Raises:
            InputError: damaged, or arrays of other shapes or types than they must have.
        """
        path, count = self.path / REFERENCE, self.manifest["reference"]["images"]
        if not 1 <= count <= MAX_SAMPLES:
            raise InputError(f"{path} cannot hold {count} images", EXPORT_AGAIN)
        keys = [f"{i}.{key}" for i in range(count) for key in _wanted(self, (0, 0))]
        arrays = read_npz(path, keys, max_bytes=MAX_REFERENCE_BYTES)
        return [self._sample(path, arrays, i) for i in range(count)]

    def _sample(self, path: Path, arrays: dict[str, np.ndarray], i: int) -> Sample:
        pixels = arrays.get(f"{i}.pixels")
        if pixels is None or pixels.ndim != 3:
            raise InputError(f"{path} has no image {i}", EXPORT_AGAIN)
        size = (pixels.shape[1], pixels.shape[2])
        self.sizes.check(size)
        own = {}
        for name, (dtype, shape) in _wanted(self, size).items():
            array = arrays.get(f"{i}.{name}")
            if array is None or array.dtype != dtype or not _fits(array.shape, shape):
                found = "missing" if array is None else f"{array.dtype}{list(array.shape)}"
                raise InputError(f"array {i}.{name} of {path} is {found}", EXPORT_AGAIN)
            own[name] = array
        height, width, *scale = own["geometry"].tolist()
        image = Prepared(pixels, (round(height), round(width)), (*scale[:2], *scale[:2]), size)
        features = tuple(own[feature_name(stride)] for stride in STRIDES)
        detections = None
        if self.task is Task.DETECT:
            detections = Detections(own[BOXES], own[SCORES], own[LABELS], own[MASKS])
        return Sample(image, features, own[names.KEEP_MASK], own[names.MARGIN], detections)


def recorded_cells(size: tuple[int, int], stride: int) -> np.ndarray:
    """Which places of a feature map, counted row by row, are recorded."""
    cells = (size[0] // stride) * (size[1] // stride)
    return np.linspace(0, cells - 1, min(cells, CELLS)).astype(np.int64)


def record(sample: Sample) -> dict[str, np.ndarray]:
    """A sample as named arrays."""
    image = sample.image
    arrays = {
        "pixels": image.pixels,
        "geometry": np.array([*image.image_size, *image.scale[:2]], np.float64),
        names.KEEP_MASK: sample.keep_mask,
        names.MARGIN: sample.margin,
    }
    for stride, feature in zip(STRIDES, sample.features, strict=True):
        arrays[feature_name(stride)] = feature
    if sample.detections is not None:
        found = sample.detections
        values = (found.boxes, found.scores, found.labels, found.masks)
        arrays |= dict(zip((BOXES, SCORES, LABELS, MASKS), values, strict=True))
    return arrays


def subsample(features: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """What is recorded of an image's feature maps `[C, h, w]`."""
    return tuple(
        np.ascontiguousarray(feature.reshape(len(feature), -1)[:, recorded_cells(size, stride)])
        for stride, feature in zip(STRIDES, features, strict=True)
    )


def _wanted(bundle: DetectionBundle, size: tuple[int, int]) -> dict[str, Any]:
    """Type and shape of each array of a sample; -1 is any length."""
    config = bundle.config
    gates = (config.num_gates, config.tokens_of(size))
    wanted: dict[str, Any] = {
        "pixels": (np.float32, (3, *size)),
        "geometry": (np.float64, (4,)),
        names.KEEP_MASK: (np.bool_, gates),
        names.MARGIN: (np.float32, gates),
    }
    for stride in STRIDES:
        shape = (config.embed_dim, len(recorded_cells(size, stride)) if size[0] else 0)
        wanted[feature_name(stride)] = (np.float32, shape)
    if bundle.task is Task.DETECT:
        wanted[BOXES] = (np.float32, (-1, 4))
        wanted[SCORES], wanted[LABELS] = (np.float32, (-1,)), (np.int64, (-1,))
        wanted[MASKS] = (np.float32, (-1, 28, 28))
    return wanted


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        w in (-1, s) for s, w in zip(shape, wanted, strict=True)
    )
