"""Ray: a cluster that is joined, or one of this machine alone that ends with the command."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from svit_deploy.errors import CapabilityError
from svit_deploy.machine.environment import usable_cores
from svit_deploy.machine.packages import require

LOCAL = "local"
"""The address of a cluster of this machine alone."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report itself to its makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # it warns at each start
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # of what it prints on standard output: all
}
STORE_BYTES = 256 * 2**20
"""Memory of such a cluster for what is on its way between processes; more goes to the disk."""


def require_ray(who: str, *parts: str) -> None:
    """Raises CapabilityError unless Ray, and those parts of it, can be imported."""
    _keep_quiet()
    for module in ("ray", *parts):
        require(module, who, "--ray", extra="ray", called="Ray")


@contextlib.contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connects this process with a cluster, and parts from it at the end.

    Args:
        address: `local`, or as `ray.init` takes it: `auto`, `HOST:PORT`, `ray://HOST:PORT`.

    Raises:
        CapabilityError: there is no such cluster, or none can be started.
    """
    _keep_quiet()
    import ray

    with contextlib.ExitStack() as stack:
        given: dict[str, Any] = {}
        if address == LOCAL:
            # Sockets lie in it, whose paths may have a hundred characters.
            short = "/tmp" if os.name == "posix" else None
            folder = tempfile.TemporaryDirectory("", "ray-", short, ignore_cleanup_errors=True)
            given = {
                "num_cpus": usable_cores(),
                "object_store_memory": STORE_BYTES,
                "include_dashboard": False,
                "_temp_dir": stack.enter_context(folder),
            }
        try:
            _knock(address)
            stack.callback(ray.shutdown)
            with _sigterm_kept():
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **given)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            where = "on this machine" if address == LOCAL else f"at {address}"
            reason = " ".join(str(error).split())[:300]
            raise CapabilityError(
                f"Ray does not run {where} ({reason})",
                "give the address of a cluster with the same versions of Ray and Python, or leave "
                "--ray out",
            ) from error
        yield


def room(needed: Mapping[str, float]) -> int:
    """How many workers the cluster that is joined has room for, all others gone.

    Args:
        needed: by one, as Ray's `options` takes it: `num_cpus`, `num_gpus`.
    """
    import ray

    kinds, there = {"num_cpus": "CPU", "num_gpus": "GPU"}, ray.cluster_resources()
    return min(int(there.get(kinds[name], 0) // one) for name, one in needed.items())


def check_room(address: str, needed: Mapping[str, float]) -> None:
    """Raises CapabilityError where a worker would wait forever; a cluster may still grow."""
    if address == LOCAL and not room(needed):
        told = ", ".join(f"{name.removeprefix('num_')}: {one}" for name, one in needed.items())
        raise CapabilityError(
            f"one engine on Ray needs more than this machine has ({told})",
            "lower --threads, or give the address of a cluster",
        )


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT: Ray itself tries that for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _keep_quiet() -> None:
    """Before Ray is imported, for it reads them then."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Takes back the signal that Ray takes for itself when it connects."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
