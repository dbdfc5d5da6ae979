"""What runs a bundle: its engine, or its graph in ONNX Runtime."""

from __future__ import annotations

from svit_deploy.bundle import Bundle
from svit_deploy.engines.base import Engine
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine, require_provider
from svit_deploy.engines.providers import CPU
from svit_deploy.engines.settings import ProviderSettings, RunSettings
from svit_deploy.engines.tensorrt.loading import check_engine
from svit_deploy.graph.half_precision import emulate_halves, inline_functions
from svit_deploy.plan import Plan


def runs_engine(bundle: Bundle, settings: ProviderSettings) -> bool:
    """Whether what runs is the bundle's engine."""
    return bundle.engine_path is not None and settings.provider is None


def require_run(bundle: Bundle, settings: RunSettings) -> None:
    """Raises a SvitDeployError where `open_bundle_engine` would; call it before any work."""
    engine = bundle.engine_path
    if engine is not None and settings.provider is None:
        check_engine(engine, allow_foreign=settings.allow_foreign)
    if bundle.split or not runs_engine(bundle, settings):
        require_provider(settings.provider or CPU)


def tell_run(plan: Plan, bundle: Bundle, settings: ProviderSettings) -> None:
    """What will be run, and on what."""
    plan.tell("bundle", f"{bundle.name}, token mode {bundle.mode.value}, {bundle.precision}")
    on = f"ONNX Runtime, provider {settings.provider or CPU}"
    if bundle.engine_path is not None and settings.provider is None:
        on = f"its engine {bundle.engine_path.name}"
    plan.tell("runs on", on)


def is_emulated(bundle: Bundle, settings: ProviderSettings) -> bool:
    """Whether a bfloat16 graph is emulated: ONNX Runtime has no such products on a CPU."""
    on_cpu = (settings.provider or CPU) == CPU and not runs_engine(bundle, settings)
    return on_cpu and bundle.precision == "bf16"


def open_bundle_engine(bundle: Bundle, settings: RunSettings) -> Engine:
    """What the bundle ships, as it is; its graph where a provider is named.

    Raises:
        SvitDeployError: it cannot run here.
    """
    if runs_engine(bundle, settings):
        return bundle.load_engine(allow_foreign=settings.allow_foreign)
    model = bundle.model_path
    if is_emulated(bundle, settings):
        content = emulate_halves(inline_functions(bundle.load_model())).SerializeToString()
        return OnnxRuntimeEngine(content, provider=CPU, threads=settings.threads)
    return OnnxRuntimeEngine(model, provider=settings.provider or CPU, threads=settings.threads)
