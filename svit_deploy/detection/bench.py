"""A backbone or a detector as something to bench."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svit_deploy.bench.inputs import Inputs
from svit_deploy.bench.settings import BenchSettings, BenchTarget, Provenance
from svit_deploy.bench.variants import variants
from svit_deploy.config import TokenMode
from svit_deploy.detection.bundle import DetectionBundle
from svit_deploy.detection.config import SizeRange
from svit_deploy.detection.graph.detector import IMAGE_SIZES, SCALE_FACTORS
from svit_deploy.detection.preprocess import as_prepared, prepare
from svit_deploy.engines.base import Engine, RunTimes, TensorSpec
from svit_deploy.errors import InputError
from svit_deploy.export import names


def detection_target(
    bundle: DetectionBundle,
    inputs: Inputs,
    settings: BenchSettings,
    load: Callable[[Path | bytes], Engine],
) -> BenchTarget:
    """Prepares a bundle for `run_bench`; all images get one size, the typical one by default.

    Raises:
        InputError: a size that the graph cannot run, or no recorded sample of it.
    """
    size = bench_size(bundle, settings)
    dynamic = bundle.mode is TokenMode.DYNAMIC
    if dynamic:
        inputs.refuse_noise(bundle.name)
    arrays, provenance = bench_inputs(bundle, inputs, size, bundle.model_path)

    def load_whole(model: Path | bytes) -> Engine:
        return WholeImages(load(model), size)

    tokens = bundle.config.tokens_of(size)
    return BenchTarget(
        label=bundle.name,
        engine_factory=lambda: load_whole(bundle.model_path),
        content_dependent=dynamic,
        input_name=names.INPUT,
        inputs=arrays,
        keep_output=names.KEEP_MASK if bundle.has_gate_outputs else None,
        variants=variants(bundle, load_whole, tokens) if dynamic else {},
        task_outputs=bundle.task_outputs,
        provenance=provenance,
    )


def bench_size(bundle: DetectionBundle, settings: BenchSettings) -> tuple[int, int]:
    """The one size of all images; raises InputError if the graph cannot run it."""
    size = settings.image_size or bundle.sizes.opt
    bundle.sizes.check(size)
    return size


def bench_inputs(
    bundle: DetectionBundle, inputs: Inputs, size: tuple[int, int], file: Path
) -> tuple[np.ndarray, Provenance]:
    """The images `[n, 3, H, W]`, by default the recorded samples, and where all comes from.

    Args:
        file: the one of the bundle's files that is benched.
    """
    entry, samples = bundle.manifest["files"][file.name], bundle.manifest["reference"]
    provenance = inputs.provenance(bundle.name, entry["sha256"], entry["size_bytes"])
    if inputs.images is not None or inputs.noise:
        return common_inputs(bundle, inputs, size), provenance
    return recorded_inputs(bundle, size), dataclasses.replace(
        provenance, images=f"recorded ({samples['source']})", images_sha256=samples["sha256"]
    )


def common_inputs(bundle: DetectionBundle, inputs: Inputs, size: tuple[int, int]) -> np.ndarray:
    """Pictures scaled to fit `size` and padded to it, or noise, `[n, 3, H, W]`."""
    if inputs.images is None:
        return np.random.default_rng(0).standard_normal((inputs.count, 3, *size), np.float32)
    exactly = SizeRange(size, size, size)
    pictures = inputs.images.arrays
    if isinstance(pictures, list):
        return np.stack([prepare(p, bundle.config, exactly).pixels for p in pictures])
    return np.stack([as_prepared(pixels, exactly).pixels for pixels in pictures])


def recorded_inputs(bundle: DetectionBundle, size: tuple[int, int]) -> np.ndarray:
    """The bundle's own samples of this size."""
    images = [sample.image.pixels for sample in bundle.load_samples()]
    chosen = [pixels for pixels in images if pixels.shape[1:] == size]
    if not chosen:
        raise InputError(
            f"{bundle.name} has no sample of {size[0]}x{size[1]} pixels", "add --images IMAGES"
        )
    return np.stack(chosen)


class WholeImages(Engine):
    """An engine that needs images alone: they fill their whole size, and are not rescaled."""

    def __init__(self, engine: Engine, size: tuple[int, int]) -> None:
        self.engine, self.size = engine, size

    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(s for s in self.engine.inputs() if s.name not in (IMAGE_SIZES, SCALE_FACTORS))

    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.engine.outputs()

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        batch = len(feeds[names.INPUT])
        whole = {
            IMAGE_SIZES: np.tile(np.array(self.size, np.float32), (batch, 1)),
            SCALE_FACTORS: np.ones((batch, 4), np.float32),
        }
        known = {spec.name for spec in self.engine.inputs()}
        extra = {name: value for name, value in whole.items() if name in known}
        return self.engine.run({**feeds, **extra}, outputs)

    def close(self) -> None:
        self.engine.close()

    @property
    def last_times(self) -> RunTimes | None:
        return self.engine.last_times

    @property
    def description(self) -> dict[str, Any]:
        return self.engine.description
