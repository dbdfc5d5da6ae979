"""Backbone features: four maps of an image of any size, for heads that come elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svit_deploy import names
from svit_deploy.backbones.adapter.sizes import STEP, STRIDES, feature_name
from svit_deploy.backbones.tokens import GraphTokens
from svit_deploy.backbones.writer import GraphWriter
from svit_deploy.errors import InputError
from svit_deploy.graph.builder import FLOAT
from svit_deploy.images.padded import pad_picture
from svit_deploy.images.prepared import Prepared, stacked
from svit_deploy.methods.families import family_of
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig, Preprocess
from svit_deploy.model.precision import FORMATS
from svit_deploy.model.result import Outputs, Result, Selected
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks.distance import token_error
from svit_deploy.tasks.limits import LIMITS, Limits
from svit_deploy.tasks.numbers import HEADS_ALONE, FeatureNumbers
from svit_deploy.tasks.recorded import (
    COMPUTED,
    ROUNDED,
    SHAKEN,
    Wanted,
    check_array,
    named,
    record_selection,
    restore_selection,
    rounded_runs,
    wanted_selection,
    with_rounded,
)
from svit_deploy.tasks.runs import Judgement, Part, Runs, StageLimit
from svit_deploy.tasks.task import Arrays, Task

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference

DEFAULT_SIZES = SizeRange((64, 64), (800, 1216), (1344, 1344), STEP)
"""Every size that the official test pipeline makes of pictures up to 1 : 20, and smaller inputs."""
CELLS = 2048
"""At most so many places of each feature map are compared and recorded."""
MAX_SAMPLES = 64
FEATURES = tuple(feature_name(stride) for stride in STRIDES)
"""The feature maps, by the names of the graph's values, finest first."""


@dataclass(frozen=True)
class FeatureLimits(Limits):
    """Largest accepted differences for one precision, beside those of any task.

    Attributes:
        stage: token error of an injector, an extractor, the convolutional branch or a feature map
            by itself; a feature map's tokens are its places.
        features: of a feature map of the whole model, where its keep masks are the reference's.
    """

    stage: float
    features: float


FEATURE_LIMITS = {
    "fp32": FeatureLimits(**asdict(LIMITS["fp32"]), stage=2e-5, features=1e-4),
    "fp16": FeatureLimits(**asdict(LIMITS["fp16"]), stage=1e-2, features=5e-2),
    "bf16": FeatureLimits(**asdict(LIMITS["bf16"]), stage=6e-2, features=3e-1),
    **{name: FeatureLimits(**asdict(LIMITS[name]), stage=3e-1, features=1.0) for name in FORMATS},
}


class Features(Task):
    name, noun = "backbone", "features"
    staged = "features"
    many_sizes = True
    samples, painted = 4, 2
    calibration_images = 32  # their feature maps are all in memory, 60 MB of a full size
    random_images, random_size = 8, (320, 480)
    together = 1
    engine_batch = "1"
    typical_size = DEFAULT_SIZES.opt
    limits: ClassVar[Mapping[str, Limits]] = FEATURE_LIMITS
    numbers: ClassVar[type | None] = FeatureNumbers
    foreign_fields: ClassVar[tuple[str, ...]] = HEADS_ALONE
    crops = False
    formats: ClassVar[tuple[str, ...]] = ("pictures",)
    no_results: ClassVar[Mapping[str, Any]] = {
        "features": {},
        "detections": None,
        "average_precision": {},
    }

    def config_numbers(self, dims: Any, args: Mapping[str, Any]) -> Any:
        return FeatureNumbers()

    def preprocess(self, arch: Arch) -> Preprocess:
        return Preprocess(arch.mean, arch.std, 1.0, "bilinear")

    def check(self, config: ModelConfig) -> None:
        if config.num_classes:
            raise InputError(
                f"num_classes is {config.num_classes}, and a backbone alone has no classes",
                "use --task detect",
            )

    # Images.

    def parse_sizes(self, text: str | None) -> SizeRange | None:
        return None if text is None else SizeRange.parse(text, STEP)

    def sizes(self, config: ModelConfig, wanted: SizeRange | None) -> SizeRange:
        return wanted or DEFAULT_SIZES

    def prepare(self, picture: np.ndarray, config: ModelConfig, sizes: SizeRange) -> Prepared:
        return pad_picture(picture, config.task.resize, config.preprocess, sizes)

    def feeds(self, images: Sequence[Prepared]) -> Arrays:
        return {names.INPUT: stacked(images)}

    # The graph and the reference.

    def write(self, writer: GraphWriter) -> None:
        features, tokens = writer.run(writer.image_input())
        graph, widths = writer.graph, family_of(writer.config).backbone.feature_widths
        maps = map(graph.to_float32, features)
        for stride, feature, width in zip(STRIDES, maps, widths(writer.config), strict=True):
            shape = (writer.batch, width, *writer.map_shape(stride))
            graph.output(graph.rename(feature, feature_name(stride)), FLOAT, shape)
        self.add_gate_outputs(writer, tokens)

    def add_gate_outputs(self, writer: GraphWriter, tokens: GraphTokens) -> None:
        writer.add_gate_outputs(tokens.decided)

    def outputs(self) -> tuple[str, ...]:
        return FEATURES

    def inner(self) -> tuple[str, ...]:
        return FEATURES

    def reference_outputs(
        self, backbone: BackboneReference, output: Any, images: Sequence[Prepared], see: Any
    ) -> list[Outputs]:
        maps = {name: feature.numpy() for name, feature in zip(FEATURES, output, strict=True)}
        output[:] = [see(name, feature) for name, feature in zip(FEATURES, output, strict=True)]
        return self.read(maps, images, backbone.config)

    # Results.

    def read(
        self, outputs: Mapping[str, np.ndarray], images: Sequence[Prepared], config: ModelConfig
    ) -> list[Outputs]:
        """Of each feature map the places that are recorded, `[C, cells]`."""
        return [
            {
                feature_name(stride): sample_cells(outputs[feature_name(stride)][i], stride, image)
                for stride in STRIDES
                if feature_name(stride) in outputs
            }
            for i, image in enumerate(images)
        ]

    def record(self, parts: Sequence[Part], config: ModelConfig) -> Arrays:
        """Image by image: `0.pixels`, `0.geometry`, `0.keep_mask`, ..."""
        arrays: Arrays = {}
        images = [(image, part, i) for part in parts for i, image in enumerate(part.images)]
        for number, (image, part, i) in enumerate(images):
            result = part.result[i : i + 1]
            own = {
                "pixels": image.pixels,
                "geometry": np.array([*image.image_size, *image.scale[:2]], np.float64),
            }
            selected = record_selection(config.at(image.size), result)
            for prefix, run in rounded_runs(part).items():
                selected |= named(prefix, record_selection(config.at(image.size), run[i : i + 1]))
            own |= {name: array[0] for name, array in selected.items()} | result.outputs[0]
            if part.shaken is not None:
                own |= {SHAKEN + name: array for name, array in part.shaken[i].items()}
            arrays |= {f"{number}.{name}": array for name, array in own.items()}
        return arrays

    def wanted(self, config: ModelConfig) -> Wanted:
        """Type and shape of each output, of an image of the configuration's size."""
        widths = family_of(config).backbone.feature_widths(config)
        return {
            feature_name(stride): (np.float32, (width, len(cells_of(config.image_size, stride))))
            for stride, width in zip(STRIDES, widths, strict=True)
        }

    def restore(
        self,
        load: Callable[[Sequence[str]], Arrays],
        count: int,
        config: ModelConfig,
        sizes: SizeRange,
        together: int,
    ) -> list[Part]:
        """Each by itself, whatever `together` says: they may differ in size."""
        if not 1 <= count <= MAX_SAMPLES:
            raise ValueError(f"it cannot hold {count} images")
        selection = wanted_selection(config)
        keys = ["pixels", "geometry", *self.wanted(config), *selection]
        keys += [prefix + name for prefix in (ROUNDED, COMPUTED) for name in selection]
        keys += [SHAKEN + name for name in self.wanted(config)]
        arrays = load([f"{i}.{key}" for i in range(count) for key in keys])
        return [self._restore_one(arrays, i, config, sizes) for i in range(count)]

    def _restore_one(
        self, arrays: Arrays, number: int, config: ModelConfig, sizes: SizeRange
    ) -> Part:
        def known(name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
            key = f"{number}.{name}"
            return check_array(key, arrays.get(key), dtype, shape)

        pixels = known("pixels", np.float32, (3, -1, -1))
        size = (pixels.shape[1], pixels.shape[2])
        try:
            sizes.check(size)
        except InputError as error:
            raise ValueError(error.message) from None
        config = config.at(size)
        height, width, *scale = known("geometry", np.float64, (4,)).tolist()
        image = Prepared(
            pixels,
            (round(height), round(width)),
            (scale[0], scale[1], scale[0], scale[1]),
            size,
            f"sample-{number}",
        )
        outputs = {n: known(n, *wanted) for n, wanted in self.wanted(config).items()}

        def selection(prefix: str) -> tuple[Selected, Arrays]:
            wanted = wanted_selection(config)
            arrays = {name: known(prefix + name, *wanted[name])[None] for name in wanted}
            return restore_selection(config, arrays, 1)

        runs = {  # decisions alone: maps are large
            prefix: Result([{}], *selection(prefix))
            for prefix in (ROUNDED, COMPUTED)
            if f"{number}.{prefix}{names.MARGIN}" in arrays
        }
        found = {n: w for n, w in self.wanted(config).items() if n not in self.inner()}
        shaken = None
        if self.shakes and all(f"{number}.{SHAKEN}{name}" in arrays for name in found):
            shaken = [{name: known(SHAKEN + name, *wanted) for name, wanted in found.items()}]
        exact = Result([outputs], *selection(""))
        return with_rounded(Part((image,), exact, shaken=shaken), runs)

    # Parity.

    def widened(self, limits: Any, exact: Any, allowed: Mapping[str, float]) -> Any:
        if not allowed:
            return limits
        return replace(limits, features=exact.features + max(allowed.values()))

    def stages(self, limits: Any, alone: bool) -> list[StageLimit]:
        limit = limits.stage if alone else limits.features
        return [StageLimit(f"features of {_label(name)}", name, limit) for name in FEATURES]

    def stage_errors(self, runs: Runs) -> dict[str, float]:
        return feature_errors(runs)

    def compare(self, runs: Runs) -> tuple[bool, str]:
        errors = feature_errors(runs)
        if not errors:
            return True, ""
        error = max(errors.values())
        if not error <= runs.limits.features:
            return False, f"features differ by {error:.2g} (limit {runs.limits.features:.2g})"
        return True, f"features within {error:.2g}, limit {runs.limits.features:.2g}"

    def finite(self, outputs: Outputs) -> bool:
        return all(np.isfinite(outputs[name]).all() for name in FEATURES if name in outputs)

    def judge(self, shown: Sequence[Outputs], runs: Runs) -> Judgement:
        """The feature maps of the whole model."""
        errors = feature_errors(runs)
        result = Judgement(results={"features": errors})
        if not errors:
            return result
        broken = sum(not self.finite(outputs) for outputs in shown)
        worst = max(errors, key=lambda name: errors[name])
        detail = f"largest error {errors[worst]:.2g} ({worst}), limit {runs.limits.features:.2g}"
        if broken:
            detail = f"NaN or infinity in {broken} of {len(shown)} images"
        holds = errors[worst] <= runs.limits.features and not broken
        result.checks.append(("features", holds, detail))
        result.lines += [f"{name}: largest error {error:.2g}" for name, error in errors.items()]
        return result


def cells_of(size: tuple[int, int], stride: int) -> np.ndarray:
    """Which places of a feature map, counted row by row, are compared and recorded."""
    cells = (size[0] // stride) * (size[1] // stride)
    return np.linspace(0, cells - 1, min(cells, CELLS)).astype(np.int64)


def sample_cells(feature: np.ndarray, stride: int, image: Prepared) -> np.ndarray:
    """Those of an image's feature map `[C, h, w]`, as `[C, cells]`."""
    flat = feature.reshape(len(feature), -1)
    return np.ascontiguousarray(flat[:, cells_of(image.size, stride)])


def feature_errors(runs: Runs) -> dict[str, float]:
    """The largest error of each feature map that both sides show."""
    errors: dict[str, float] = {}
    for mine, theirs in zip(runs.actual, runs.expected, strict=True):
        for name in FEATURES:
            if name in mine and name in theirs:
                error = token_error(mine[name].T, theirs[name].T)
                errors[name] = max(errors.get(name, 0.0), error)
    return errors


def _label(name: str) -> str:
    """`stride_4` -> `stride 4`"""
    return name.replace("_", " ")
