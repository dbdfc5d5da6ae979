"""Annotations in COCO's format, made of detections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svit_deploy.tasks.detect.detections import Detections


def annotate(
    path: Path, pictures: Sequence[tuple[str, tuple[int, int], Detections]], classes: int = 80
) -> Path:
    """Writes annotations in which exactly these detections are true, by picture and its size.

    Pictures count from 1, categories from 10.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, (height, width), found) in enumerate(pictures, 1):
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for label, (x, y, r, b) in zip(found.labels, found.boxes.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 10 + int(label),
                    "bbox": [x, y, r - x, b - y],
                    "area": (r - x) * (b - y),
                    "segmentation": [[x, y, r, y, r, b, x, b]],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 10 + i, "name": f"c{i}"} for i in range(classes)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    path.write_text(json.dumps(content))
    return path
