"""COCO's average precision of boxes and masks, with bootstrap intervals over images.

pycocotools matches an image's detections with its objects. What is made of all images' matches,
the area under the precision envelope at 101 recalls, is its `COCOeval.accumulate` with a weight
for each image, so that images can be drawn again without matching them again.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from svit_deploy.images.prepared import Prepared
from svit_deploy.model.result import Outputs
from svit_deploy.tasks.detect.coco import GroundTruth
from svit_deploy.tasks.detect.detections import Detections
from svit_deploy.tasks.scores import Measure, Scores, bootstrap_intervals

KINDS = {"box": "bbox", "mask": "segm"}
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the IoU, as COCO
RECALLS = np.linspace(0, 1, 101)
_FIGURES = {"ap": slice(None), "ap50": slice(0, 1), "ap75": slice(5, 6)}
_LABELS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}


@dataclass(frozen=True)
class Matches:
    """An image's detections, each matched with an object or not.

    Attributes:
        image: its number, and `key`, its id in the annotations.
        category, score: of each detection `[D]`.
        right, ignored: `[T, D]` bool, whether it found an object at each IoU, and whether it does
            not count, as on a crowd.
        objects: categories of the objects to be found.
    """

    image: int
    key: int
    category: np.ndarray
    score: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray


@dataclass(frozen=True)
class Ranked:
    """One class's detections in all images, the highest score first, and its objects.

    Attributes:
        image: of each detection `[D]`, its number.
        right, ignored: at each IoU, places among the detections, ascending.
        objects: images' numbers, once for each object.
    """

    image: np.ndarray
    right: list[np.ndarray]
    ignored: list[np.ndarray]
    objects: np.ndarray


def ranked(matches: Sequence[Matches]) -> list[Ranked]:
    """Each class of some images, of equal scores the image of the lower id first."""
    parts = sorted(matches, key=lambda one: one.key)

    def joined(values: Callable[[Matches], np.ndarray]) -> np.ndarray:
        return np.concatenate([values(one) for one in parts], axis=-1)

    image = joined(lambda one: np.full(len(one.score), one.image))
    of_objects = joined(lambda one: np.full(len(one.objects), one.image))
    category, score = joined(lambda one: one.category), joined(lambda one: one.score)
    right, ignored = joined(lambda one: one.right), joined(lambda one: one.ignored)
    objects = joined(lambda one: one.objects)
    order = np.argsort(-score, kind="stable")
    found = []
    for number in np.unique(objects):
        own = order[category[order] == number]
        hits, passed = (
            [np.flatnonzero(row) for row in flags[:, own]] for flags in (right, ignored)
        )
        found.append(Ranked(image[own], hits, passed, of_objects[objects == number]))
    return found


class AveragePrecision(Scores):
    """AP at IoU 0.5 to 0.95, at 0.5 and at 0.75, of boxes and of masks."""

    def __init__(self, truth: GroundTruth) -> None:
        self.truth = truth
        self._matches: dict[str, list[Matches]] = {kind: [] for kind in KINDS}

    def add(self, image: Prepared, outputs: Outputs) -> None:
        found = Detections.of(outputs).finite()
        results = self.truth.results(image, found.arrays())
        number, self.images = self.images, self.images + 1
        for kind, name in KINDS.items():
            self._matches[kind].append(_match(self.truth, image.name, results, name, number))

    def values(self) -> dict[str, float]:
        return self._evaluate(self._ranked(), np.ones(self.images, np.int64))

    def measures(self, seed: int, progress: Callable[[float], None]) -> list[Measure]:
        classes = self._ranked()
        values = self._evaluate(classes, np.ones(self.images, np.int64))
        intervals = bootstrap_intervals(
            self.images, lambda weights: self._evaluate(classes, weights), seed, progress
        )
        labels = {
            f"{kind}_{key}": f"{kind} {label}" for kind in KINDS for key, label in _LABELS.items()
        }
        return [
            Measure(key, labels[key], value, *intervals.get(key, (None, None)))
            for key, value in values.items()
        ]

    def _ranked(self) -> dict[str, list[Ranked]]:
        return {kind: ranked(matches) for kind, matches in self._matches.items()}

    def _evaluate(self, classes: dict[str, list[Ranked]], weights: np.ndarray) -> dict[str, float]:
        """The figures, each image counted so often `[n]`; 0 where there is nothing to find."""
        figures: dict[str, float] = {}
        for kind, of_kind in classes.items():
            found = [one for one in (precision(c, weights) for c in of_kind) if one is not None]
            mean = np.mean(found, axis=0) if found else np.zeros(len(THRESHOLDS))
            figures |= {f"{kind}_{key}": float(mean[at].mean()) for key, at in _FIGURES.items()}
        return figures


def precision(found: Ranked, weights: np.ndarray) -> np.ndarray | None:
    """A class's mean precision over the recalls, at each IoU `[T]`; None without an object.

    Only detections that are right raise the recall, and the envelope has its corners there.

    Args:
        weights: how often each image counts `[n]`.
    """
    objects = weights[found.objects].sum()
    if not objects:
        return None
    counts = weights[found.image]
    shown = np.cumsum(counts)
    means = np.zeros(len(found.right))
    for number, (right, ignored) in enumerate(zip(found.right, found.ignored, strict=True)):
        hits, counted = np.cumsum(counts[right]), shown[right]
        if len(ignored):
            before = np.concatenate([[0], np.cumsum(counts[ignored])])
            counted = counted - before[np.searchsorted(ignored, right)]
        share = hits / (counted + np.spacing(1))
        envelope = np.maximum.accumulate(share[::-1])[::-1]
        places = np.searchsorted(hits / objects, RECALLS, side="left")
        reached = places[places < len(hits)]  # beyond the last recall the precision is 0
        means[number] = envelope[reached].sum() / len(RECALLS)
    return means


def _match(
    truth: GroundTruth, name: str, results: list[dict[str, Any]], kind: str, number: int
) -> Matches:
    """An image's detections matched with its objects by pycocotools."""
    from pycocotools.cocoeval import COCOeval

    image = truth.image_id(name)
    own = [dict(one) for one in truth.coco.imgToAnns.get(image, ())]  # pycocotools writes in them
    found = [
        result | {"id": i, "iscrowd": 0, "area": result["bbox"][2] * result["bbox"][3]}
        for i, result in enumerate(results, 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_subset(truth, image, own), _subset(truth, image, found), kind)
        parameters = evaluation.params
        parameters.imgIds, parameters.maxDets = [image], [100]
        parameters.catIds = sorted({one["category_id"] for one in own + found})
        parameters.areaRng, parameters.areaRngLbl = parameters.areaRng[:1], ["all"]
        evaluation.evaluate()
    objects = [one["category_id"] for one in own if not one["iscrowd"]]
    return _matches(number, image, [one for one in evaluation.evalImgs if one], objects)


def _matches(
    number: int, image: int, classes: Sequence[dict[str, Any]], objects: Sequence[int]
) -> Matches:
    """What pycocotools says of an image, class by class."""
    category: list[int] = []
    score: list[float] = []
    right: list[np.ndarray] = [np.zeros((len(THRESHOLDS), 0), bool)]
    ignored = list(right)
    for one in classes:
        scores = one["dtScores"]
        shape = len(THRESHOLDS), len(scores)
        passed = np.asarray(one["dtIgnore"], bool).reshape(shape)
        category += [one["category_id"]] * len(scores)
        score += scores
        ignored.append(passed)
        right.append(np.asarray(one["dtMatches"], bool).reshape(shape) & ~passed)
    return Matches(
        number,
        image,
        np.array(category, int),
        np.array(score, float),
        np.concatenate(right, axis=1),
        np.concatenate(ignored, axis=1),
        np.array(objects, int),
    )


def _subset(truth: GroundTruth, image: int, annotations: list[dict[str, Any]]) -> Any:
    """A data set of one image."""
    from pycocotools.coco import COCO

    subset = COCO()
    subset.dataset = {
        "images": [truth.coco.imgs[image]],
        "categories": truth.coco.dataset["categories"],
        "annotations": annotations,
    }
    subset.createIndex()
    return subset
