"""What is tried follows from what families, tasks and engines say."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svit_deploy import api
from svit_deploy.cli import main
from svit_deploy.engines.openvino.library import DEVICES
from svit_deploy.engines.runtimes import RUNTIMES, OnnxRuntime, OpenVino, TensorRT
from svit_deploy.engines.settings import EngineChoice
from svit_deploy.errors import CapabilityError, UsageError
from svit_deploy.methods.families import FAMILIES
from svit_deploy.tune import candidates as module
from svit_deploy.tune.candidates import Candidate, Found, find_candidates
from svit_deploy.tune.settings import TuneSettings
from tests.small_models import small_model

IMAGES = Path("val")


def find(family: str = "svit", task: str = "classify", **options: Any) -> Found:
    settings = TuneSettings(images=IMAGES, task=task, **options)
    return find_candidates(small_model(family, task), settings)


def names(found: Found) -> list[str]:
    return [candidate.name for candidate in found.candidates]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """ONNX Runtime on the CPU and on a GPU, OpenVINO in two precisions, no TensorRT."""

    def onnxruntime(self: OnnxRuntime) -> Iterator[EngineChoice]:
        for provider in (None, "cuda"):
            yield EngineChoice(engine=self.name, provider=provider)

    def openvino(self: OpenVino) -> Iterator[EngineChoice]:
        for precision in ("fp32", "bf16"):
            yield EngineChoice(engine=self.name, engine_precision=precision)

    def tensorrt(self: TensorRT) -> Iterator[EngineChoice]:
        raise CapabilityError("there is no GPU", "buy one")

    monkeypatch.setattr(OnnxRuntime, "ways", onnxruntime)
    monkeypatch.setattr(OpenVino, "ways", openvino)
    monkeypatch.setattr(TensorRT, "ways", tensorrt)
    for runtime in (OnnxRuntime, OpenVino):
        monkeypatch.setattr(runtime, "require", lambda *given: None)
    return monkeypatch


def test_every_mode_on_every_engine():
    found = find(budget_percentiles=(100.0,))
    modes = [mode.value for mode in FAMILIES["svit"].modes]
    ways = ["onnxruntime", "openvino:f32", "openvino:bf16"]
    assert {f"{mode}-fp32@{way}" for mode in modes for way in ways} <= {*names(found)}
    assert {"dynamic-fp16@onnxruntime, cuda", "dense-int8@onnxruntime"} <= {*names(found)}
    assert len({*names(found)}) == len(found.candidates)
    assert found.base.name == "dynamic-fp32@onnxruntime"
    assert found.all[0].name == found.base.name
    assert len(found.all) == len(found.candidates)


def test_what_no_engine_computes_is_left_out_with_a_reason():
    left_out = dict(find().left_out)
    assert "no products of bf16" in left_out["bf16 on onnxruntime"]
    assert "in float32" in left_out["fp16 on onnxruntime"]
    assert "of the fp32 graph" in left_out["fp16 on openvino"]
    assert left_out["fp8 on onnxruntime"] == "it computes fp8 in float32"
    assert left_out["fp8 on openvino"] == "it rounds fp8 otherwise than ONNX says"
    assert left_out["int8 on openvino"] == "nothing says what int8 may be off by in bf16"
    assert left_out["tensorrt"] == "there is no GPU"
    assert not any(name.startswith("dynamic-fp16@onnxruntime ") for name in names(find()))


@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.head])
def test_modes_are_those_of_the_family(family):
    task = FAMILIES[family].backbone.tasks[0]
    found = find(family, task, engines=("onnxruntime",), precisions=("fp32",))
    tried = {candidate.variant.options["tokens"] for candidate in found.candidates}
    assert tried == {mode.value for mode in FAMILIES[family].modes}


def test_percentages_of_budgets_are_candidates_of_their_own():
    found = find(
        modes=("budget",),
        engines=("openvino",),
        precisions=("fp32",),
        budget_percentiles=(100.0, 97.5),
    )
    assert {candidate.variant.name for candidate in found.candidates} == {
        "budget-fp32",
        "budget97.5-fp32",
    }
    assert found.base not in found.candidates
    assert found.all[0] is found.base


def test_without_labels_only_what_computes_the_same_is_tried():
    found = find("svit_adapter", "backbone", engines=("onnxruntime",))
    assert not found.labelled
    assert {one.variant.options["tokens"] for one in found.candidates} == {
        "dynamic",
        "budget",
        "masked",
    }
    left_out = dict(found.left_out)
    assert "nothing tells" in left_out["dense"] and "nothing tells" in left_out["budget of 95 %"]


def test_each_target_that_builds_here_is_tried(machine):
    machine.setattr(TensorRT, "ways", lambda self: iter([EngineChoice(engine=self.name)]))

    def builder(target: str) -> None:
        if target == "tensorrt-rtx":
            raise CapabilityError("no RTX", "install it")

    machine.setattr(module, "require_builder", builder)
    found = find(engines=("tensorrt",), modes=("dense",), batches=(8, 1))
    assert {*names(found)} >= {
        f"dense-{precision}-tensorrt@tensorrt" for precision in ("fp32", "fp16", "bf16")
    }
    assert ("tensorrt-rtx", "no RTX") in found.left_out
    options = found.candidates[0].variant.options
    assert (options["target"], options["batch"]) == ("tensorrt", "1,8")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modes": ("static",)}, "--modes static"),
        ({"precisions": ("fp31",)}, "--precisions fp31"),
        ({"engines": ("onnx",)}, "'onnx' is unknown"),
    ],
)
def test_names_that_there_are_not(options, words):
    with pytest.raises(UsageError, match=words):
        find(**options)


def test_a_place_that_does_not_start_is_left_out_alone(machine):
    def require(self: OnnxRuntime, file: Path, choice: EngineChoice) -> None:
        if choice.provider is not None:
            raise CapabilityError("no libcudart", "install it")

    machine.setattr(OnnxRuntime, "require", require)
    found = find(engines=("onnxruntime",), modes=("dense",), precisions=("fp32",))
    assert names(found) == ["dense-fp32@onnxruntime"]
    assert found.left_out == (("onnxruntime, cuda", "no libcudart"),)


def test_nothing_to_try_here():
    with pytest.raises(CapabilityError, match=r"nothing to try here: tensorrt: there is no GPU"):
        find(engines=("tensorrt",))


def test_the_command_of_an_export_gives_its_settings(monkeypatch, tmp_path):
    """As typed in a shell, by a user who wants the same bundle."""
    got = []
    monkeypatch.setattr(api, "export", lambda *args, **more: got.append(args) or main_ends())
    settings = TuneSettings(
        images=Path("my val"), overrides={"num_heads": "3"}, max_images=7, batches=(64,),
        budget_percentiles=(95.0,), class_names=Path("names.txt"),
    )  # fmt: skip
    found = find_candidates(small_model("svit", "classify"), settings)
    for candidate in found.all:
        variant = candidate.variant
        words = shlex.split(shlex.join(variant.command(Path("a.pth"), Path("out dir"))))
        main(words[1:])
        source, output, typed = got.pop()
        assert (source, output) == (Path("a.pth"), Path("out dir"))
        assert typed == variant.settings
    assert typed.max_images == 7 and typed.overrides == {"num_heads": "3"}


def main_ends() -> None:
    raise CapabilityError("seen enough", "go on")


def test_engines_say_how_they_run_here(monkeypatch):
    """The real ones: the processor is there, and defaults are not spelled out."""
    monkeypatch.undo()
    for runtime in RUNTIMES.values():
        try:
            ways = list(runtime.ways())
        except CapabilityError:
            continue
        assert all(choice.engine == runtime.name for choice in ways)
        first = [one for one in ways if one.device is one.provider is None]
        assert first and DEVICES[0] not in [choice.device for choice in ways]
        if runtime.runs_graphs:
            runtime.require(Path("model.onnx"), first[0])


def test_a_candidate_is_named_as_bench_names_its_target():
    found = find(modes=("dynamic",), engines=("openvino",), precisions=("fp32",))
    assert names(found) == ["dynamic-fp32@openvino:f32", "dynamic-fp32@openvino:bf16"]
    on_gpu = Candidate(found.base.variant, EngineChoice(engine="onnxruntime", provider="cuda"))
    assert on_gpu.name == "dynamic-fp32@onnxruntime, cuda"
