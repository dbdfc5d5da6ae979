"""Detections for the eye, over the picture that they were found in, and for JSON."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from svit_deploy.model.class_names import ClassNames
from svit_deploy.tasks.detect.detections import Detections, paste_masks


def draw_detections(picture: np.ndarray, found: Detections, classes: ClassNames) -> np.ndarray:
    """Boxes, masks and names over a picture uint8 `[H, W, 3]`, weakest first."""
    if not len(found):
        return picture
    height, width = picture.shape[:2]
    canvas = picture.astype(np.float32)
    masks = paste_masks(found.masks, found.boxes, (height, width))
    for label, mask in zip(found.labels, masks, strict=True):
        canvas[mask] = 0.5 * canvas[mask] + 0.5 * np.array(_colour(label), np.float32)
    image = Image.fromarray(canvas.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    line = max(1, round(max(height, width) / 400))
    for i in reversed(range(len(found))):
        box, colour = found.boxes[i].tolist(), _colour(found.labels[i])
        draw.rectangle(box, outline=colour, width=line)
        text = f"{classes.title(int(found.labels[i]))} {found.scores[i]:.2f}"
        left, top = box[0], max(box[1] - 12, 0)
        draw.rectangle((left, top, left + draw.textlength(text) + 4, top + 12), fill=colour)
        draw.text((left + 2, top), text, fill="black")
    return np.asarray(image)


def describe_detections(found: Detections, classes: ClassNames) -> dict[str, Any]:
    """All of them, JSON-able; boxes in pixels."""
    return {
        "detections": [
            {
                "label": int(label),
                "name": classes.title(int(label)),
                "score": round(float(score), 6),
                "box": [round(float(side), 3) for side in box],
            }
            for label, score, box in zip(found.labels, found.scores, found.boxes, strict=True)
        ]
    }


def _colour(label: int) -> tuple[int, int, int]:
    """Bright and far from its neighbours': hues a golden section apart."""
    red, green, blue = colorsys.hsv_to_rgb(float(label) * 0.618034 % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
