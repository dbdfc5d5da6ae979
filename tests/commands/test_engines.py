"""`--engine` as a user types it, in every command that runs a model."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svit_deploy import api
from svit_deploy.bundle import Bundle
from svit_deploy.cli import main
from tests.conftest import skip_without

pytestmark = pytest.mark.slow

pytest.importorskip("torch")
skip_without("openvino")

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
IMAGES = ("--images", DIGITS / "heldout.npz", "--max-images", "4")
ON = ("--engine", "openvino", "--threads", "1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    told = {"arch": str(DIGITS / "arch.yaml"), "tokens": "dynamic"}
    output = tmp_path_factory.mktemp("digits") / "dynamic"
    return api.export(DIGITS / "svit_digits.pth", output, **told)


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "cache"))

    def call(*args: Any) -> tuple[int, str, str]:
        code = main(["--no-progress", *map(str, args)])
        return (code, *capsys.readouterr())

    return call


def test_verify(run, bundle, tmp_path):
    code, out, _ = run("verify", bundle.path, *ON, "--json", tmp_path / "report.json")
    assert code == 0
    assert "PASS dynamic" in out
    engine = json.loads((tmp_path / "report.json").read_text())["settings"]["engine"]
    assert (engine["runtime"], engine["device"], engine["precision"]) == ("openvino", "CPU", "fp32")


def test_the_precision_of_the_engine_decides_the_limits(run, bundle, tmp_path):
    report = tmp_path / "report.json"
    typed = ("verify", bundle.path, *ON, "--engine-precision", "bf16", "--json", report)
    code, out, err = run(*typed)
    if code == 4:  # on a processor without it
        assert "does not compute in bf16; use --engine-precision f32" in err
        return
    assert code == 0
    settings = json.loads(report.read_text())["settings"]
    assert settings["engine"]["precision"] == "bf16"
    assert settings["limits"]["block"] == bundle.task.limits["bf16"].block
    assert "openvino computes in bf16, whose limits" in " ".join(out.split())


def test_bench(run, bundle):
    targets = (f"{bundle.path}@onnxruntime", f"{bundle.path}@openvino:f32")
    quick = ("--warmup", "0", "--duration", "0", "--min-samples", "1", "--no-worst-case")
    code, out, _ = run("bench", *targets, *IMAGES, *quick, "--threads", "1")
    assert code == 0
    assert "dynamic@openvino:f32: speed-up over dynamic@onnxruntime" in " ".join(out.split())


def test_visualize_and_predict(run, bundle, tmp_path):
    kept, classes = {}, {}
    pictures = (DIGITS / "heldout.npz", "--max-images", "4")
    for engine in ("onnxruntime", "openvino"):
        maps, table = tmp_path / engine, tmp_path / f"{engine}.csv"
        assert run("visualize", bundle.path, *IMAGES, "-o", maps, "--engine", engine)[0] == 0
        kept[engine] = json.loads((maps / "token_usage.json").read_text())["images"]
        assert run("predict", bundle.path, *pictures, "-o", table, "--engine", engine)[0] == 0
        rows = csv.DictReader(table.read_text().splitlines())
        classes[engine] = [(row["image"], row["label_1"]) for row in rows]
    assert kept["openvino"] == kept["onnxruntime"]
    assert classes["openvino"] == classes["onnxruntime"]
    assert len(classes["openvino"]) == 4


def test_evaluate(run, bundle):
    told = {}
    for engine in ("onnxruntime", "openvino"):
        code, out, _ = run("evaluate", bundle.path, *IMAGES, "--engine", engine, "--json", "-")
        report = json.loads(out)
        assert (code, report["settings"]["engine"]["runtime"]) == (0, engine)
        told[engine] = [report["results"][part] for part in ("measures", "gates")]
    assert told["openvino"] == told["onnxruntime"]


@pytest.mark.parametrize(
    ("typed", "code", "words"),
    [
        (["--engine", "tvm"], 2, "engine 'tvm' is unknown; use one of onnxruntime, openvino"),
        (["--engine", "tensorrt"], 2, "export with --target tensorrt"),
        (["--engine", "openvino", "--device", "TPU"], 2, "use CPU, GPU, NPU"),
        (["--engine", "openvino", "--device", "GPU.7"], 4, "finds no GPU.7 here"),
        (["--engine", "openvino", "--engine-precision", "int4"], 2, "use one of f32, f16, bf16"),
        (["--engine", "openvino", "--provider", "cpu"], 2, "no meaning for openvino"),
        (["--device", "GPU"], 2, "no meaning for onnxruntime"),
        (["--device", "1", "--provider", "cpu"], 2, "no meaning for onnxruntime"),
        (["--provider", "cuda", "--device", "GPU"], 2, "--device GPU is no number of a GPU"),
        (
            ["--provider", "cuda", "--device", "1", "--provider-option", "device_id=0"],
            2,
            "--provider-option device_id=0 contradicts device 1; leave it out, and give --device 0",
        ),
    ],
)
def test_what_cannot_work_is_one_sentence(run, bundle, tmp_path, typed, code, words):
    for command in (
        ("verify", bundle.path),
        ("bench", bundle.path),
        ("predict", bundle.path, DIGITS / "heldout.npz", "-o", tmp_path / "out.csv"),
        ("evaluate", bundle.path, *IMAGES),
        ("visualize", bundle.path, *IMAGES, "-o", tmp_path / "out"),
    ):
        found = run(*command, *typed)
        assert (found[0], found[1]) == (code, ""), found
        assert words in found[2]
        assert found[2].count("\n") == 1
        assert not list(tmp_path.glob("out*"))


def test_without_openvino(run, bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    code, _, err = run("verify", bundle.path, *ON)
    assert code == 4
    assert err.endswith("run: pip install 'svit-deploy[openvino]'.\n")
