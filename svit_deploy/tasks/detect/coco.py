"""COCO's average precision of boxes and masks, through pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.machine.packages import require
from svit_deploy.model.config import ModelConfig
from svit_deploy.tasks.detect.annotations import read_annotations
from svit_deploy.tasks.detect.detections import Detections, paste_masks

KINDS = {"box": "bbox", "mask": "segm"}


class GroundTruth:
    """Annotations in COCO's format.

    Args:
        path: a file such as instances_val2017.json.
        config: the model's; its classes are the categories in the order of their ids.

    Raises:
        InputError: not such a file, or another number of categories than the model has classes.
        CapabilityError: pycocotools is not installed.
    """

    def __init__(self, path: Path, config: ModelConfig) -> None:
        require("pycocotools", "--annotations", "COCO's average precision")
        from pycocotools.coco import COCO

        self.coco = COCO()
        self.coco.dataset = read_annotations(path)
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

    def average_precision(
        self, names: Sequence[str], found: Sequence[Detections], sizes: Sequence[tuple[int, int]]
    ) -> dict[str, float]:
        """AP at IoU 0.5 to 0.95 of boxes and masks over the named pictures only.

        Args:
            sizes: (height, width) of the pictures.
        """
        from pycocotools.cocoeval import COCOeval

        ids = [self.image_id(name) for name in names]
        results = [
            entry
            for image, detections, size in zip(ids, found, sizes, strict=True)
            for entry in self._results(image, detections, size)
        ]
        if not results:
            return dict.fromkeys(KINDS, 0.0)
        scores = {}
        with contextlib.redirect_stdout(io.StringIO()):
            loaded = self.coco.loadRes(results)
            for kind, name in KINDS.items():
                evaluation = COCOeval(self.coco, loaded, name)
                evaluation.params.imgIds = ids
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                scores[kind] = max(float(evaluation.stats[0]), 0.0)  # -1: nothing to find
        return scores

    def _results(
        self, image: int, found: Detections, size: tuple[int, int]
    ) -> list[dict[str, Any]]:
        from pycocotools import mask as coding

        results = []
        masks = paste_masks(found.masks, found.boxes, size)
        for mask, box, score, label in zip(
            masks, found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        ):
            left, top, right, bottom = box
            results.append(
                {
                    "image_id": image,
                    "category_id": self.categories[label],
                    "score": score,
                    "bbox": [left, top, right - left, bottom - top],
                    "segmentation": coding.encode(np.asfortranarray(mask.astype(np.uint8))),
                }
            )
        return results
