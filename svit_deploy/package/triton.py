"""A model repository for Triton Inference Server: ONNX Runtime's backend, or TensorRT's.

What config.pbtxt may hold: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/
docs/user_guide/model_configuration.html
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from svit_deploy.bundle import Bundle
from svit_deploy.engines.providers import CPU
from svit_deploy.engines.runtimes import ONNXRUNTIME, TENSORRT
from svit_deploy.engines.tensorrt.sidecar import read_sidecar
from svit_deploy.errors import InputError, UsageError
from svit_deploy.inference.engine import choose, is_emulated
from svit_deploy.machine.packages import require
from svit_deploy.model.precision import FP8
from svit_deploy.names import LOGITS
from svit_deploy.package.settings import PackageSettings

KINDS = {CPU: "KIND_CPU", "cuda": "KIND_GPU"}
TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
    onnx.TensorProto.INT64: "TYPE_INT64",
}
LABELS = "labels.txt"


def check_triton(bundle: Bundle, settings: PackageSettings) -> None:
    """Raises a SvitDeployError for what Triton could not run, or this machine not write."""
    require(
        "tritonclient.grpc",
        "package --format triton",
        "Triton's own configuration messages",
        extra="triton",
        called="tritonclient",
    )
    runtime, file = choose(bundle, settings)
    if runtime is TENSORRT:
        _check_engine(bundle, file)
    elif runtime is not ONNXRUNTIME:
        raise UsageError(
            f"--engine {runtime.name} is not packaged for Triton", "use --engine onnxruntime"
        )
    elif (settings.provider or CPU) not in KINDS:
        raise UsageError(
            f"--provider {settings.provider} is not packaged for Triton",
            f"use {' or '.join(KINDS)}, or a bundle with a TensorRT engine",
        )
    elif is_emulated(bundle, settings):
        raise InputError(
            "ONNX Runtime has no bfloat16 products on a processor",
            "use --provider cuda, or another --precision",
        )
    elif bundle.precision == FP8.name:
        raise InputError(
            "Triton cannot tell its ONNX Runtime to leave an fp8 graph as it is",
            "export it with --target tensorrt, or another --precision",
        )


def _check_engine(bundle: Bundle, engine: Path) -> None:
    graph = "package its graph with --provider cuda"
    sidecar = read_sidecar(engine)
    if bundle.split:
        raise InputError(f"the engine of {bundle.name} computes a part of the model", graph)
    if sidecar.target != "tensorrt":
        raise InputError(f"Triton does not run engines of --target {sidecar.target}", graph)
    if sidecar.plugins:
        raise InputError(f"the engine of {bundle.name} needs plugin libraries", graph)
    batch = bundle.manifest["batch"]
    if batch["min"] != 1 or batch["max"] == 1:
        raise InputError(
            f"the engine of {bundle.name} takes batches of {batch['min']} to {batch['max']}, and "
            "Triton's begin with 1 and have a range",
            f"export it with --batch 1:4:8, or {graph}",
        )


def write_triton(bundle: Bundle, name: str, settings: PackageSettings, folder: Path) -> None:
    """`NAME/config.pbtxt`, `NAME/1/model.onnx` or `model.plan`, and a request to warm up with."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as messages

    model = folder / name
    (model / "1").mkdir(parents=True)
    (model / "warmup").mkdir()
    runtime, file = choose(bundle, settings)
    content = describe_model(bundle, name, settings)
    shutil.copyfile(file, model / "1" / ("model.plan" if runtime is TENSORRT else "model.onnx"))
    sample = bundle.load_samples()[0].images[0]
    for tensor, array in bundle.task.feeds([sample]).items():
        (model / "warmup" / tensor).write_bytes(np.ascontiguousarray(array).tobytes())
    if len(bundle.class_names):
        titles = (bundle.class_names.title(i) for i in range(len(bundle.class_names)))
        (model / LABELS).write_text("\n".join(titles) + "\n", encoding="utf-8")
    text = text_format.MessageToString(content)
    text_format.Parse(text, messages.ModelConfig())
    (model / "config.pbtxt").write_text(text, encoding="utf-8")


def describe_model(bundle: Bundle, name: str, settings: PackageSettings) -> Any:
    """A bundle as a `ModelConfig`."""
    from tritonclient.grpc import model_config_pb2 as messages

    graph = bundle.load_model().graph
    is_engine = choose(bundle, settings)[0] is TENSORRT
    batched = _shares_batch(graph)
    largest = bundle.manifest["batch"]["max"]
    config = messages.ModelConfig(
        name=name,
        backend="tensorrt" if is_engine else "onnxruntime",
        max_batch_size=largest if batched else 0,
        input=[messages.ModelInput(**_tensor(one, batched)) for one in graph.input],
        output=[messages.ModelOutput(**_tensor(one, batched)) for one in graph.output],
        instance_group=[
            messages.ModelInstanceGroup(
                count=1, kind="KIND_GPU" if is_engine else KINDS[settings.provider or CPU]
            )
        ],
    )
    for size in sorted({1, largest if batched else 1}):
        config.model_warmup.append(_warmup(bundle, batched, size))
    for output in config.output:
        if output.name == LOGITS and len(bundle.class_names):
            output.label_filename = LABELS
    if batched and bundle.together > 1:
        config.dynamic_batching.preferred_batch_size.append(bundle.together)
        config.dynamic_batching.max_queue_delay_microseconds = round(1000 * settings.max_delay)
    if settings.threads and not is_engine:
        config.parameters["intra_op_thread_count"].string_value = str(settings.threads)
    told = {"preprocess": bundle.manifest["preprocess"], "model_sha256": bundle.model_sha256}
    for key, value in told.items():
        text = value if isinstance(value, str) else json.dumps(value)
        config.parameters[f"svit_{key}"].string_value = text
    return config


def _shares_batch(graph: onnx.GraphProto) -> bool:
    """Whether the first axis of all that goes in and comes out is the batch."""
    first = {_sides(one)[0] for one in (*graph.input, *graph.output)}
    return len(first) == 1 and isinstance(first.pop(), str)


def _sides(value: onnx.ValueInfoProto) -> list[int | str]:
    """Sizes, or names where they are free."""
    return [
        side.dim_value if side.HasField("dim_value") else side.dim_param
        for side in value.type.tensor_type.shape.dim
    ]


def _tensor(value: onnx.ValueInfoProto, batched: bool) -> Mapping[str, Any]:
    """Triton leaves the batch out of the shape where it batches."""
    sides: Iterable[int | str] = _sides(value)[1 if batched else 0 :]
    return {
        "name": value.name,
        "data_type": TYPES[value.type.tensor_type.elem_type],
        "dims": [side if isinstance(side, int) else -1 for side in sides],
    }


def _warmup(bundle: Bundle, batched: bool, size: int) -> Any:
    """A sample, so many times at once."""
    from tritonclient.grpc import model_config_pb2 as messages

    warmup = messages.ModelWarmup(name=f"sample, batch {size}", batch_size=size if batched else 0)
    sample = bundle.load_samples()[0].images[0]
    for name, array in bundle.task.feeds([sample]).items():
        tensor = warmup.inputs[name]
        tensor.data_type = "TYPE_FP32"
        tensor.dims.extend(array.shape[1 if batched else 0 :])
        tensor.input_data_file = name
    return warmup
