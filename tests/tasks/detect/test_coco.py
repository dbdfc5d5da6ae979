"""Average precision through pycocotools."""

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

from svit_deploy import api
from svit_deploy.errors import InputError, UsageError
from svit_deploy.images.synthetic import paint_scene
from svit_deploy.tasks.detect.coco import GroundTruth
from svit_deploy.tasks.detect.detections import Detections


def annotate(path: Path, found: Detections, name: str, size: tuple[int, int]) -> Path:
    """Writes annotations in which exactly these detections are true."""
    boxes = [[x, y, r - x, b - y] for x, y, r, b in found.boxes.tolist()]
    corners = [[x, y, r, y, r, b, x, b] for x, y, r, b in found.boxes.tolist()]
    content = {
        "images": [{"id": 7, "file_name": name, "height": size[0], "width": size[1]}],
        "categories": [{"id": 10 + i, "name": f"c{i}"} for i in range(80)],
        "annotations": [
            {
                "id": 1 + i,
                "image_id": 7,
                "category_id": 10 + int(found.labels[i]),
                "bbox": box,
                "area": box[2] * box[3],
                "segmentation": [corner],
                "iscrowd": 0,
            }
            for i, (box, corner) in enumerate(zip(boxes, corners, strict=True))
        ],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def found() -> Detections:
    boxes = np.array([[5, 5, 45, 35], [50, 10, 90, 55]], np.float32)
    masks = np.ones((2, 28, 28), np.float32)
    return Detections(boxes, np.array([0.9, 0.8], np.float32), np.array([3, 40]), masks)


def test_perfect_and_wrong_detections(
    detection_golden: Any, tmp_path: Path, found: Detections
) -> None:
    config, size = detection_golden("svit_mask_rcnn").detector.config, (60, 100)
    truth = GroundTruth(annotate(tmp_path / "a.json", found, "x.jpg", size), config)
    perfect = truth.average_precision(["folder/x.jpg"], [found], [size])
    assert perfect == pytest.approx({"box": 1.0, "mask": 1.0})
    wrong = Detections(found.boxes, found.scores, found.labels + 1, found.masks)
    assert truth.average_precision(["x.jpg"], [wrong], [size]) == {"box": 0, "mask": 0}
    none = Detections(*(v[:0] for v in (found.boxes, found.scores, found.labels, found.masks)))
    assert truth.average_precision(["x.jpg"], [none], [size]) == {"box": 0, "mask": 0}
    with pytest.raises(InputError, match=r"y.jpg is not in the annotations"):
        truth.average_precision(["y.jpg"], [found], [size])


def test_annotations_that_count_from_zero(
    detection_golden: Any, tmp_path: Path, found: Detections
) -> None:
    config, size = detection_golden("svit_mask_rcnn").detector.config, (60, 100)
    path = annotate(tmp_path / "a.json", found, "x.jpg", size)
    content = json.loads(path.read_text())
    for number, entry in enumerate(content["annotations"]):
        entry["id"] = number
    path.write_text(json.dumps(content))
    precision = GroundTruth(path, config).average_precision(["x.jpg"], [found], [size])
    assert precision == pytest.approx({"box": 1.0, "mask": 1.0})


def test_other_files_are_refused(detection_golden: Any, tmp_path: Path, found: Detections) -> None:
    config = detection_golden("svit_mask_rcnn").detector.config
    (tmp_path / "bad.json").write_text("[1, 2")
    with pytest.raises(InputError, match="no COCO annotation file"):
        GroundTruth(tmp_path / "bad.json", config)
    with pytest.raises(InputError, match="cannot be read"):
        GroundTruth(tmp_path / "missing.json", config)
    content = json.loads(annotate(tmp_path / "a.json", found, "x.jpg", (60, 100)).read_text())
    content |= {"categories": content["categories"][:20], "annotations": []}
    (tmp_path / "few.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="has 20 categories, the model 80 classes"):
        GroundTruth(tmp_path / "few.json", config)


@pytest.mark.slow
def test_verify_tells_both_sides(checkpoint: Path, tmp_path: Path) -> None:
    picture = paint_scene(60, 90, np.random.default_rng(3))
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(picture).save(images / "x.png")
    options = {"task": "detect", "image_size": "96x128", "overrides": {"num_heads": "6"}}
    bundle = api.export(checkpoint, tmp_path / "out", calibration=images, **options)
    expected = Detections.of(bundle.load_samples()[0].result.outputs[0])
    assert len(expected) > 0
    truth = annotate(tmp_path / "a.json", expected, "x.png", (60, 90))
    report = api.verify(
        bundle.path, against=checkpoint, images=images, annotations=truth, threads=1
    )
    assert report.passed, report.verdict
    precision = report.to_dict()["results"]["average_precision"]
    assert precision["box"]["exported"] == precision["box"]["reference"] > 0.9
    with pytest.raises(UsageError, match="needs a detector and the images"):
        api.verify(bundle.path, annotations=truth)
