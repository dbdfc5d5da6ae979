"""COCO's files: annotations, ids, and what is told of bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from pycocotools import mask as coding

from svit_deploy import api
from svit_deploy.errors import InputError, UsageError
from svit_deploy.images.prepared import Prepared
from svit_deploy.images.synthetic import paint_scene
from svit_deploy.tasks.detect.coco import GroundTruth, run_lengths
from svit_deploy.tasks.detect.detections import Detections, paste_masks
from tests.shortened import SETTINGS
from tests.tasks.detect.annotated import annotate


@pytest.fixture
def found() -> Detections:
    boxes = np.array([[5, 5, 45, 35], [50, 10, 90, 55]], np.float32)
    masks = np.ones((2, 28, 28), np.float32)
    return Detections(boxes, np.array([0.9, 0.8], np.float32), np.array([3, 40]), masks)


def prepared(name: str) -> Prepared:
    return Prepared(np.zeros((3, 1, 1), np.float32), (1, 1), (1.0,) * 4, (60, 100), name)


@pytest.fixture
def config(detection_golden: Any) -> Any:
    return detection_golden("svit_mask_rcnn").detector.config


def test_results_are_what_the_evaluation_server_takes(
    config: Any, tmp_path: Path, found: Detections
) -> None:
    size = (60, 100)
    truth = GroundTruth(annotate(tmp_path / "a.json", [("x.jpg", size, found)]), config)
    results = json.loads(json.dumps(truth.results(prepared("folder/x.jpg"), found.arrays())))
    assert [one["image_id"] for one in results] == [1, 1]
    assert [one["category_id"] for one in results] == [10 + 3, 10 + 40]
    assert results[0]["bbox"] == [5, 5, 40, 30]
    assert results[1]["score"] == pytest.approx(0.8)
    shown = np.stack([coding.decode(one["segmentation"]) for one in results]).astype(bool)
    assert np.array_equal(shown, paste_masks(found.masks, found.boxes, size))
    assert run_lengths(found.above(0.85), size) == [results[0]["segmentation"]]
    with pytest.raises(InputError, match=r"y.jpg is not in the annotations"):
        truth.image_id("y.jpg")


def test_pictures_are_checked(config: Any, tmp_path: Path, found: Detections) -> None:
    size, none = (60, 100), found.above(2)
    pictures = [("x.jpg", size, found), ("deep/y.jpg", size, none), ("z.jpg", size, none)]
    truth = GroundTruth(annotate(tmp_path / "a.json", pictures), config)
    assert truth.check(["x.jpg", "deep/y.jpg", "z.jpg"]) == ()
    assert truth.check(["z.jpg", "x.jpg"]) == ("2 of the 3 annotated pictures are given",)
    for names, words in (
        (["x.jpg", "a/x.jpg"], "picture x.jpg is there 2 times"),
        (["z.jpg", "deep/y.jpg"], "has no object in these pictures"),
        (["x.jpg", "y.jpg"], "picture y.jpg is not in the annotations"),
    ):
        with pytest.raises(InputError, match=words):
            truth.check(names)


def test_ids_alone(config: Any, tmp_path: Path, found: Detections) -> None:
    """As in image_info_test-dev2017.json."""
    path = annotate(tmp_path / "a.json", [("x.jpg", (60, 100), found)])
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="it lacks 'annotations'"):
        GroundTruth(path, config)
    truth = GroundTruth(path, config, objects=False)
    assert len(truth.results(prepared("x.jpg"), found.arrays())) == 2


def test_other_files_are_refused(config: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[1, 2")
    with pytest.raises(InputError, match="no COCO annotation file"):
        GroundTruth(tmp_path / "bad.json", config)
    with pytest.raises(InputError, match="cannot be read"):
        GroundTruth(tmp_path / "missing.json", config)
    few = annotate(tmp_path / "few.json", [], classes=20)
    with pytest.raises(InputError, match="has 20 categories, the model 80 classes"):
        GroundTruth(few, config)


@pytest.mark.slow
def test_verify_tells_both_sides(checkpoint: Path, tmp_path: Path) -> None:
    picture = paint_scene(60, 90, np.random.default_rng(3))
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(picture).save(images / "x.png")
    options = {"task": "detect", "image_size": "96x128", "overrides": SETTINGS}
    bundle = api.export(checkpoint, tmp_path / "out", calibration=images, **options)
    expected = Detections.of(bundle.load_samples()[0].result.outputs[0])
    assert len(expected) > 0
    truth = annotate(tmp_path / "a.json", [("x.png", (60, 90), expected)])
    report = api.verify(
        bundle.path, against=checkpoint, images=images, annotations=truth, threads=1
    )
    assert report.passed, report.verdict
    precision = report.to_dict()["results"]["average_precision"]
    assert precision["box"]["exported"] == precision["box"]["reference"] > 0.9
    with pytest.raises(UsageError, match="needs a detector and the images"):
        api.verify(bundle.path, annotations=truth)
