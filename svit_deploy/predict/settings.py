"""On which images to run a bundle, and what to write of it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svit_deploy.engines.settings import EngineChoice
from svit_deploy.inference.settings import InferenceSettings
from svit_deploy.options import ANNOTATIONS, CLASS_NAMES, IMAGES, MAX_IMAGES, option

if TYPE_CHECKING:
    from svit_deploy.images import ImageSet


PICTURES, COCO = "pictures", "coco"
SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".json": COCO}
FORMATS = (PICTURES, *SUFFIXES.values())


@dataclass(frozen=True, kw_only=True)
class PredictSettings(InferenceSettings):
    """On which images to run a bundle, and what to write of it.

    Attributes:
        format: by default told by the output's name.
        top_k, min_score: by default as in `predict.formats`.
        class_names: by default the bundle's.
        annotations: for `coco`, which needs the pictures' ids and the categories'.
        max_images: all by default.
    """

    images: Path | ImageSet = option(
        MISSING,
        "Image folder, single image, list of images (.txt, or - for standard input), or .npz.",
        metavar="IMAGE",
        kind=Path,
        positional=True,
    )
    format: str | None = option(
        None,
        "Form of the output: pictures, csv, jsonl, parquet or coco. By default by its name: "
        ".csv, .jsonl, .parquet, .json for coco, else a folder of pictures.",
        metavar="FORMAT",
        choices=lambda: FORMATS,
    )
    top_k: int | None = option(
        None, "Classes per image; 5 by default.", metavar="K", kind=int, low=1
    )
    min_score: float | None = option(
        None,
        "Only detections with at least this score; 0.3 by default, 0 for coco.",
        metavar="SCORE",
        kind=float,
        low=0,
        high=1,
    )
    class_names: Path | None = CLASS_NAMES()
    annotations: Path | None = ANNOTATIONS(
        help="COCO annotations that tell the ids of --format coco."
    )
    max_images: int | None = MAX_IMAGES(None, kind=int)


@dataclass(frozen=True, kw_only=True)
class VisualizeSettings(EngineChoice):
    """Whose tokens to draw, and what runs the model: always its graph, never one built of it."""

    images: Path | ImageSet = IMAGES(MISSING)
    max_images: int = MAX_IMAGES(100)
