"""For which deployment to package a bundle, and how."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

from svit_deploy.engines.settings import EngineChoice
from svit_deploy.options import MAX_DELAY, option


@dataclass(frozen=True, kw_only=True)
class PackageSettings(EngineChoice):
    """For which deployment to package a bundle, and how.

    Attributes:
        name: by default the bundle's folder's.
        threads: 0 leaves it to the runtime.
        image: of the container, for `kserve`.
        storage: where the cluster gets the bundle from, for `kserve`.
    """

    format: str = option(
        MISSING,
        "Deployment: triton, kserve or docker.",
        metavar="FORMAT",
        kind=str,
        choices=lambda: ("triton", "kserve", "docker"),
    )
    name: str | None = option(
        None, "Name of the model; by default the bundle's folder.", metavar="NAME", kind=str
    )
    max_delay: float = MAX_DELAY(2.0)
    image: str | None = option(
        None, "Container image of --format docker, for --format kserve.", metavar="IMAGE", kind=str
    )
    storage: str | None = option(
        None,
        "Where the cluster finds the bundle, for --format kserve: s3://, gs://, pvc://, ...; by "
        "default the image holds it.",
        metavar="URI",
        kind=str,
    )
