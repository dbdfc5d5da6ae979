"""Annotations and results in COCO's format, through pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.images.prepared import Prepared
from svit_deploy.machine.packages import require
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.result import Outputs
from svit_deploy.tasks.detect.annotations import read_annotations
from svit_deploy.tasks.detect.detections import Detections, paste_masks


class GroundTruth:
    """Annotations in COCO's format.

    Args:
        path: a file such as instances_val2017.json.
        config: the model's; its classes are the categories in the order of their ids.
        objects: whether to read what is annotated; else ids alone are known.

    Raises:
        InputError: not such a file, or another number of categories than the model has classes.
        CapabilityError: pycocotools is not installed.
    """

    def __init__(self, path: Path, config: ModelConfig, *, objects: bool = True) -> None:
        require("pycocotools", "--annotations", "COCO's average precision", extra="coco")
        from pycocotools.coco import COCO

        self.path, self.coco = path, COCO()
        self.coco.dataset = read_annotations(path, objects=objects)
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco.createIndex()
        self.categories = sorted(self.coco.getCatIds())
        self.ids = {entry["file_name"]: entry["id"] for entry in self.coco.dataset["images"]}
        if len(self.categories) != config.num_classes:
            raise InputError(
                f"{path} has {len(self.categories)} categories, the model {config.num_classes} "
                "classes",
                "give the annotations of the data set that the model was trained for",
            )

    def image_id(self, name: str) -> int:
        """The id of a picture by its path or its file name; raises InputError."""
        for key in (name, PurePosixPath(name).name):
            if key in self.ids:
                return self.ids[key]
        raise InputError(
            f"picture {name} is not in the annotations", "give the pictures that they are of"
        )

    def check(self, names: Sequence[str]) -> tuple[str, ...]:
        """Whether it tells how good a model is on some pictures; notes on what else to know.

        Raises:
            InputError: a picture is not annotated, stands there twice, or none has an object.
        """
        uses = Counter(map(self.image_id, names))
        if twice := next((number for number, times in uses.items() if times > 1), None):
            raise InputError(
                f"picture {self.coco.imgs[twice]['file_name']} is there {uses[twice]} times",
                "give it once",
            )
        if not any(self.coco.imgToAnns.get(number) for number in uses):
            raise InputError(
                f"{self.path} has no object in these pictures",
                "give annotations of their objects, such as instances_val2017.json",
            )
        if len(uses) == len(self.ids):
            return ()
        return (f"{len(uses)} of the {len(self.ids)} annotated pictures are given",)

    def results(self, image: Prepared, shown: Outputs) -> list[dict[str, Any]]:
        """A picture's detections as COCO's evaluation server takes them, JSON-able."""
        found = Detections.of(shown)
        return [
            {
                "image_id": self.image_id(image.name),
                "category_id": self.categories[label],
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
                "segmentation": code,
            }
            for (left, top, right, bottom), score, label, code in zip(
                found.boxes.tolist(),
                found.scores.tolist(),
                found.labels.tolist(),
                run_lengths(found, image.original_size),
                strict=True,
            )
        ]


def run_lengths(found: Detections, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Each detection's mask of the whole picture, run-length coded as COCO has it."""
    from pycocotools import mask as coding

    codes: list[dict[str, Any]] = []
    for i in range(len(found)):  # one at a time: a hundred masks of a large picture fill memory
        (mask,) = paste_masks(found.masks[i : i + 1], found.boxes[i : i + 1], size)
        code: Mapping[str, Any] = coding.encode(np.asfortranarray(mask.astype(np.uint8)))
        codes.append({"size": list(code["size"]), "counts": code["counts"].decode("ascii")})
    return codes
