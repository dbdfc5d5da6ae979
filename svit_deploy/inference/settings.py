"""How to run a bundle over many images."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.engines.settings import RunSettings
from svit_deploy.errors import UsageError
from svit_deploy.model.config import MAX_BATCH
from svit_deploy.options import RAY, option

STOP, SKIP = "stop", "skip"


@dataclass(frozen=True, kw_only=True)
class PlaceSettings:
    """Where the work on many images is done.

    Attributes:
        ray: None for this process.

    Raises:
        UsageError: actors without Ray.
    """

    ray: str | None = RAY(
        help="Run on Ray: local for this machine, or a cluster's address: auto or HOST:PORT."
    )
    actors: int | None = option(
        None,
        "Engines at once on Ray; by default as many as there is room for.",
        metavar="N",
        kind=int,
        low=1,
        high=4096,
    )

    def __post_init__(self) -> None:
        if self.actors is not None and self.ray is None:
            raise UsageError("--actors needs Ray", "add --ray local, or the address of a cluster")


@dataclass(frozen=True, kw_only=True)
class InferenceSettings(RunSettings, PlaceSettings):
    """How to run a bundle over many images.

    Attributes:
        batch: by default as many as the task says, as far as the bundle takes them.

    Raises:
        UsageError: a value that cannot work.
    """

    batch: int | None = option(
        None,
        "Images per run, of a video views; by default 16 of a classifier, 1 of a detector.",
        metavar="N",
        kind=int,
        low=1,
        high=MAX_BATCH,
    )
    workers: int = option(
        2, "Threads that read pictures while the model runs.", metavar="N", low=1, high=256
    )
    on_error: str = option(
        STOP,
        "What to do at a picture that cannot be read: stop, or skip it and go on.",
        metavar="stop|skip",
        choices=lambda: (STOP, SKIP),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_error not in (STOP, SKIP):
            raise UsageError(f"--on-error {self.on_error!r} is unknown", f"use {STOP} or {SKIP}")
