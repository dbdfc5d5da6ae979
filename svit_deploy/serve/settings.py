"""How to serve bundles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from svit_deploy.engines.settings import RunSettings
from svit_deploy.errors import UsageError
from svit_deploy.model.config import MAX_BATCH
from svit_deploy.options import MAX_DELAY, RAY, option


@dataclass(frozen=True, kw_only=True)
class ServeSettings(RunSettings):
    """How to serve bundles.

    Attributes:
        max_batch: by default as many as the task says, as far as the bundle takes them.

    Raises:
        UsageError: values that cannot work together.
    """

    host: str = option(
        "127.0.0.1", "Address to listen at; 0.0.0.0 for every one of the machine.", metavar="HOST"
    )
    port: int = option(8080, "Port of REST and the page.", metavar="N", low=1, high=65535)
    grpc_port: int = option(8081, "Port of gRPC; 0 for none.", metavar="N", low=0, high=65535)
    max_batch: int | None = option(
        None,
        "Most images per run; by default 16 of a classifier, 1 of a detector.",
        metavar="N",
        kind=int,
        low=1,
        high=MAX_BATCH,
    )
    max_delay: float = MAX_DELAY(2.0)
    max_queue: int = option(
        128, "Most images of a bundle that are not answered yet.", metavar="N", low=1, high=2**20
    )
    max_request: int = option(64, "Largest request, in MiB.", metavar="MIB", low=1, high=2047)
    max_pixels: float = option(
        40.0, "Largest encoded picture, in millions of pixels.", metavar="MP", low=0.001, high=89
    )
    timeout: float = option(
        30.0, "Seconds after which a request is given up.", metavar="S", low=0.001, high=86_400
    )
    grace: float = option(
        30.0,
        "Seconds that requests have to end in when the server is told to stop.",
        metavar="S",
        low=0,
        high=86_400,
    )
    workers: int = option(
        2, "Threads that decode pictures while the model runs.", metavar="N", low=1, high=256
    )
    drift_warning: float = option(
        0.25,
        "Population stability index of a gate's keep ratios above which a warning is logged.",
        metavar="INDEX",
        low=0,
    )
    tls_cert: Path | None = option(
        None, "Certificate, and those that signed it, in PEM.", metavar="FILE", kind=Path
    )
    tls_key: Path | None = option(
        None, "The certificate's private key, in PEM.", metavar="FILE", kind=Path
    )
    token_file: Path | None = option(
        None,
        "File with a secret that requests must bring: Authorization: Bearer SECRET.",
        metavar="FILE",
        kind=Path,
    )

    ray: str | None = RAY(
        help="Replicas on Ray: local for this machine, or a cluster's address: auto or HOST:PORT."
    )
    replicas: int | None = option(
        None,
        "Most replicas of a model on Ray; 2 by default.",
        metavar="N",
        kind=int,
        low=1,
        high=4096,
    )

    def __post_init__(self) -> None:
        if self.replicas is not None and self.ray is None:
            raise UsageError("--replicas needs Ray", "add --ray local, or a cluster's address")
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "key" if self.tls_key is None else "certificate"
            raise UsageError(f"TLS lacks its {missing}", "give both --tls-cert and --tls-key")
        if self.port == self.grpc_port:
            raise UsageError(
                f"REST and gRPC cannot share port {self.port}", "give two ports, or --grpc-port 0"
            )
