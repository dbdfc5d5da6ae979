"""What of a bundle to hand to Polygraphy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from svit_deploy.errors import UsageError
from svit_deploy.loading.settings import LoadSettings
from svit_deploy.options import MAX_IMAGES, option


@dataclass(frozen=True, kw_only=True)
class DebugSettings(LoadSettings):
    """What of a bundle to hand to Polygraphy.

    Attributes:
        against: tells what each stage should give, and what to write a sound graph of.
        report: of `verify`; without it the bundle is verified.
        max_images: None for the smallest batch that the bundle serves.

    Raises:
        UsageError: options that need a checkpoint, without one.
    """

    against: Path | None = option(
        None,
        "Checkpoint that the bundle is of, a file or an id as `export` takes it. By default only "
        "the outputs recorded at export are known.",
        metavar="CHECKPOINT",
        kind=Path,
    )
    report: Path | None = option(
        None,
        "What `verify --json` wrote of this bundle; by default it is verified.",
        metavar="FILE",
        kind=Path,
    )
    max_images: int | None = MAX_IMAGES(
        None,
        help="Use the first N of the bundle's samples; by default as many as its smallest batch.",
        kind=int,
    )

    def __post_init__(self) -> None:
        if self.against is None and (self.arch or self.overrides or self.weights):
            raise UsageError(
                "--arch, --set and --weights need the checkpoint that they are of",
                "add --against CHECKPOINT, or leave them out",
            )
