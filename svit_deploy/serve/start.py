"""What serving needs, told before it begins; nothing here imports KServe at once."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

from svit_deploy.bundle import Bundle
from svit_deploy.errors import UsageError
from svit_deploy.machine.packages import require
from svit_deploy.plan import Plan
from svit_deploy.serve.settings import ServeSettings


def require_kserve() -> None:
    """Raises CapabilityError where KServe is missing; does not import it."""
    if find_spec("kserve") is None:
        import_kserve()


def import_kserve() -> None:
    """Raises CapabilityError where KServe is missing or broken."""
    # It reads the command line when it is imported, and would take some options for its own.
    with mock.patch.object(sys, "argv", sys.argv[:1]):
        require("kserve", "serve", "its protocols", extra="serve", called="KServe")


def named_bundles(bundles: Iterable[str | Path]) -> dict[str, Path]:
    """Folders by the names of their models, of `FOLDER` or `NAME=FOLDER`.

    Raises:
        UsageError: none, a name twice, or one that does not fit into an address.
    """
    paths: dict[str, Path] = {}
    for given in bundles:
        name, equals, folder = str(given).partition("=")
        if not equals or Path(given).exists():
            folder = str(given)
            name = Path(folder).resolve().name
        fix = "give it a name: NAME=FOLDER, of letters, digits, '.', '-' and '_'"
        if not name or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
            raise UsageError(f"{name!r:.80} is no name of a model", fix)
        if name in paths:
            raise UsageError(f"two models are called {name!r}", fix)
        paths[name] = Path(folder)
    if not paths:
        raise UsageError("there is nothing to serve", "give one or more bundles")
    return paths


def choose_batch(bundle: Bundle, settings: ServeSettings) -> int:
    """Most images of a run; raises UsageError for more than the bundle takes."""
    largest = bundle.manifest["batch"]["max"]
    if settings.max_batch is not None and settings.max_batch > largest:
        raise UsageError(
            f"{bundle.name} was exported for batches of up to {largest}, not {settings.max_batch}",
            "lower --max-batch, or export it with a wider --batch",
        )
    return settings.max_batch or bundle.together


def address(settings: ServeSettings) -> str:
    """Where REST and the page are."""
    scheme = "http" if settings.tls_cert is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{host}:{settings.port}"


def tell_addresses(plan: Plan, settings: ServeSettings) -> None:
    plan.tell("REST", address(settings))
    plan.tell("gRPC", f"{settings.host}:{settings.grpc_port}" if settings.grpc_port else "none")
