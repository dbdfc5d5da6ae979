"""Which engine runs a model, and which options mean something to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from svit_deploy.bench.settings import BenchSettings
from svit_deploy.engines import runtimes
from svit_deploy.engines.device.cuda import Gpu
from svit_deploy.engines.providers import PROVIDERS
from svit_deploy.engines.runtimes import ONNXRUNTIME, RUNTIMES, TENSORRT, check_options, runtime_for
from svit_deploy.engines.settings import (
    ENGINES,
    EngineChoice,
    coarser,
    parse_pairs,
    parse_precision,
)
from svit_deploy.errors import UsageError

GRAPH, BUILT = Path("out/model.onnx"), Path("out/model.trt10.engine")
BOTH = (BUILT, GRAPH)


@pytest.mark.parametrize(
    ("files", "asked", "name", "file"),
    [
        ([GRAPH], {}, "onnxruntime", GRAPH),
        (BOTH, {}, "tensorrt", BUILT),
        (BOTH, {"provider": "cpu"}, "onnxruntime", GRAPH),
        ([BUILT], {"provider": "cpu"}, "tensorrt", BUILT),  # beside graphs in one comparison
        (BOTH, {"engine": "onnxruntime"}, "onnxruntime", GRAPH),
        (BOTH, {"engine": "openvino"}, "openvino", GRAPH),
        (BOTH, {"engine": "tensorrt"}, "tensorrt", BUILT),
        ([Path("a.plan")], {}, "tensorrt", Path("a.plan")),
    ],
)
def test_the_engine_for_a_model(files, asked, name, file):
    runtime, found = runtime_for(files, EngineChoice(**asked))
    assert (runtime.name, found) == (name, file)


@pytest.mark.parametrize(
    ("files", "engine", "message"),
    [
        (BOTH, "onnx", "engine 'onnx' is unknown; use one of onnxruntime, openvino, tensorrt"),
        ([GRAPH], "tensorrt", r"tensorrt runs \.engine.* not model.onnx; export with --target"),
        ([BUILT], "openvino", r"openvino runs \.onnx files, .*; use --engine tensorrt"),
    ],
)
def test_an_engine_that_does_not_run_it(files, engine, message):
    with pytest.raises(UsageError, match=message):
        runtime_for(files, EngineChoice(engine=engine))


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        (["openvino"], {"provider": "cpu"}, "--provider cpu has no meaning for openvino"),
        (["onnxruntime"], {"device": "1"}, "--device 1 .* --engine onnxruntime --provider cuda or"),
        (["onnxruntime"], {"provider": "tensorrt", "cuda_graph": "on"}, "--cuda-graph on has no"),
        (["openvino"], {"provider_options": {"a": "1"}}, "--provider-option .* has no meaning for"),
        (["onnxruntime"], {"engine_precision": "bf16"}, "--engine-precision bf16 .*openvino"),
        (["onnxruntime", "openvino"], {"cuda_graph": "on"}, "onnxruntime and openvino"),
    ],
)
def test_options_that_mean_nothing(names, asked, message):
    used = [RUNTIMES[name] for name in names]
    with pytest.raises(UsageError, match=message):
        check_options(used, BenchSettings(**asked))
    check_options(used, BenchSettings())


def test_options_that_mean_something_to_one_of_the_engines():
    used = list(RUNTIMES.values())
    asked = BenchSettings(provider="cpu", device="GPU", engine_precision="fp16", cuda_graph="on")
    check_options(used, asked)
    assert all(row.options for row in used)


def test_options_of_a_provider():
    assert parse_pairs(["a=1", "b=c=d", "e="], "--p") == {"a": "1", "b": "c=d", "e": ""}
    for text in ("a", "=1"):
        with pytest.raises(UsageError, match=f"--p '{text}' is not KEY=VALUE"):
            parse_pairs([text], "--p")
    told = {"provider": "cuda", "provider_options": {"use_tf32": "1"}}
    assert ONNXRUNTIME.given(EngineChoice(**told)) == told
    with pytest.raises(UsageError, match="without a provider; add --provider"):
        ONNXRUNTIME.load(b"", EngineChoice(provider_options={"use_tf32": "1"}))


def test_a_gpu_has_a_number():
    for runtime, asked in ((TENSORRT, {}), (ONNXRUNTIME, {"provider": "cuda"})):
        with pytest.raises(UsageError, match="--device GPU is no number of a GPU"):
            runtime.load(BUILT, EngineChoice(device="GPU", **asked))


@pytest.mark.parametrize("provider", ["cuda", "TensorrtExecutionProvider", "nv-tensorrt-rtx"])
def test_the_device_of_nvidias_providers(provider):
    asked = EngineChoice(provider=provider, device="1")
    check_options([ONNXRUNTIME], asked)
    assert ONNXRUNTIME.given(asked)["device"] == 1
    assert ONNXRUNTIME.describe(GRAPH, asked) == f"ONNX Runtime, provider {provider} on GPU 1"
    asked = EngineChoice(provider=provider, device="1", provider_options={"device_id": "0"})
    with pytest.raises(UsageError, match="device_id=0 contradicts device 1; leave it out"):
        ONNXRUNTIME.require(GRAPH, asked)
    assert "device" not in ONNXRUNTIME.given(EngineChoice(provider="cpu", device="GPU"))


def test_each_name_has_a_row():
    assert tuple(RUNTIMES) == ENGINES
    assert all(name == row.name for name, row in RUNTIMES.items())


def test_what_runs_in_words():
    told = [
        row.describe(GRAPH, EngineChoice(engine_precision="bf16"), "fp32")
        for row in RUNTIMES.values()
    ]
    assert told == [
        "ONNX Runtime, provider cpu",
        "OpenVINO, CPU in bf16",
        "the engine model.onnx",
    ]


def test_what_has_products_of_fp8(monkeypatch):
    """TensorRT alone; ONNX Runtime's other providers widen, OpenVINO rounds otherwise."""
    widened = [name for name in PROVIDERS if ONNXRUNTIME.widens("fp8", EngineChoice(provider=name))]
    assert {*PROVIDERS} - {*widened} == {"tensorrt", "nv-tensorrt-rtx"}
    assert ONNXRUNTIME.passes_over("fp8", EngineChoice()) == "it computes fp8 in float32"
    openvino = RUNTIMES["openvino"]
    for refused in (openvino.require, openvino.describe, openvino.load):
        with pytest.raises(UsageError, match=r"OpenVINO rounds an fp8 graph otherwise .*int8"):
            refused(GRAPH, EngineChoice(), "fp8")
    assert openvino.passes_over("fp8", EngineChoice()) == "it rounds fp8 otherwise than ONNX says"
    for capability, words in (
        ("8.6", "has no products of fp8, which begin with 8.9"),
        ("8.9", None),
    ):
        gpu = Gpu("NVIDIA Fake 9000", capability)
        monkeypatch.setattr(runtimes, "require_gpu", lambda gpu=gpu: (gpu, None))
        why = TENSORRT.passes_over("fp8", EngineChoice())
        assert why is None if words is None else words in why
        assert TENSORRT.passes_over("int8", EngineChoice()) is None


def test_precisions():
    assert [parse_precision(text, "--p") for text in ("f32", "fp32", "BF16", "f16")] == [
        "fp32",
        "fp32",
        "bf16",
        "fp16",
    ]
    with pytest.raises(UsageError, match="--p 'int8' is unknown; use one of f32, f16, bf16"):
        parse_precision("int8", "--p")
    assert coarser("fp32", "fp16") == coarser("fp16", "fp32") == "fp16"
    assert coarser("fp16", "bf16") == "bf16"
