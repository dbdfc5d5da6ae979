"""What to verify a bundle against, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svit_deploy.engines.settings import RunSettings
from svit_deploy.errors import UsageError
from svit_deploy.inference.settings import PlaceSettings
from svit_deploy.loading.settings import LoadSettings
from svit_deploy.options import ANNOTATIONS, IMAGES, LABELS, MAX_IMAGES, option

if TYPE_CHECKING:
    from svit_deploy.images import ImageSet


@dataclass(frozen=True, kw_only=True)
class VerifySettings(RunSettings, LoadSettings, PlaceSettings):
    """How to verify.

    Attributes:
        against: without it the bundle's reference.npz serves, and no PyTorch is needed.
        images: without `against` they must be labelled, for the exported model to be evaluated on
            them; the bundle's own samples are what is compared.
        arch, overrides: what the checkpoint's weights cannot tell, independently of the bundle;
            by default the bundle's manifest is trusted for it.
        engine: one that was built cannot be taken apart: what needs edited graphs runs in ONNX
            Runtime then.
        companions: images run alone and inside a batch.

    Raises:
        UsageError: options that need others which are not given.
    """

    against: Path | None = option(
        None,
        "Checkpoint to compare with, a file or an id as `export` takes it. By default the outputs "
        "recorded at export.",
        metavar="CHECKPOINT",
        kind=Path,
    )
    images: Path | ImageSet | None = IMAGES(None)
    labels: Path | None = LABELS()
    annotations: Path | None = ANNOTATIONS()
    max_images: int = MAX_IMAGES(
        1000, help="Use only N images: the first ones, without --against evenly spread ones."
    )
    repeats: int = option(
        3,
        "Number of runs that must agree bit for bit.",
        metavar="N",
        low=2,
        after=("provider", "threads"),
    )
    companions: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against is None and (self.arch or self.overrides or self.weights):
            raise UsageError(
                "--arch, --set and --weights need a checkpoint to compare with",
                "add --against CHECKPOINT, or leave them out to use what the bundle recorded",
            )
        if self.labels is not None and self.images is None:
            raise UsageError("--labels needs images", "add --images IMAGES")
