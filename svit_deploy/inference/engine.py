"""What runs a bundle: the engine that is asked for, by default the one that it brings."""

from __future__ import annotations

from pathlib import Path

from svit_deploy.bundle import Bundle
from svit_deploy.engines.base import Engine
from svit_deploy.engines.batches import Batches
from svit_deploy.engines.providers import CPU
from svit_deploy.engines.runtimes import ONNXRUNTIME, TENSORRT, Runtime, check_options, runtime_for
from svit_deploy.engines.settings import EngineChoice, coarser
from svit_deploy.graph.half_precision import emulate_halves, inline_functions
from svit_deploy.plan import Plan


def choose(bundle: Bundle, settings: EngineChoice) -> tuple[Runtime, Path]:
    """What runs a bundle, and which of its files; raises UsageError where nothing does."""
    return runtime_for(bundle.runnable, settings)


def computed_in(bundle: Bundle, settings: EngineChoice) -> str:
    """The precision of a bundle's results: its own, or the engine's if that is coarser.

    Raises:
        UsageError: the task's results do not survive it.
    """
    runtime, _ = choose(bundle, settings)
    asked = runtime.given(settings).get("engine_precision", bundle.precision)
    precision = coarser(bundle.precision, asked)
    if precision != bundle.precision:
        bundle.task.check_precision(precision)
    return precision


def require_run(bundle: Bundle, settings: EngineChoice) -> None:
    """Raises a SvitDeployError where a bundle cannot run as asked; call it before any work."""
    runtime, _ = choose(bundle, settings)
    check_options([runtime], settings)
    require_among_others(bundle, settings)


def require_among_others(bundle: Bundle, settings: EngineChoice) -> None:
    """The same where options may be meant for another engine."""
    runtime, file = choose(bundle, settings)
    runtime.require(file, settings, bundle.precision)
    computed_in(bundle, settings)
    if bundle.split and not runtime.runs_graphs:
        ONNXRUNTIME.require(bundle.model_path, EngineChoice())


def runs_on(bundle: Bundle, settings: EngineChoice) -> str:
    """What runs a bundle, in words."""
    runtime, file = choose(bundle, settings)
    return runtime.describe(file, settings, bundle.precision)


def tell_run(plan: Plan, bundle: Bundle, settings: EngineChoice) -> None:
    """What will be run, and on what."""
    plan.tell("bundle", f"{bundle.name}, token mode {bundle.mode.value}, {bundle.precision}")
    plan.tell("runs on", runs_on(bundle, settings))


def uses_gpu(bundle: Bundle, settings: EngineChoice) -> bool:
    """Whether what runs a bundle wants a GPU for itself."""
    runtime, _ = choose(bundle, settings)
    return runtime is TENSORRT or settings.provider not in (None, CPU)


def is_emulated(bundle: Bundle, settings: EngineChoice) -> bool:
    """Whether the graph's precision is emulated, for what runs it has no such products."""
    runtime, _ = choose(bundle, settings)
    return runtime.lacks(bundle.precision, settings)


def open_bundle_engine(bundle: Bundle, settings: EngineChoice) -> Engine:
    """What the bundle ships, as it is, for batches of any size.

    Raises:
        SvitDeployError: it cannot run here.
    """
    runtime, file = choose(bundle, settings)
    if runtime.lacks(bundle.precision, settings):
        content = emulate_halves(inline_functions(bundle.load_model())).SerializeToString()
        return runtime.load(content, settings)
    engine = runtime.load(file, settings, bundle.precision)
    if runtime.runs_graphs:
        return engine
    batch = bundle.manifest["batch"]
    return bundle.with_rest(Batches(engine, batch["min"], batch["max"]))
