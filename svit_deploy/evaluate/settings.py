"""What to evaluate a bundle on."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svit_deploy.inference.settings import InferenceSettings
from svit_deploy.options import ANNOTATIONS, CLASS_NAMES, IMAGES, LABELS, option

if TYPE_CHECKING:
    from svit_deploy.images import ImageSet


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(InferenceSettings):
    """What to evaluate a bundle on.

    Attributes:
        labels: by default those of an .npz, else of class folders.
        max_images: all by default.
        seed: of the intervals that are drawn at random.
    """

    images: Path | ImageSet = IMAGES(MISSING)
    labels: Path | None = LABELS()
    annotations: Path | None = ANNOTATIONS()
    class_names: Path | None = CLASS_NAMES()
    max_images: int | None = option(
        None, "Use only N images, evenly spread over all.", metavar="N", kind=int, low=1
    )
    seed: int = option(0, "Seed for bootstrap intervals.", metavar="N", low=0)
