"""From an exported graph to a TensorRT engine beside it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from svit_deploy import __version__
from svit_deploy.bundle import (
    MODEL,
    REFERENCE,
    Bundle,
    check_output,
    open_bundle,
    write_bundle,
    write_manifest,
)
from svit_deploy.engines.tensorrt.build import build_engine, require_builder
from svit_deploy.engines.tensorrt.inspector import fusion_notes
from svit_deploy.engines.tensorrt.settings import BuildSettings
from svit_deploy.engines.tensorrt.sidecar import Sidecar
from svit_deploy.errors import UsageError
from svit_deploy.export.outline import assumed_line, engine_line, written_files
from svit_deploy.export.record import command_record
from svit_deploy.export.settings import EngineOptions, ExportSettings
from svit_deploy.export.shapes import profile_batches, profiles_for
from svit_deploy.machine.environment import describe_environment
from svit_deploy.machine.tensorrt import TARGETS
from svit_deploy.model.config import ModelConfig, TokenMode
from svit_deploy.model.profiles import Profile
from svit_deploy.plan import RUN, Plan
from svit_deploy.plugins import library_path
from svit_deploy.progress import SILENT, Progress
from svit_deploy.tasks import Task

log = logging.getLogger(__name__)


def add_engine(
    graph: Path,
    options: EngineOptions,
    profiles: Sequence[Profile],
    config: ModelConfig,
    mode: TokenMode,
    precision: str,
    plugins: bool,
    quantised: int,
    progress: Progress = SILENT,
) -> Sidecar:
    """Builds the engine of a graph, in the graph's folder, with its sidecar.

    Args:
        quantised: linear layers of the graph that multiply numbers of eight bits.

    Raises:
        SvitDeployError: CapabilityError where it cannot be built here, ExportError where it
            cannot be built at all.
    """
    settings = BuildSettings(
        target=options.target,
        profiles=tuple(profiles),
        precision=precision,
        tokens=mode.value,
        num_heads=config.num_heads,
        plugin_library=find_plugin_library(options, plugins),
        optimization_level=options.optimization_level,
        workspace_bytes=options.workspace_bytes,
        timing_cache=options.timing_cache,
        device=options.device,
    )
    sidecar = build_engine(graph, graph.parent, settings, progress)
    for note in fusion_notes(
        sidecar.settings.get("layers"),
        config.depth * len(profiles),
        quantised * len(profiles),
        precision=precision,
        head_dim=config.embed_dim // config.num_heads,
        tokens=mode.value,
    ):
        log.info("%s", note)
    return sidecar


def find_plugin_library(options: EngineOptions, plugins: bool) -> Path | None:
    """The library to build with, or None for function bodies or a graph without plugins.

    Raises:
        CapabilityError: it is wanted and was never built.
        UsageError: the file does not exist.
    """
    if not plugins or options.plugin_library == "none":
        return None
    if options.plugin_library is None:
        return library_path()
    path = Path(options.plugin_library)
    if not path.is_file():
        raise UsageError(
            f"--plugin-library {path} is not a file", "give the path of libsvit_trt.so, or none"
        )
    return path


def engine_notes(mode: TokenMode, num_gates: int) -> list[str]:
    """What a user of the engine should know of its token mode."""
    if mode is not TokenMode.DYNAMIC or not num_gates:
        return []
    return [
        f"token mode dynamic on TensorRT: each of the {num_gates} gates makes the host wait for "
        "its count of tokens, and no CUDA graph can be captured; --tokens budget has static shapes"
    ]


def build_beside(
    folder: Path,
    config: ModelConfig,
    task: Task,
    profiles: Sequence[Profile],
    settings: ExportSettings,
    quantised: int,
    progress: Progress,
) -> str:
    """Builds the engine of the graph in a folder, and returns its file name."""
    assert settings.engine is not None
    with task.engine_graph(folder, MODEL) as graph:
        sidecar = add_engine(
            graph,
            settings.engine,
            profiles,
            config,
            settings.mode,
            settings.precision,
            settings.plugins,
            quantised,
            progress,
        )
    return sidecar.engine


def rebuild(
    source: Path,
    output: Path,
    settings: ExportSettings,
    *,
    force: bool = False,
    command: Sequence[str] = (),
    progress: Progress = SILENT,
    plan: Plan = RUN,
) -> Bundle:
    """A copy of a bundle with an engine of its graph for this machine. Needs no PyTorch.

    Raises:
        UsageError: no engine is asked for, or an option that would change the graph.
        SvitDeployError: as `add_engine`, or ExportError if `output` is in the way.
    """
    options = settings.engine
    if options is None:
        raise UsageError(
            f"{source} is a bundle already",
            f"give a checkpoint, or --target {' or '.join(TARGETS)} to build an engine of it",
        )
    if given := [name for name, value in _graph_options(settings).items() if value]:
        raise UsageError(
            f"{given[0]} cannot change the graph of a bundle",
            "leave it out, or give a checkpoint",
        )
    plan.needs(check_output, output, force=force)
    bundle = open_bundle(source)
    plan.needs(require_builder, options.target, options.device, bundle.precision)
    plugins = bundle.manifest["tokens"]["plugins"]
    plan.needs(find_plugin_library, options, plugins)
    profiles = profiles_for(settings, bundle.task, bundle.sizes)
    plan.tell("bundle", f"{bundle.name}, its graph and samples are copied")
    for line in (engine_line(options.target, profiles), *assumed_line(bundle.assumed)):
        plan.tell(*line)
    plan.writes(*written_files(output, bundle.task, bundle.precision, engine=True))
    plan.begin()
    with write_bundle(output, force=force) as folder:
        for name in (MODEL, REFERENCE):
            shutil.copyfile(bundle.path / name, folder / name)
        with bundle.engine_graph(folder) as graph:
            sidecar = add_engine(
                graph,
                options,
                profiles,
                bundle.config,
                bundle.mode,
                bundle.precision,
                plugins,
                len(bundle.steps),
                progress,
            )
        batch = profile_batches(profiles)
        notes = engine_notes(bundle.mode, bundle.config.num_gates)
        changed = {
            "tool": {"name": "svit-deploy", "version": __version__},
            "command": command_record(command),
            "batch": {"min": batch.min, "opt": batch.opt, "max": batch.max},
            "engine": sidecar.engine,
            "notes": [*(n for n in bundle.manifest["notes"] if n not in notes), *notes],
            "environment": describe_environment(),
        }
        kept = {k: v for k, v in bundle.manifest.items() if k not in ("schema_version", "files")}
        write_manifest(folder, kept | changed)
    for note in notes:
        log.info("%s", note)
    return open_bundle(output)


def _graph_options(settings: ExportSettings) -> dict[str, object]:
    """What was asked for that only another graph could give."""
    return {
        "--task": settings.task != ExportSettings.task,
        "--tokens": settings.tokens,
        "--precision": settings.precision != ExportSettings.precision,
        "--plugins": settings.plugins,
        "--image-size": settings.image_size,
        "--budget": settings.budget,
        "--calibration": settings.calibration,
        "--calibrate-gates": settings.calibrate_gates,
        "--arch or --set": settings.arch or settings.overrides,
        "--strict": settings.strict,
        "--weights": settings.weights,
        "--class-names": settings.class_names,
    }
