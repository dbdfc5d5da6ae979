"""What NVIDIA's providers of ONNX Runtime are told: exact float32, shapes, caches, plugins."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from svit_deploy.engines.providers import CUDA, PROVIDERS, RTX_PROVIDER, TENSORRT_PROVIDER
from svit_deploy.errors import CapabilityError, SvitDeployError
from svit_deploy.io.files import cache_folder, hash_file
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
_PREFIX = {TENSORRT_PROVIDER: "trt", RTX_PROVIDER: "nv"}


def options_for(provider: str, model: Path | bytes, device: int) -> dict[str, str]:
    """The options of a provider for a model, where a user says nothing else.

    Without the shapes to expect, TensorRT's providers build an engine anew for each new shape.
    What they build of a file is kept in the user's cache folder; of an edited graph it is not.

    Args:
        provider: a full name.
        device: number of the GPU.
    """
    number = {"device_id": str(device)}
    if provider == CUDA:
        return number | {"use_tf32": "0"}
    if provider not in _PREFIX:
        return {}
    graph = _read(model)
    own = {} if graph is None else _shapes(_PREFIX[provider], profile_of(graph))
    if isinstance(model, Path):
        own |= _caches(provider, model)
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
            height, width = (dim.dim_value for dim in shape.dim[2:])
            sizes = SizeRange.single((height, width))
        return sizes.profile(batch) if min(*sizes.min, *sizes.max) > 0 else None
    except (SvitDeployError, KeyError, TypeError, ValueError):
        return None


def _read(model: Path | bytes) -> onnx.ModelProto | None:
    """An exported graph; None of any other, and of what ONNX Runtime itself should refuse."""
    content = model.read_bytes() if isinstance(model, Path) else model
    if _OURS not in content:
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


def _caches(provider: str, model: Path) -> dict[str, str]:
    """A folder for what is built of this very file."""
    try:
        short = next(name for name, full in PROVIDERS.items() if full == provider)
        key = hashlib.sha256(f"{short} {hash_file(model)}".encode()).hexdigest()
        folder = cache_folder("providers") / short / key
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (SvitDeployError, OSError) as error:
        log.warning("what %s builds is not kept: %s", provider, error)
        return {}
    if provider == RTX_PROVIDER:
        return {"nv_runtime_cache_path": str(folder)}
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }


def _plugins(graph: onnx.ModelProto) -> Mapping[str, str]:
    """The plugin library, if the graph has nodes for it; else their function bodies do."""
    from svit_deploy.graph.builder import FUNCTIONS_DOMAIN

    if not any(node.domain == FUNCTIONS_DOMAIN for node in graph.graph.node):
        return {}
    with contextlib.suppress(CapabilityError):
        return {"trt_extra_plugin_lib_paths": str(library_path().with_name(AUTOREGISTER))}
    log.info("no plugin library: the graph's plugin nodes are computed by standard operators")
    return {}
