"""On which images to run a bundle, and what to draw."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svit_deploy.engines.providers import CPU, PROVIDERS
from svit_deploy.engines.settings import ProviderSettings
from svit_deploy.options import IMAGES, MAX_IMAGES, option

if TYPE_CHECKING:
    from svit_deploy.images import ImageSet


@dataclass(frozen=True, kw_only=True)
class PredictSettings(ProviderSettings):
    """What to draw of a detector's results."""

    images: Path | ImageSet = option(
        MISSING, "Single image, image folder, or .npz.", metavar="IMAGE", kind=Path, positional=True
    )
    min_score: float = option(
        0.3, "Draw only detections with at least this score.", metavar="SCORE", low=0, high=1
    )
    max_images: int = MAX_IMAGES(100)


@dataclass(frozen=True, kw_only=True)
class VisualizeSettings(ProviderSettings):
    """Whose tokens to draw, and what runs the model: always its graph, never its engine."""

    images: Path | ImageSet = IMAGES(MISSING)
    max_images: int = MAX_IMAGES(100)
    provider: str = option(
        CPU,
        "ONNX Runtime provider: cpu, cuda, tensorrt, ...",
        metavar="NAME",
        choices=lambda: PROVIDERS,
    )
