"""Object detection and instance segmentation: Mask R-CNN around a backbone, as mmdet 2.28 has it.

SViT: Liu et al., "Revisiting Token Pruning for Object Detection and Instance Segmentation",
WACV 2024 (uzh-rpg/svit @ d2472c13).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svit_deploy import names
from svit_deploy.backbones.writer import GraphWriter
from svit_deploy.engines.base import Engine
from svit_deploy.errors import InputError, UsageError
from svit_deploy.images.prepared import Prepared, stacked
from svit_deploy.methods.families import family_of
from svit_deploy.model.arch import Arch
from svit_deploy.model.class_names import ClassNames, printable_names
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.keys import Shape, Tensors
from svit_deploy.model.result import Outputs
from svit_deploy.tasks.detect.average_precision import AveragePrecision
from svit_deploy.tasks.detect.coco import GroundTruth
from svit_deploy.tasks.detect.compare import (
    compare_detections,
    describe,
    faults,
    in_words,
    widened,
)
from svit_deploy.tasks.detect.detections import (
    BOXES,
    IMAGE_INDEX,
    LABELS,
    MASKS,
    OUTPUTS,
    SCORES,
    Detections,
    split_images,
)
from svit_deploy.tasks.detect.draw import describe_detections, draw_detections
from svit_deploy.tasks.detect.graph import IMAGE_SIZES, SCALE_FACTORS, MaskRcnnGraph
from svit_deploy.tasks.detect.keys import PREFIXES, HeadDims, head_shapes
from svit_deploy.tasks.detect.limits import DETECTION_LIMITS
from svit_deploy.tasks.detect.split import HEADS, SplitDetector, split_graph
from svit_deploy.tasks.features import FEATURES, Features
from svit_deploy.tasks.limits import Limits
from svit_deploy.tasks.numbers import DetectorNumbers
from svit_deploy.tasks.recorded import Wanted
from svit_deploy.tasks.runs import Judgement, Runs, Show
from svit_deploy.tasks.scores import Scores
from svit_deploy.tasks.task import Arrays

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference
    from svit_deploy.tasks.detect.reference import MaskRcnnReference

FOUND = (BOXES, SCORES, LABELS, MASKS)


class Detect(Features):
    """Features, and what Mask R-CNN finds in them."""

    name, noun = "detect", "detections"
    limits: ClassVar[Mapping[str, Limits]] = DETECTION_LIMITS
    numbers: ClassVar[type | None] = DetectorNumbers
    foreign_fields: ClassVar[tuple[str, ...]] = ()
    prefixes = PREFIXES
    heads: ClassVar[type | None] = HeadDims
    graph: ClassVar[type[MaskRcnnGraph]] = MaskRcnnGraph
    box_head: ClassVar[str] = "roi_head.bbox_head"
    inputs: ClassVar[tuple[str, ...]] = (names.INPUT, IMAGE_SIZES, SCALE_FACTORS)
    packages: ClassVar[tuple[tuple[str, str], ...]] = (("torchvision", "the reference detections"),)
    takes_truth = True
    shakes: ClassVar[Mapping[str, float]] = {"fp32": 1e-5, "fp16": 4e-3}
    formats, shown_by = ("pictures", "coco", "jsonl"), ("min_score",)
    engine_files: ClassVar[tuple[str, ...]] = (HEADS,)
    draws = True

    def check_precision(self, precision: str) -> None:
        if precision == "bf16":
            raise UsageError(
                "a whole detector in bfloat16 would move its boxes by pixels",
                "compute it in fp16, or export it with --task backbone",
            )
        if precision not in self.limits:
            raise UsageError(
                f"nobody has measured what {precision} does to the boxes of a whole detector",
                "use --precision fp16, or --task backbone",
            )

    # What a checkpoint tells.

    def infer_heads(self, tensors: Tensors, dims: Any) -> Any:
        box_head = self.box_head
        return replace(
            dims,
            num_classes=tensors.shape(f"{box_head}.fc_cls.weight", 2)[0] - 1,
            heads=HeadDims(
                fpn_dim=tensors.shape("neck.lateral_convs.0.conv.weight", 4)[0],
                fc_dim=tensors.shape(f"{box_head}.shared_fcs.0.weight", 2)[0],
            ),
        )

    def heads_from_arch(self, dims: Any, arch: Arch) -> Any:
        return replace(dims, num_classes=arch.num_classes or 80, heads=HeadDims(256, 1024))

    def head_shapes(self, dims: Any) -> dict[str, Shape]:
        return head_shapes(dims)

    def config_numbers(self, dims: Any, args: Mapping[str, Any]) -> DetectorNumbers:
        classes = _class_names(args.get("CLASSES"), dims.num_classes)
        heads = dims.heads
        return DetectorNumbers(fpn_dim=heads.fpn_dim, fc_dim=heads.fc_dim, class_names=classes)

    def check(self, config: ModelConfig) -> None:
        counts = {name: getattr(config.task, name) for name in ("fpn_dim", "fc_dim")}
        for name, count in {"num_classes": config.num_classes, **counts}.items():
            if count < 1:
                raise InputError(f"{name} is {count}", "give a complete checkpoint")

    # The graph and the reference.

    def feeds(self, images: Sequence[Prepared]) -> Arrays:
        return {
            names.INPUT: stacked(images),
            IMAGE_SIZES: np.array([image.image_size for image in images], np.float32),
            SCALE_FACTORS: np.array([image.scale for image in images], np.float32),
        }

    def fed(self, feeds: Mapping[str, np.ndarray]) -> list[Prepared]:
        images = []
        for pixels, size, scale in zip(*(feeds[name] for name in self.inputs), strict=True):
            height, width = (int(side) for side in size)
            across, down = scale.tolist()[:2]
            original = (max(round(height / down), 1), max(round(width / across), 1))
            images.append(Prepared(pixels, (height, width), tuple(scale.tolist()), original))
        return images

    def write(self, writer: GraphWriter) -> None:
        self.add_gate_outputs(writer, self.graph(writer).write())

    def outputs(self) -> tuple[str, ...]:
        return OUTPUTS

    def engine_graph(self, folder: Path, model: str) -> AbstractContextManager[Path]:
        return split_graph(folder, model)

    def with_rest(self, engine: Engine, folder: Path) -> Engine:
        return SplitDetector(engine, folder / HEADS)

    def reference_outputs(
        self, backbone: BackboneReference, output: Any, images: Sequence[Prepared], see: Any
    ) -> list[Outputs]:
        heads = self.heads_reference(backbone)
        results = super().reference_outputs(backbone, output, images, see)
        for i, (image, result) in enumerate(zip(images, results, strict=True)):
            maps = [feature[i : i + 1] for feature in output]
            found = heads.detect(maps, image.image_size, image.scale)
            result |= found.arrays()
        return results

    def heads_reference(self, backbone: BackboneReference) -> MaskRcnnReference:
        from svit_deploy.tasks.detect.reference import MaskRcnnReference

        return MaskRcnnReference(backbone)

    # Results.

    def read(
        self, outputs: Mapping[str, np.ndarray], images: Sequence[Prepared], config: ModelConfig
    ) -> list[Outputs]:
        results = super().read(outputs, images, config)
        if set(OUTPUTS) <= set(outputs):
            for result, found in zip(results, split_images(outputs, len(images)), strict=True):
                result |= found.arrays()
        return results

    def split(self, outputs: Mapping[str, np.ndarray], images: int) -> list[Arrays]:
        found = {name: outputs[name] for name in OUTPUTS}
        rest = {name: array for name, array in outputs.items() if name not in found}
        parts = super().split(rest, images)
        for image, part in enumerate(parts):
            own = found[IMAGE_INDEX] == image
            part |= {name: array[own] for name, array in found.items()}
            part[IMAGE_INDEX] = np.zeros_like(part[IMAGE_INDEX])
        return parts

    def join(self, parts: Sequence[Arrays]) -> Arrays:
        joined = super().join(parts)
        if IMAGE_INDEX in joined:
            counts = [len(part[IMAGE_INDEX]) for part in parts]
            joined[IMAGE_INDEX] += np.repeat(np.arange(len(parts)), counts)
        return joined

    def wanted(self, config: ModelConfig) -> Wanted:
        return super().wanted(config) | {
            BOXES: (np.float32, (-1, 4)),
            SCORES: (np.float32, (-1,)),
            LABELS: (np.int64, (-1,)),
            MASKS: (np.float32, (-1, 28, 28)),
        }

    # What `predict` shows.

    def shown(self, outputs: Outputs, show: Show) -> Outputs:
        return outputs | Detections.of(outputs).above(show.min_score).arrays()

    def draw(self, picture: np.ndarray, shown: Outputs, classes: ClassNames) -> np.ndarray:
        return draw_detections(picture, Detections.of(shown), classes)

    def describe(self, shown: Outputs, classes: ClassNames) -> dict[str, Any]:
        return describe_detections(Detections.of(shown), classes)

    # Parity.

    def fed_maps(self, config: ModelConfig) -> dict[str, tuple[int | str, ...]]:
        widths = family_of(config).backbone.feature_widths(config)
        return {
            name: ("batch", width, f"rows_{name}", f"columns_{name}")
            for name, width in zip(FEATURES, widths, strict=True)
        }

    def swayed(self, limits: Any, runs: Runs) -> Any:
        return widened(limits, _pairs(runs), runs.config)

    def judge_heads(self, runs: Runs) -> tuple[str, bool, str] | None:
        found = compare_detections(_pairs(runs), runs.config, runs.limits)
        wrong = faults(found, runs.limits, runs.config)
        return "heads by themselves", not wrong, ", ".join(wrong) or in_words(found, runs.limits)

    def compare(self, runs: Runs) -> tuple[bool, str]:
        ok, words = super().compare(runs)
        found = compare_detections(_pairs(runs), runs.config, runs.limits)
        wrong = [] if ok else [words]
        wrong += faults(found, runs.limits, runs.config)
        said = [words] if words else []
        return not wrong, ", ".join(wrong or [*said, in_words(found, runs.limits)])

    def finite(self, outputs: Outputs) -> bool:
        known = [outputs[name] for name in (BOXES, SCORES, MASKS) if name in outputs]
        return super().finite(outputs) and all(np.isfinite(array).all() for array in known)

    def judge(self, shown: Sequence[Outputs], runs: Runs) -> Judgement:
        result = super().judge(shown, runs)
        if not result.results["features"]:
            result.notes.append(
                "a detector's engine does not show its feature maps; its decisions and its "
                "detections are compared"
            )
        found = compare_detections(_pairs(runs), runs.config, runs.limits)
        wrong = faults(found, runs.limits, runs.config)
        detail = ", ".join(wrong) or in_words(found, runs.limits)
        result.checks.append(("detections", not wrong, detail))
        result.results |= {"detections": asdict(found)}
        result.lines += describe(found)
        return result

    def truth(self, path: Path, config: ModelConfig, *, objects: bool = True) -> GroundTruth:
        return GroundTruth(path, config, objects=objects)

    def scores(self, config: ModelConfig, truth: Any = None) -> Scores:
        return AveragePrecision(truth)

    def judge_scores(self, mine: Scores, theirs: Scores) -> Judgement:
        exported, reference = mine.values(), theirs.values()
        scores = {
            key.removesuffix("_ap"): {"exported": value, "reference": reference[key]}
            for key, value in exported.items()
            if key.endswith("_ap")
        }
        lines = [
            f"{kind} AP: {', '.join(f'{side} {value:.4f}' for side, value in of.items())}"
            for kind, of in scores.items()
        ]
        return Judgement(results={"average_precision": scores}, lines=lines)


def _class_names(given: object, classes: int) -> tuple[str, ...]:
    """The checkpoint's own, if it tells as many as it has classes."""
    if not isinstance(given, list | tuple) or len(given) != classes:
        return ()
    return printable_names(given, 80)


def _pairs(runs: Runs) -> list[tuple[Detections, Detections]]:
    """The detections of both sides, image by image."""
    pairs = zip(runs.actual, runs.expected, strict=True)
    return [(Detections.of(mine), Detections.of(theirs)) for mine, theirs in pairs]
