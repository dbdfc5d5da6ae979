"""How to run a model."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.engines.providers import PROVIDERS
from svit_deploy.options import option


@dataclass(frozen=True, kw_only=True)
class ProviderSettings:
    """What runs a graph. Without a provider a bundle's engine does, if it has one."""

    provider: str | None = option(
        None,
        "ONNX Runtime provider: cpu, cuda, tensorrt, ... By default the bundle's TensorRT "
        "engine runs if it has one, else cpu.",
        metavar="NAME",
        choices=lambda: PROVIDERS,
    )
    threads: int = option(
        0, "ONNX Runtime threads per operator; 0 means one per core.", metavar="N", low=0, high=1024
    )


@dataclass(frozen=True, kw_only=True)
class RunSettings(ProviderSettings):
    """What runs a graph or an engine."""

    allow_foreign: bool = option(
        False,
        "Run an engine without its sidecar. Engines are native code: dangerous.",
        flag="--allow-foreign-engine",
    )
