"""How to run a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from svit_deploy.engines.providers import PROVIDERS
from svit_deploy.errors import UsageError
from svit_deploy.model.precision import FORMATS
from svit_deploy.options import option

ENGINES = ("onnxruntime", "openvino", "tensorrt")
"""Names of the engines; `runtimes` has a row for each."""
PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
"""What models run in, from the finest to the coarsest, and what OpenVINO calls it."""
FINENESS = ("fp32", *FORMATS, "fp16", "bf16")
"""What results can be computed in, from the finest: quantised graphs are float32 between layers."""


def parse_precision(text: str, flag: str) -> str:
    """Reads `f32` or `fp32`; raises UsageError for what is no precision."""
    for name, other in PRECISIONS.items():
        if text.lower() in (name, other):
            return name
    raise UsageError(f"{flag} {text!r} is unknown", f"use one of {', '.join(PRECISIONS.values())}")


def parse_pairs(pairs: Sequence[str], flag: str) -> dict[str, str]:
    """Reads `KEY=VALUE`, any number of them; raises UsageError for anything else."""
    told = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UsageError(f"{flag} {pair!r} is not KEY=VALUE", f"write, e.g., {flag} use_tf32=1")
        told[key] = value
    return told


def coarser(one: str, other: str) -> str:
    """The coarser of two precisions."""
    return max(one, other, key=FINENESS.index)


def floats_of(precision: str) -> str:
    """What a graph of a precision computes in but for quantised layers."""
    return "fp32" if precision in FORMATS else precision


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """Which engine runs a model, and how; `runtimes` has the engines."""

    engine: str | None = option(
        None,
        "Engine: onnxruntime, openvino or tensorrt. By default the TensorRT engine that the "
        "bundle brings, else onnxruntime.",
        metavar="NAME",
        choices=lambda: ENGINES,
    )
    engine_precision: str | None = option(
        None,
        "Precision in which openvino computes: f32, bf16 or f16. By default the bundle's own.",
        metavar="TYPE",
        parse=parse_precision,
        choices=PRECISIONS.values,
    )
    provider: str | None = option(
        None,
        "ONNX Runtime provider: cpu, cuda, tensorrt, ...; cpu by default. Given, the graph runs "
        "even where the bundle brings an engine.",
        metavar="NAME",
        choices=lambda: PROVIDERS,
    )
    provider_options: Mapping[str, str] = option(
        dict,
        "Option of the provider, trt_fp16_enable=1; may be repeated, and goes before ours.",
        flag="--provider-option",
        metavar="KEY=VALUE",
        many=True,
        parse=parse_pairs,
    )
    device: str | None = option(
        None,
        "Device of openvino: CPU, GPU or NPU; of TensorRT and NVIDIA's providers: a GPU's number.",
        metavar="NAME",
    )
    threads: int = option(
        0, "CPU threads per operator; 0 means one per core.", metavar="N", low=0, high=1024
    )


@dataclass(frozen=True, kw_only=True)
class RunSettings(EngineChoice):
    """The same where a file of unknown origin may be run."""

    allow_foreign: bool = option(
        False,
        "Run an engine without its sidecar. Engines are native code: dangerous.",
        flag="--allow-foreign-engine",
    )
