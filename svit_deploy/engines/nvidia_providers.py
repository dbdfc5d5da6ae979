"""What NVIDIA's providers of ONNX Runtime are told: exact float32, shapes, caches, plugins."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from svit_deploy.engines.device.cuda import Cuda
from svit_deploy.engines.device.graphs import DYNAMIC
from svit_deploy.engines.kept import Kept
from svit_deploy.engines.providers import CUDA, PROVIDERS, RTX_PROVIDER, TENSORRT_PROVIDER
from svit_deploy.errors import CapabilityError, SvitDeployError
from svit_deploy.io.files import hash_file
from svit_deploy.machine.environment import installed_version
from svit_deploy.model.config import BatchRange
from svit_deploy.model.profiles import Profile
from svit_deploy.model.sizes import SizeRange
from svit_deploy.names import INPUT
from svit_deploy.plugins import AUTOREGISTER, library_path

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

_OURS = b"svit_deploy."
"""In every graph that this package exported."""
_KEPT = {
    TENSORRT_PROVIDER: {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "",
    },
    RTX_PROVIDER: {"nv_runtime_cache_path": ""},
}
"""By which options a provider keeps what it builds; empty ones name the folder."""
_BUILDERS = {
    TENSORRT_PROVIDER: ("onnxruntime-gpu", "tensorrt-cu13"),
    RTX_PROVIDER: ("onnxruntime-gpu", "onnxruntime-ep-nv-tensorrt-rtx-cu13"),
}
"""Packages whose versions what a provider builds depends on."""
_SIZES = "the host must wait for sizes that depend on the data, in the middle of a run"
_PREFIX = {TENSORRT_PROVIDER: "trt", RTX_PROVIDER: "nv"}


def options_for(
    provider: str, model: Path | bytes, device: int, kept: Path | None = None
) -> dict[str, str]:
    """The options of a provider for a model, where a user says nothing else.

    Without the shapes to expect, TensorRT's providers build an engine anew for each new shape.

    Args:
        provider: a full name.
        device: number of the GPU.
        kept: folder for what it builds, if that is kept.
    """
    number = {"device_id": str(device)}
    if provider == CUDA:
        return number | {"use_tf32": "0"}
    if provider not in _PREFIX:
        return {}
    graph = _read(model)
    own = {} if graph is None else _shapes(_PREFIX[provider], profile_of(graph))
    if kept is not None:
        own |= {name: value or str(kept) for name, value in _KEPT[provider].items()}
    if provider == RTX_PROVIDER:  # its device is that which it is given
        return own
    if graph is not None:
        own |= _plugins(graph)
    return number | own


def behind(provider: str) -> tuple[str, ...]:
    """Providers for what one does not take, before the CPU's."""
    return (CUDA,) if provider in _PREFIX else ()


def profile_of(model: onnx.ModelProto) -> Profile | None:
    """The shapes that an exported graph is for, as its metadata tells; None of another graph."""
    from svit_deploy.io.onnx_file import read_metadata

    told = read_metadata(model)
    try:
        batch = BatchRange.parse(told["batch"])
        if "image" in told:
            image = json.loads(told["image"])
            text = ":".join("x".join(map(str, image[name])) for name in ("min", "opt", "max"))
            sizes = SizeRange.parse(text)
        else:
            (shape,) = [i.type.tensor_type.shape for i in model.graph.input if i.name == INPUT]
            *frames, height, width = (dim.dim_value for dim in shape.dim[2:])
            sizes = SizeRange.single((height, width), frames=sum(frames))
        return sizes.profile(batch) if min(*sizes.min, *sizes.max) > 0 else None
    except (SvitDeployError, KeyError, TypeError, ValueError):
        return None


def what_waits(model: Path | bytes) -> str | None:
    """Why the host must wait for the device in the middle of a run, if it must."""
    from svit_deploy.io.onnx_file import DATA_DEPENDENT, all_nodes, read_metadata

    graph = _read(model, foreign=True)
    if graph is None or not any(node.op_type in DATA_DEPENDENT for node in all_nodes(graph)):
        return None
    return DYNAMIC if read_metadata(graph).get("mode") == "dynamic" else _SIZES


def _read(model: Path | bytes, foreign: bool = False) -> onnx.ModelProto | None:
    """An exported graph; None of any other, and of what ONNX Runtime itself should refuse.

    Args:
        foreign: read any other, too.
    """
    content = model.read_bytes() if isinstance(model, Path) else model
    if not foreign and _OURS not in content:
        return None
    import onnx

    try:
        return onnx.ModelProto.FromString(content)
    except Exception:  # protobuf's errors share no class that is public
        return None


def _shapes(prefix: str, profile: Profile | None) -> dict[str, str]:
    if profile is None:
        return {}
    return {
        f"{prefix}_profile_{name}_shapes": f"{INPUT}:{'x'.join(map(str, getattr(profile, name)))}"
        for name in ("min", "opt", "max")
    }


def open_kept(
    provider: str, model: Path | bytes, given: Collection[str], cuda: Cuda
) -> Kept | None:
    """The folder for what a provider builds of a file; of an edited graph nothing is kept.

    Args:
        given: names of the user's own options, one of which may say where.
    """
    names = _KEPT.get(provider)
    if names is None or isinstance(model, bytes) or set(names) & set(given):
        return None
    versions = {name: installed_version(name) or "none" for name in _BUILDERS[provider]}
    short = next(name for name, full in PROVIDERS.items() if full == provider)
    return Kept(model, short, {"model": hash_file(model), **versions}, cuda)


def _plugins(graph: onnx.ModelProto) -> Mapping[str, str]:
    """The plugin library, if the graph has nodes for it; else their function bodies do."""
    from svit_deploy.graph.builder import FUNCTIONS_DOMAIN

    if not any(node.domain == FUNCTIONS_DOMAIN for node in graph.graph.node):
        return {}
    with contextlib.suppress(CapabilityError):
        return {"trt_extra_plugin_lib_paths": str(library_path().with_name(AUTOREGISTER))}
    log.info("no plugin library: the graph's plugin nodes are computed by standard operators")
    return {}
