"""The process that builds one engine: where TensorRT may crash, hang or be killed without us.

It tells its parent how it goes on a channel (`channel.py`).
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from svit_deploy.engines.device.cuda import Gpu
from svit_deploy.engines.tensorrt.channel import LOG, RESULT, Channel, make_logger
from svit_deploy.engines.tensorrt.gpu import Versions, check_products, require_gpu
from svit_deploy.engines.tensorrt.inspector import read_layer_lines
from svit_deploy.engines.tensorrt.network import (
    PARSED,
    configure,
    load_plugins,
    parse_network,
    user_allocation,
)
from svit_deploy.engines.tensorrt.packed import pack_attention
from svit_deploy.engines.tensorrt.plugin_nodes import FORMS, PluginGraph
from svit_deploy.engines.tensorrt.settings import NO_TIMING_CACHE, BuildSettings
from svit_deploy.engines.tensorrt.sidecar import Sidecar
from svit_deploy.engines.tensorrt.timing_cache import TimingCache, default_path
from svit_deploy.errors import CapabilityError, ExportError, SvitDeployError
from svit_deploy.io.files import hash_file
from svit_deploy.machine.tensorrt import ENTERPRISE, RTX, Library, load_library, one_line

log = logging.getLogger(__name__)

_OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|bad_alloc|MemoryAllocation|insufficient memory", re.IGNORECASE
)
_OLD_DRIVER = re.compile(r"insufficient ?driver|error:? ?35\b|driver version", re.IGNORECASE)


def main() -> None:
    """Builds the engine of a graph (first argument) with its sidecar in a folder (second).

    Standard input has the settings; the answer is the engine's file name, or an error. Without
    arguments it only looks whether it could build here.
    """
    channel = Channel()
    logging.basicConfig(level=logging.INFO, handlers=[_Forward(channel)])
    try:
        settings = BuildSettings.from_json(sys.stdin.read())
        if not sys.argv[1:]:
            look_around(settings)
            channel.send(RESULT, "")
            return
        onnx, folder = map(Path, sys.argv[1:])
        channel.send(RESULT, build(onnx, folder, settings, channel))
    except SvitDeployError as error:
        channel.error(error)


class _Forward(logging.Handler):
    """Hands the package's own log records to the parent."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send(LOG, [record.levelno, record.getMessage()])


def build(onnx: Path, folder: Path, settings: BuildSettings, channel: Channel) -> str:
    """Builds an engine and writes it with its sidecar; returns the engine's file name.

    Raises:
        SvitDeployError: CapabilityError for what this machine lacks, UsageError for profiles that
            do not fit, ExportError for all that TensorRT refuses.
    """
    start = time.monotonic()
    channel.progress("starting the builder", 0.0)
    library, gpu, versions = look_around(settings)
    plugins, onnx_sha256 = _plugin_hashes(settings), hash_file(onnx)
    cache = _choose_cache(library, settings, onnx_sha256, plugins, gpu, versions)
    place = gpu.sm if gpu else "portable"
    engine = folder / f"model.{settings.precision}-{library.short_version}-{place}.engine"

    def waiting() -> None:
        channel.progress("waiting for another build of the same engine", 0.0)

    with cache.hold(waiting) if cache else nullcontext():
        built = _build_file(library, onnx, engine, settings, cache, channel)
    layers = read_layer_lines(channel.layers)
    with _writing():
        Sidecar(
            engine=engine.name,
            engine_sha256=hash_file(engine),
            engine_size=engine.stat().st_size,
            onnx_sha256=onnx_sha256,
            target=settings.target,
            tensorrt=library.version,
            precision=settings.precision,
            tokens=settings.tokens,
            profiles=settings.profiles,
            cuda=versions.cuda if versions else None,
            driver=versions.driver if versions else None,
            gpu=gpu,
            plugins=tuple(plugins),
            settings={
                **settings.record(),
                **built,
                "layers": layers.to_dict() if layers else None,
            },
            build_s=time.monotonic() - start,
        ).write(folder)
    return engine.name


def look_around(settings: BuildSettings) -> tuple[Library, Gpu | None, Versions | None]:
    """The library of a target, and the GPU with its versions where a build needs one.

    Raises:
        CapabilityError: something of it is missing, broken or too old.
    """
    library = load_library(settings.target)
    if settings.target != ENTERPRISE:
        return library, None, None
    gpu, versions = require_gpu()
    check_products(gpu, settings.precision)
    return library, gpu, versions


def _plugin_hashes(settings: BuildSettings) -> list[tuple[str, str]]:
    path = settings.plugin_library
    if path is None:
        return []
    if not path.is_file():
        raise CapabilityError(
            f"the plugin library {path} is not a file",
            "build it: svit-deploy plugins build --tensorrt-include DIR",
        )
    return [(path.name, hash_file(path))]


def _choose_cache(
    library: Library,
    settings: BuildSettings,
    onnx_sha256: str,
    plugins: list[tuple[str, str]],
    gpu: Gpu | None,
    versions: Versions | None,
) -> TimingCache | None:
    if library.target == RTX or settings.timing_cache == NO_TIMING_CACHE:
        return None
    if settings.timing_cache is not None:
        return TimingCache(Path(settings.timing_cache))
    profiles = [asdict(profile) for profile in settings.profiles]
    content = {
        "onnx": onnx_sha256,
        "plugins": plugins,
        "settings": settings.record() | {"profiles": profiles},
        "tensorrt": [library.target, library.version],
        "gpu": asdict(gpu) if gpu else None,
        "driver": versions.driver.split(".")[0] if versions else None,
    }
    try:
        return TimingCache(default_path(content))
    except CapabilityError as error:
        log.warning("no timing cache: %s", error)
        return None


def _build_file(
    library: Library,
    onnx: Path,
    engine: Path,
    settings: BuildSettings,
    cache: TimingCache | None,
    channel: Channel,
) -> dict[str, Any]:
    """Builds and writes the engine; returns what came of it, for the sidecar.

    Whether there is a kernel for packed attention, and in which form this release takes the
    plugins, only a build tells. So one is tried after the other: packed attention first, then the
    graph's own, padded one, at last with the plugins in other forms.
    """
    logger = make_logger(library.trt, channel)
    builder = _create_builder(library, logger, channel)
    graph = None
    if settings.plugin_library is not None:
        load_plugins(library, builder, settings.plugin_library, channel)
        graph = PluginGraph(onnx)
    refused: list[ExportError | CapabilityError] = []
    for form in graph.forms if graph else FORMS[:1]:
        for pack in (True, False) if settings.packed_attention else (False,):
            channel.progress("reading the graph", PARSED / 2)
            source = graph.write(engine.with_suffix(".onnx"), form) if graph else onnx
            network, _parser = parse_network(library, builder, source, channel, logger)
            if graph:
                graph.check(library, network)
            blocks = pack_attention(library, network, settings.num_heads) if pack else 0
            config = configure(library, builder, network, settings, channel)
            if cache:
                _use_cache(config, cache)
            channel.errors.clear()
            channel.progress("building the engine", PARSED)
            plan = builder.build_serialized_network(network, config)
            if plan is not None:
                with _writing():
                    engine.write_bytes(plan)
                if cache:
                    cache.write(bytes(config.get_timing_cache().serialize()))
                return {
                    "packed_blocks": blocks,
                    "plugin_form": form.to_dict() if graph else None,
                    "user_allocation": user_allocation(library, settings) is not None,
                }
            failure = _failure(library, "cannot build the engine", channel)
            if not blocks:
                break
            reason = one_line(channel.errors[0]) if channel.errors else "no reason given"
            log.info("no packed attention here, the padded one is built instead: %s", reason)
        refused.append(failure)
        if _is_of_the_machine(channel.errors):
            break
        if graph:
            log.info("the plugins are not taken as %s: %s", form, failure.message)
    raise refused[0]


def _create_builder(library: Library, logger: Any, channel: Channel) -> Any:
    try:
        return library.trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # TypeError: pybind11's word for a null pointer
        channel.errors.append(str(error))
        raise _failure(library, "cannot start", channel) from error


def _use_cache(config: Any, cache: TimingCache) -> None:
    """Gives the builder the timings of earlier builds, if they are sound and of this GPU."""
    content = cache.read()
    timings = config.create_timing_cache(content)
    if timings is None or not config.set_timing_cache(timings, ignore_mismatch=False):
        cache.reject()
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _is_of_the_machine(errors: list[str]) -> bool:
    """Whether another graph would fare no better."""
    return any(_OUT_OF_MEMORY.search(error) or _OLD_DRIVER.search(error) for error in errors)


def _failure(library: Library, what: str, channel: Channel) -> ExportError | CapabilityError:
    reasons = [one_line(error) for error in channel.errors] or ["it gives no reason"]
    for reason in reasons:
        if _OUT_OF_MEMORY.search(reason):
            return ExportError(
                f"{library.name} {what}, out of memory: {reason}",
                "lower --workspace or the largest --batch, or free the GPU",
            )
        if _OLD_DRIVER.search(reason):
            return CapabilityError(
                f"{library.name} {what}, the NVIDIA driver is too old: {reason}",
                "upgrade the driver, or install a TensorRT made for it",
            )
    return ExportError(
        f"{library.name} {what}: {reasons[0]}",
        "run again with -v for its log; other --tokens or --precision may build",
    )


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"cannot write the engine ({error.strerror or error})",
            "give a folder on a disk with room, with -o",
        ) from error


if __name__ == "__main__":
    main()
