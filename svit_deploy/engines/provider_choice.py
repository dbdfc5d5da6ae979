"""Which providers of ONNX Runtime a session gets, with which options, and what they take on."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from svit_deploy.engines.plugin_providers import PACKAGES, plugin_device
from svit_deploy.engines.providers import CUDA, NVIDIA, TENSORRT_PROVIDER, TF32_VARIABLE
from svit_deploy.errors import UsageError

_RECORD_NODES = "session.record_ep_graph_assignment_info"

STREAM = ("user_compute_stream", "has_user_compute_stream")
"""Options of all of NVIDIA's providers: on which stream they run, and that there is one."""
_GRAPHS = "leave it out: bench --cuda-graph says whether graphs are recorded, on the provider cuda"
_OURS = {
    **dict.fromkeys(STREAM, "leave it out: runs go to a stream of their own"),
    "enable_cuda_graph": _GRAPHS,
    "trt_cuda_graph_enable": _GRAPHS,
}
"""Options that a run's memory depends on: a graph of other memory would compute on what is gone."""

log = logging.getLogger(__name__)


def choose_providers(
    ort: ModuleType,
    provider: str,
    given: Mapping[str, str],
    model: Path | bytes,
    options: Any,
    device: int,
    own: Mapping[str, str],
    kept: Path | None = None,
) -> list[Any] | None:
    """The providers for a session, the CPU's left out, which is always the last.

    Args:
        provider: the full name of that which is asked for.
        given: options of it that go before ours.
        options: the session's, which get what can only be said there.
        device: number of the GPU.
        own: options that nobody else may set; a stream is that of the providers behind it, too.
        kept: folder for what the provider builds, if that is kept.

    Returns:
        None where the session's options have the providers already.

    Raises:
        CapabilityError: a plugin provider cannot start.
        UsageError: no device of that number, or an option that is not the user's.
    """
    if provider not in NVIDIA:
        return [(provider, dict(given))] if given else [provider]
    from svit_deploy.engines.nvidia_providers import behind, options_for  # reads graphs

    check_given(given, device)
    load_libraries(ort, provider)
    options.add_session_config_entry(_RECORD_NODES, "1")
    stream = {name: own[name] for name in STREAM if name in own}
    first = options_for(provider, model, device, kept) | dict(given) | dict(own)
    here = ort.get_available_providers()
    rest = [
        (name, options_for(name, model, device) | stream)
        for name in behind(provider)
        if name in here
    ]
    if provider not in PACKAGES:
        return [(provider, first), *rest]
    options.add_provider_for_devices([plugin_device(ort, provider, device)], first)
    for name, told in rest:
        options.add_provider(name, told)
    return None


def check_given(given: Mapping[str, str], device: int) -> None:
    """Raises UsageError for options that something else says, or that would break a run."""
    for name, value in given.items():
        if name == "device_id" and value != str(device):
            raise UsageError(
                f"--provider-option device_id={value} contradicts device {device}",
                f"leave it out, and give --device {value}",
            )
        if fix := _OURS.get(name):
            raise UsageError(f"--provider-option {name} is set here", fix)


def load_libraries(ort: ModuleType, provider: str) -> None:
    """Loads what a provider is linked to from where pip put it, where it does not look."""
    ort.preload_dlls()  # CUDA's
    if provider != CUDA:
        os.environ.setdefault(TF32_VARIABLE, "0")
    if provider == TENSORRT_PROVIDER:
        with contextlib.suppress(ImportError, OSError):  # then the system's, or it will not start
            importlib.import_module("tensorrt")


def count_nodes(session: Any, provider: str) -> dict[str, int] | None:
    """How many nodes of the graph went to which provider; None where ONNX Runtime cannot tell.

    Tells of operators that the provider does not take.
    """
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    if ask is None:
        return None
    operators = {part.ep_name: Counter(n.op_type for n in part.get_nodes()) for part in ask()}
    for name, kinds in operators.items():
        if name != provider:
            most = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
            log.info("%s leaves nodes to %s: %s", provider, name, most)
    return {name: kinds.total() for name, kinds in operators.items()}
