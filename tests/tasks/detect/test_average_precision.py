"""Average precision: pycocotools' own figures, and intervals over images."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from svit_deploy.images.prepared import Prepared
from svit_deploy.tasks.detect.average_precision import AveragePrecision, precision
from svit_deploy.tasks.detect.coco import GroundTruth
from svit_deploy.tasks.detect.detections import Detections
from tests.tasks.detect.annotated import annotate

CLASSES, SIZE = 4, (60, 80)


def random_detections(rng: np.random.Generator, count: int) -> Detections:
    corners = rng.uniform(0, 40, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 20, (count, 2))], axis=1)
    scores = np.sort(rng.choice(np.linspace(0.1, 0.9, 40), count))[::-1]
    return Detections(
        boxes.astype(np.float32),
        scores.astype(np.float32),
        rng.integers(CLASSES, size=count),
        np.ones((count, 28, 28), np.float32),
    )


def moved(found: Detections, rng: np.random.Generator) -> Detections:
    """What a fair detector makes of objects: shifted, some missed, some invented, some mistaken."""
    shift = rng.normal(0, 1.5, (len(found), 4)).astype(np.float32)
    labels = np.where(rng.random(len(found)) < 0.1, rng.integers(CLASSES), found.labels)
    extra = random_detections(rng, 2)
    parts = [
        Detections(found.boxes + shift, found.scores, labels, found.masks).above(0.3),
        extra,
    ]
    joined = [np.concatenate([getattr(p, n) for p in parts]) for n in FIELDS]
    order = np.argsort(-joined[1], kind="stable")
    return Detections(*(values[order] for values in joined))


FIELDS = ("boxes", "scores", "labels", "masks")


def prepared(name: str) -> Prepared:
    return Prepared(np.zeros((3, 1, 1), np.float32), (1, 1), (1.0,) * 4, SIZE, name)


@pytest.fixture
def data(tmp_path: Path) -> Any:
    """Twelve pictures: annotations, of which one is a crowd, and detections."""
    rng = np.random.default_rng(5)
    objects = [random_detections(rng, int(rng.integers(0, 6))) for _ in range(12)]
    names = [f"{i:02d}.jpg" for i in range(12)]
    pictures = [(name, SIZE, found) for name, found in zip(names, objects, strict=True)]
    path = annotate(tmp_path / "truth.json", pictures, CLASSES)
    content = json.loads(path.read_text())
    content["annotations"][3]["iscrowd"] = 1
    content["annotations"][3]["segmentation"] = {"size": list(SIZE), "counts": [0, 900, 3900]}
    path.write_text(json.dumps(content))
    found = [moved(one, rng) for one in objects]
    truth = GroundTruth(path, SimpleNamespace(num_classes=CLASSES))
    return SimpleNamespace(path=path, truth=truth, names=names, found=found)


def scored(data: Any, numbers: Any = range(12)) -> AveragePrecision:
    scores = AveragePrecision(data.truth)
    for number in numbers:
        scores.add(prepared(data.names[number]), data.found[number].arrays())
    return scores


def official(data: Any, numbers: Any = range(12)) -> dict[str, float]:
    """The figures of pycocotools' own summary."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    figures = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data.path))
        results = [
            r
            for i in numbers
            for r in data.truth.results(prepared(data.names[i]), data.found[i].arrays())
        ]
        for kind, name in (("box", "bbox"), ("mask", "segm")):
            evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), name)
            evaluation.params.imgIds = [data.truth.image_id(data.names[i]) for i in numbers]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            figures |= {
                f"{kind}_{key}": float(evaluation.stats[i])
                for i, key in enumerate(("ap", "ap50", "ap75"))
            }
    return figures


def test_figures_are_those_of_pycocotools(data: Any) -> None:
    found = scored(data).values()
    assert found == pytest.approx(official(data), abs=1e-12)
    assert 0.1 < found["box_ap"] < found["box_ap50"] < 1
    assert found["box_ap"] != found["mask_ap"]
    some = (7, 2, 9, 4)  # in another order, and not all of them
    assert scored(data, some).values() == pytest.approx(official(data, some), abs=1e-12)


def test_a_weight_of_two_is_an_image_twice(data: Any, tmp_path: Path) -> None:
    weights = np.array([2, 0, 1, 3, 1, 1, 0, 0, 2, 1, 0, 1])
    drawn = np.repeat(np.arange(12), weights)
    content = json.loads(data.path.read_text())
    images, annotations, names = [], [], []
    for number, original in enumerate(drawn.tolist(), 1):
        images.append(content["images"][original] | {"id": number, "file_name": f"{number}"})
        names.append(f"{number}")
        annotations += [
            one | {"image_id": number}
            for one in content["annotations"]
            if one["image_id"] == original + 1
        ]
    annotations = [one | {"id": i} for i, one in enumerate(annotations, 1)]
    path = tmp_path / "again.json"
    path.write_text(json.dumps(content | {"images": images, "annotations": annotations}))
    again = SimpleNamespace(
        path=path,
        truth=GroundTruth(path, SimpleNamespace(num_classes=CLASSES)),
        names=names,
        found=[data.found[i] for i in drawn],
    )
    expected = official(again, range(len(drawn)))
    found = scored(data)
    assert found._evaluate(found._ranked(), weights) == pytest.approx(expected, abs=1e-12)


def test_intervals_are_drawn_by_a_seed_and_hold_the_figure(data: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("svit_deploy.tasks.scores.RESAMPLES", 60)
    told: list[float] = []
    scores = scored(data)
    first, again, other = (scores.measures(seed, told.append) for seed in (0, 0, 1))
    assert first == again != other
    for measure in first:
        assert measure.low is not None and measure.high is not None
        assert 0 <= measure.low < measure.value < measure.high <= 1
    assert [measure.label for measure in first[:3]] == ["box AP", "box AP50", "box AP75"]
    assert len(told) == 180 and told[:60] == sorted(told[:60])


def test_few_images_have_no_interval(data: Any) -> None:
    (measure, *_) = scored(data, range(3)).measures(0, lambda _: None)
    assert (measure.low, measure.high, measure.interval) == (None, None, "")


def test_perfect_wrong_and_no_detections(tmp_path: Path) -> None:
    found = Detections(
        np.array([[5, 5, 45, 35], [50, 10, 75, 55]], np.float32),
        np.array([0.9, 0.8], np.float32),
        np.array([1, 3]),
        np.ones((2, 28, 28), np.float32),
    )
    path = annotate(tmp_path / "a.json", [("x.jpg", SIZE, found)], CLASSES)
    truth = GroundTruth(path, SimpleNamespace(num_classes=CLASSES))
    wrong = Detections(found.boxes, found.scores, found.labels - 1, found.masks)
    for shown, value in ((found, 1.0), (wrong, 0.0), (found.above(0.95), 0.0)):
        scores = AveragePrecision(truth)
        scores.add(prepared("folder/x.jpg"), shown.arrays())
        assert scores.values() == pytest.approx(dict.fromkeys(scores.values(), value))


def test_what_is_not_finite_is_not_found(data: Any) -> None:
    found = data.found[0]
    boxes = found.boxes.copy()
    boxes[0] = np.nan
    scores, expected = AveragePrecision(data.truth), AveragePrecision(data.truth)
    image = prepared(data.names[0])
    scores.add(image, found.arrays() | {"boxes": boxes})
    expected.add(image, {name: values[1:] for name, values in found.arrays().items()})
    assert scores.values() == expected.values()


def test_a_class_without_objects_says_nothing(data: Any) -> None:
    (one, *_) = scored(data)._ranked()["box"]
    assert precision(one, np.zeros(12, int)) is None
