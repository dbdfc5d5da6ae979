"""COCO files of anyone: the first entry at fault is named, in one sentence."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from svit_deploy.cli import main
from svit_deploy.errors import InputError
from svit_deploy.tasks.detect.annotations import read_annotations
from tests.told import SETTINGS, as_options

Change = Callable[[dict[str, Any]], object]
CONTENT: dict[str, Any] = {
    "info": {"year": 2017},
    "images": [{"id": 7, "file_name": "a.jpg", "height": 4, "width": 6, "license": 1}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
    "annotations": [
        {
            "id": 0,
            "image_id": 7,
            "category_id": 9,
            "bbox": [0, 0.5, 3, 2],
            "area": 6.0,
            "segmentation": [[0, 0, 3, 0, 3, 2]],
            "iscrowd": 0,
        },
        {
            "id": 0,
            "image_id": 7,
            "category_id": 3,
            "bbox": [0, 0, 1, 1],
            "area": 1,
            "segmentation": {"size": [4, 6], "counts": [0, 1, 23]},
        },
    ],
}


def of(group: str, **changes: Any) -> Change:
    """Changes the first entry of a group; None takes a key away."""

    def change(content: dict[str, Any]) -> None:
        for key, value in changes.items():
            content[group][0][key] = value
            if value is None:
                del content[group][0][key]

    return change


def again(group: str, **changes: Any) -> Change:
    """Puts the first entry of a group there once more."""
    return lambda content: content[group].append({**content[group][0], **changes})


POLYGON = r"annotations\[0\].segmentation is .*, not polygons \[\[x, y, .* or an RLE of the image's"
RLE = {"size": [4, 6], "counts": [0, 1, 23]}
FAULTS: dict[str, tuple[Change, str]] = {
    "no images": (lambda c: c.pop("images"), "it lacks 'images'"),
    "no categories": (lambda c: c.pop("categories"), "it lacks 'categories'"),
    "no annotations": (lambda c: c.pop("annotations"), "it lacks 'annotations'"),
    "images by name": (lambda c: c.update(images={"a": 1}), "'images' is not a list"),
    "null": (lambda c: c.update(annotations=None), "'annotations' is not a list"),
    "a bare number": (lambda c: c["annotations"].insert(1, 5), r"annotations\[1\] is not an obj"),
    "no image id": (of("images", id=None), r"images\[0\] lacks 'id'"),
    "an id of text": (of("images", id="7"), r"images\[0\].id is '7', not a whole number"),
    "no name": (of("images", file_name=None), r"images\[0\] lacks 'file_name'"),
    "a number's name": (
        of("images", file_name=3),
        r"images\[0\].file_name is 3, not a file's name",
    ),
    "no height": (of("images", height=None), r"images\[0\] lacks 'height'"),
    "no pixels": (of("images", width=0), r"images\[0\].width is 0, not a number of pixels"),
    "an image twice": (again("images", file_name="b"), r"images\[1\].id 7 stands there twice"),
    "a name twice": (again("images", id=8), r"images\[1\].file_name 'a.jpg' stands there twice"),
    "a category twice": (again("categories"), r"categories\[2\].id 3 stands there twice"),
    "no category id": (of("categories", id=None), r"categories\[0\] lacks 'id'"),
    "no image": (of("annotations", image_id=None), r"annotations\[0\] lacks 'image_id'"),
    "another image": (
        of("annotations", image_id=8),
        r"annotations\[0\].image_id 8 is the id of none of the images",
    ),
    "no category": (of("annotations", category_id=None), r"annotations\[0\] lacks 'category_id'"),
    "another category": (
        of("annotations", category_id=4),
        "category_id 4 is the id of none of the",
    ),
    "a list as id": (of("annotations", image_id=[7]), r"image_id is \[7\], not a whole number"),
    "no box": (of("annotations", bbox=None), r"annotations\[0\] lacks 'bbox'"),
    "three numbers": (
        of("annotations", bbox=[1, 2, 3]),
        r"annotations\[0\].bbox is \[1, 2, 3\], not four numbers: x, y, width, height",
    ),
    "text in a box": (of("annotations", bbox=[1, 2, 3, "4"]), "bbox is .*, not four numbers"),
    "less than nothing": (of("annotations", bbox=[1, 2, -3, 4]), "bbox is .*, not four numbers"),
    "not a number": (of("annotations", bbox=[1, 2, float("nan"), 4]), "bbox is .*, not four num"),
    "no area": (of("annotations", area=None), r"annotations\[0\] lacks 'area'"),
    "a negative area": (of("annotations", area=-1), "area is -1, not a number of pixels"),
    "a great area": (of("annotations", area=10**400), "too large"),
    "no outline": (of("annotations", segmentation=None), r"annotations\[0\] lacks 'segmentation'"),
    "no polygon": (of("annotations", segmentation=[]), POLYGON),
    "a line": (of("annotations", segmentation=[[0, 0, 1, 1]]), POLYGON),
    "half a point": (of("annotations", segmentation=[[0, 0, 1, 1, 2, 2, 3]]), POLYGON),
    "another size": (of("annotations", segmentation=RLE | {"size": [6, 4]}), POLYGON),
    "far off": (of("annotations", segmentation=[[4e9, 0, 1, 1, 2, 2]]), POLYGON),
    "zigzag": (of("annotations", segmentation=[[0, 0, 9e5, 0] * 2]), POLYGON),
    "cut short": (of("annotations", segmentation=RLE | {"counts": "1P"}), POLYGON),
    "no code": (of("annotations", segmentation=RLE | {"counts": "\x7f"}), POLYGON),
    "another sum": (of("annotations", segmentation=RLE | {"counts": "11"}), POLYGON),
    "too long a run": (of("annotations", segmentation=RLE | {"counts": [0, 99]}), POLYGON),
    "a crowd of 2": (of("annotations", iscrowd=2), "iscrowd is 2, not 0 or 1"),
}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_ids_of_annotations_mean_nothing(tmp_path: Path) -> None:
    """They are numbered from 1, for pycocotools takes a match with 0 for none."""
    found = read_annotations(write(tmp_path / "a.json", CONTENT))
    assert found["images"] == CONTENT["images"]
    assert [(entry["id"], entry["iscrowd"]) for entry in found["annotations"]] == [(1, 0), (2, 0)]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_entry_at_fault_is_named(tmp_path: Path, fault: str) -> None:
    change, words = FAULTS[fault]
    content = copy.deepcopy(CONTENT)
    change(content)
    with pytest.raises(InputError, match=rf"(?s)a\.json is no COCO annotation file \(.*{words}"):
        read_annotations(write(tmp_path / "a.json", content))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2", "Expecting"),
        ("[]", "it is not an object"),
        ("3", "it is not an object"),
        ("", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ("\x80", "decode"),
    ],
)
def test_what_is_no_object(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=f"no COCO annotation file .*{words}"):
        read_annotations(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_annotations(path)


@pytest.mark.slow
def test_a_user_is_told(detection_golden: Any, tmp_path: Path, capsys: Any) -> None:
    """By one sentence and exit code 3, before any work."""
    pytest.importorskip("pycocotools")
    checkpoint, bundle = str(detection_golden("svit_mask_rcnn").path), str(tmp_path / "out")
    told = as_options(SETTINGS["svit_mask_rcnn"])
    export = ["export", checkpoint, "-o", bundle, "--task", "detect", "--image-size", "64x96"]
    assert main([*export, *told]) == 0
    np.savez(tmp_path / "images.npz", images=np.zeros((1, 64, 96, 3), np.uint8))
    content = {key: CONTENT[key] for key in ("images", "categories")}
    truth = str(write(tmp_path / "a.json", content))
    capsys.readouterr()
    verify = ["verify", bundle, "--against", checkpoint, "--images", str(tmp_path / "images.npz")]
    assert main([*verify, *told, "--annotations", truth]) == 3
    assert "a.json is no COCO annotation file (it lacks 'annotations')" in capsys.readouterr().err
