"""What a command needs and does not find is said before any work; a dry run tells all of it.

Each case is a command line on a machine that lacks something.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from svit_deploy import api
from svit_deploy.bundle.bundle import open_bundle
from svit_deploy.bundle.manifest import write_manifest
from svit_deploy.cli import main
from svit_deploy.errors import CapabilityError, UsageError
from svit_deploy.model.profiles import Profile
from tests.engines.tensorrt.fake.engines import write_engine
from tests.told import checkpoint_of

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
CHECKPOINT, ARCH, HELDOUT = (DIGITS / n for n in ("svit_digits.pth", "arch.yaml", "heldout.npz"))
SHAPE = (1, 3, 48, 48)
# What would be work: reading weights and images, and all that comes after it.
WORK = (
    "svit_deploy.loading.load.read_checkpoint",
    "svit_deploy.images.sets.load_images",
    "svit_deploy.verify.run.read_through",
    "svit_deploy.export.pipeline.read_through",
    "svit_deploy.loading.random.random_weights",
    "svit_deploy.verify.run.verify_against",
    "svit_deploy.bench.targets.run_bench",
    "svit_deploy.evaluate.run.evaluate_labelled",
    "svit_deploy.predict.predictions._rows",
    "svit_deploy.export.engine.add_engine",
    "svit_deploy.plugins.build._run",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles: dynamic, one whose engine is of the fake library, one with plugin nodes."""
    folder = tmp_path_factory.mktemp("files")
    made = {"arch": str(ARCH), "batch": "1:1:4"}
    api.export(CHECKPOINT, folder / "dynamic", **made)
    api.export(CHECKPOINT, folder / "plugins", plugins=True, **made)
    opened = api.export(CHECKPOINT, folder / "engine", tokens="budget", budget="1.0", **made)
    name = "model.fp16-trt10.16-sm90.engine"
    profile = Profile(SHAPE, SHAPE, (4, *SHAPE[1:]))
    told = {"tokens": "budget"}
    write_engine(opened.path / name, opened.load_model(), (profile,), sidecar=told)
    kept = {k: v for k, v in opened.manifest.items() if k not in ("schema_version", "files")}
    (opened.path / "manifest.json").unlink()
    write_manifest(opened.path, kept | {"engine": name})
    assert open_bundle(opened.path).engine_path is not None
    return folder


@dataclass(frozen=True)
class Case:
    """A command line, what the machine lacks, and what is said of it.

    Attributes:
        line: `{files}` are the bundles, `{here}` is a folder of nothing but a file.
    """

    lacks: str
    line: str
    code: int
    words: str

    def typed(self, files: Path, here: Path) -> list[str]:
        """The line, in parts."""
        places = {"files": files, "here": here}
        places |= {"images": f"--images {HELDOUT}", "pictures": HELDOUT}
        weights = {"checkpoint": CHECKPOINT, "arch": ARCH}
        if "{detector}" in self.line:
            weights["detector"] = checkpoint_of("svit_mask_rcnn")
        return self.line.format(**places, **weights).split()

    def __str__(self) -> str:
        return f"{self.lacks}: {self.line}".replace(" ", "_")


EXPORT = "export {checkpoint} --arch {arch} -o {here}/out"
ENGINE = f"{EXPORT} --budget 1.0 --target"
REBUILD = "export {files}/dynamic -o {here}/out --target tensorrt"
AGAINST = "verify {files}/dynamic --against {checkpoint}"
BENCH = "bench {files}/dynamic {images}"
MAPS = "visualize {files}/dynamic {images} -o {here}/m"
EVALUATE = "evaluate {files}/dynamic {images}"
DEBUG = "debug {files}/dynamic -o {here}/d"
PREDICT = "predict {files}/dynamic {pictures} -o {here}/classes.csv"
TUNE = "tune {checkpoint} --arch {arch} {images} -o {here}/out"
PLUGINS = "plugins build --tensorrt-include {here} -o {here}/p"
CASES = [
    Case("torch", EXPORT, 4, "svit-deploy[torch]"),
    Case("torch", AGAINST, 4, "svit-deploy[torch]"),
    Case("torch", "init svit_s -o {here}/x.pth", 4, "svit-deploy[torch]"),
    Case("torch", "init deit_tiny -o {here}/x.pth", 4, "svit-deploy[torch]"),
    Case("torch", "quickstart -o {here}/q", 4, "svit-deploy[torch]"),
    Case("torch", TUNE, 4, "svit-deploy[torch]"),
    Case("torchvision", "export {detector} --task detect -o {here}/out", 4, "[detect]"),
    Case("tensorrt", f"{ENGINE} tensorrt", 4, "svit-deploy[tensorrt]"),
    Case("tensorrt_rtx", f"{ENGINE} tensorrt-rtx", 4, "svit-deploy[tensorrt-rtx]"),
    Case("tensorrt", REBUILD, 4, "svit-deploy[tensorrt]"),
    Case("tensorrt", "verify {files}/engine", 4, "svit-deploy[tensorrt]"),
    Case("tensorrt", "verify {files}/engine --against {checkpoint}", 4, "[tensorrt]"),
    Case("tensorrt", BENCH.replace(" ", " {files}/engine ", 1), 4, "[tensorrt]"),
    Case("tensorrt", "bench {files}/engine/model.fp16-trt10.16-sm90.engine", 4, "[tensorrt]"),
    Case("tensorrt", EVALUATE.replace("dynamic", "engine"), 4, "[tensorrt]"),
    Case("tensorrt", PREDICT.replace("dynamic", "engine"), 4, "[tensorrt]"),
    Case("a GPU", f"{ENGINE} tensorrt", 4, "no NVIDIA GPU was found"),
    Case("a GPU", REBUILD, 4, "no NVIDIA GPU was found"),
    Case("plugins", f"{ENGINE} tensorrt --plugins", 4, "plugins build"),
    Case("plugins", REBUILD.replace("dynamic", "plugins"), 4, "plugins build"),
    Case("openvino", f"{AGAINST} --provider openvino", 4, "--provider cpu"),
    Case("openvino", f"{BENCH} --provider openvino", 4, "--provider cpu"),
    Case("openvino", f"{BENCH} --provider openvino".replace("amic", "amic/model.onnx"), 4, "cpu"),
    Case("openvino", f"{EVALUATE} --provider openvino", 4, "--provider cpu"),
    Case("openvino", f"{PREDICT} --provider openvino", 4, "--provider cpu"),
    Case("openvino", f"{MAPS} --provider openvino", 4, "--provider cpu"),
    Case("onnxruntime", AGAINST, 4, "pip install 'svit-deploy[cpu]'"),
    Case("onnxruntime", BENCH, 4, "pip install 'svit-deploy[cpu]'"),
    Case("onnxruntime", MAPS, 4, "pip install 'svit-deploy[cpu]'"),
    Case("onnxruntime", "quickstart -o {here}/q", 4, "pip install 'svit-deploy[cpu]'"),
    Case("onnxruntime", EVALUATE, 4, "pip install 'svit-deploy[cpu]'"),
    Case("onnxruntime", PREDICT, 4, "pip install 'svit-deploy[cpu]'"),
    Case("onnxruntime", DEBUG, 4, "pip install 'svit-deploy[cpu]'"),
    Case("onnxruntime", TUNE, 4, "pip install 'svit-deploy[cpu]'"),
    Case("polygraphy", DEBUG, 4, "pip install 'svit-deploy[debug]'"),
    Case("torch", f"{DEBUG} --against {{checkpoint}}", 4, "svit-deploy[torch]"),
    Case("a report", f"{DEBUG} --report {{here}}/file", 3, "is no report of this version's verify"),
    Case("pyarrow", PREDICT.replace(".csv", ".parquet"), 4, "svit-deploy[parquet]"),
    Case("matplotlib.figure", f"{BENCH} --sweep-tokens {{here}}/x.png", 4, "svit-deploy[plot]"),
    Case("nvcc", f"{PLUGINS} --nvcc /nix/nvcc", 4, "no CUDA compiler at /nix/nvcc"),
    Case("rights", EXPORT, 5, "Permission denied"),
    Case("rights", REBUILD, 5, "Permission denied"),
    Case("rights", MAPS, 5, "Permission denied"),
    Case("rights", PREDICT, 2, "Permission denied"),
    Case("rights", "init deit_tiny -o {here}/x.safetensors", 2, "Permission denied"),
    Case("rights", "quickstart -o {here}/q", 5, "Permission denied"),
    Case("rights", TUNE, 5, "Permission denied"),
    Case("rights", DEBUG, 5, "Permission denied"),
    Case("rights", PLUGINS, 5, "Permission denied"),
    Case("--force", EXPORT.replace("{here}/out", "{files}/dynamic"), 5, "--force"),
    Case("--force", REBUILD.replace("{here}/out", "{files}/engine"), 5, "--force"),
    Case("--force", DEBUG.replace("{here}/d", "{files}/dynamic"), 5, "no folder that debug wrote"),
    Case("--force", "init deit_tiny -o {checkpoint}", 5, "--force"),
    Case("--force", "quickstart -o {files}", 5, "--force"),
    Case("--force", TUNE.replace("{here}/out", "{files}/dynamic"), 5, "--force"),
    Case("a place", EXPORT.replace("{here}", "{here}/file"), 5, "Not a directory"),
    Case("a place", MAPS.replace("{here}/m", "{here}/file"), 3, "is a file"),
    Case("images", f"{EXPORT} --calibration {{here}}/nix", 3, "nix does not exist"),
    Case("images", f"{EXPORT} --calibrate-gates {{here}}/nix", 3, "nix does not exist"),
    Case("images", TUNE.replace("{images}", "--images {here}/nix"), 3, "nix does not exist"),
    Case("images", EVALUATE.replace("{images}", "--images {here}/nix"), 3, "nix does not exist"),
    Case("images", PREDICT.replace("{pictures}", "{here}/nix"), 3, "nix does not exist"),
    Case("images", f"{AGAINST} --images {{here}}/nix", 3, "nix does not exist"),
]


@pytest.fixture
def machine(monkeypatch, tmp_path, fake_process, files) -> Callable[[Case], list[str]]:
    """Makes the machine lack what a case says; all else is there, TensorRT as the fake library.

    Gives the command line.
    """

    def prepare(case: Case) -> list[str]:
        (tmp_path / "file").write_text("mine")
        for name in ("NvInferRuntime.h", "NvInferVersion.h"):
            parts = zip(("MAJOR", "MINOR", "PATCH", "BUILD"), (10, 9, 0, 34), strict=True)
            text = "".join(f"#define NV_TENSORRT_{part} {number}\n" for part, number in parts)
            (tmp_path / name).write_text(text)
        lacks, find = case.lacks, importlib.util.find_spec
        if lacks in (
            "torch",
            "torchvision",
            "onnxruntime",
            "pyarrow",
            "polygraphy",
            "matplotlib.figure",
        ):
            monkeypatch.setitem(sys.modules, lacks, None)
        elif lacks.startswith("tensorrt"):
            monkeypatch.delitem(sys.modules, lacks, raising=False)
            monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p).name != "packages"])
            monkeypatch.setattr(
                importlib.util, "find_spec", lambda name: None if name == lacks else find(name)
            )
        elif lacks == "a GPU":
            monkeypatch.setenv("FAKE_DEVICE", '{"count": 0}')
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        elif lacks == "rights":
            monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        return case.typed(files, tmp_path)

    return prepare


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    def run(*line: str) -> tuple[int, str, str]:
        code = main(["-q", *line])
        return code, *capsys.readouterr()

    return run


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_missing_is_said_before_any_work(case, machine, run, files, tmp_path, monkeypatch):
    def work(*given: Any, **named: Any) -> None:
        raise AssertionError("work has begun")

    line = machine(case)
    for name in WORK:
        monkeypatch.setattr(name, work)
    before = contents(tmp_path), contents(files)
    code, out, err = run(*line)
    assert (code, out) == (case.code, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert case.words in err
    assert (contents(tmp_path), contents(files)) == before


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_dry_run_ends_as_the_run_would_and_lists_what_is_missing(
    case, machine, run, files, tmp_path
):
    line = machine(case)
    before = contents(tmp_path), contents(files)
    code, out, err = run(*line, "--dry-run")
    assert code == case.code
    assert err.startswith("error: ") and err.count("\n") == 1
    missing = [text for text in out.splitlines() if text.startswith("missing ")]
    assert missing[0].removeprefix("missing").strip() == err.removeprefix("error:").strip()
    assert case.words in missing[0]
    assert out.splitlines()[-1] == f"dry run     would end with exit code {case.code}"
    assert (contents(tmp_path), contents(files)) == before


TOLD = "--set num_heads=4 --set gate_blocks=2,3,4,5 --set gate_class_token=false,false,false,true"
WORKING = [
    (f"{EXPORT} --batch 1:2:8", ["token mode dynamic, batch 1 to 8", "out/model.onnx"]),
    (f"{EXPORT} --tokens budget --budget 0.5", ["  budget        32     32     32     33"]),
    (f"{EXPORT} --calibrate-gates {HELDOUT} --max-images 4", ["  target     "]),
    (f"export {{checkpoint}} {TOLD} -o {{here}}/out", ["assumed", "crop_ratio=0.875"]),
    (f"{ENGINE} tensorrt", ["engine      tensorrt, profiles 1x3x48x48 to", "*.engine"]),
    (REBUILD, ["bundle      dynamic, its graph and samples are copied", "*.engine"]),
    (f"{AGAINST} {{images}} --max-images 3", ["PyTorch reference (3 images)"]),
    (f"{AGAINST} --json {{here}}/v.json", ["writes ", "v.json"]),
    ("verify {files}/dynamic", ["recorded at export (16 images)", "ONNX Runtime, provider cpu"]),
    ("bench {files}/dynamic --batch 1,4", ["dynamic, on ONNX Runtime", "36 s or more", "worst"]),
    (f"{BENCH} --quick --max-time 300 --json {{here}}/b.json", ["b.json", "5 min 0 s", "publish"]),
    (EVALUATE, ["images      360, labels of the images' own file", "ONNX Runtime, provider cpu"]),
    (DEBUG, ["first       a verification", "d/reference.json"]),
    (PREDICT, ["images      360 (npz)", "classes.csv"]),
    (f"{MAPS} --max-images 2", ["mean_map.png", "images      2 (npz)"]),
    ("init svit_s -o {here}/x.pth", ["22391962 random weights", "about 85.4 MiB", "x.pth"]),
    (
        f"{TUNE} --engines onnxruntime",
        ["candidate   dense-fp32@onnxruntime", "left out    fp16 on"],
    ),
    ("quickstart -o {here}/q", ["the digits model", "q/maps"]),
]


@pytest.mark.parametrize(("line", "words"), WORKING)
def test_a_dry_run_of_what_would_run(line, words, machine, run, files, tmp_path):
    typed = machine(Case("nothing", line, 0, ""))
    before = contents(tmp_path), contents(files)
    code, out, err = run(*typed, "--dry-run")
    assert (code, err) == (0, "")
    for word in words:
        assert word in out
    assert out.splitlines()[-1] == "dry run     would run; nothing was written"
    assert (contents(tmp_path), contents(files)) == before


def test_a_dry_run_as_json(run, files, tmp_path):
    line = ("verify", str(files / "dynamic"), "--provider", "openvino", "--dry-run", "--json", "-")
    code, out, _ = run(*line)
    told = json.loads(out)
    assert code == told["exit_code"] == told["missing"][0]["exit_code"] == 4
    assert {"label": "runs on", "text": "ONNX Runtime, provider openvino"} in told["plan"]
    assert told["command"][:2] == ["svit-deploy", "-q"]
    assert told["missing"][0]["fix"].startswith("run: pip install onnxruntime-openvino")


def test_several_missing_things_are_all_told(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "out").write_text("mine")
    line = ("export", str(tmp_path / "nix.pth"), "-o", str(tmp_path / "out"), "--dry-run")
    code, out, _ = run(*line, "--target", "tensorrt")
    assert code == 4
    missing = [text for text in out.splitlines() if text.startswith("missing ")]
    assert len(missing) == 3
    assert "tensorrt cannot be imported" in missing[0]
    assert "out exists and is not a sound bundle" in missing[1]
    assert "nix.pth does not exist" in missing[2]


# --- as Python functions --------------------------------------------------------------------------


def test_a_dry_run_from_python(files, tmp_path):
    with api.DryRun() as plan:
        api.export(CHECKPOINT, tmp_path / "out", arch=str(ARCH), plan=plan)
        raise AssertionError("the work has begun")
    assert (plan.exit_code, plan.missing) == (0, [])
    assert tmp_path / "out" / "model.onnx" in plan.files
    assert dict(plan.lines)["model"] == "arch.yaml (svit), 48x48 pixels"
    assert not (tmp_path / "out").exists()
    with api.DryRun() as plan:
        api.verify(files / "dynamic", provider="openvino", plan=plan)
    assert [type(error) for error in plan.missing] == [CapabilityError]
    with api.DryRun() as plan:
        api.bench([files / "dynamic"], batches="99", plan=plan)
    assert [type(error) for error in plan.missing] == [UsageError]
    assert "outside dynamic's range" in plan.to_dict()["missing"][0]["message"]


def test_a_dry_run_hides_no_bug():
    with pytest.raises(ZeroDivisionError), api.DryRun():
        print(1 / 0)


def test_the_folder_that_a_plan_names_is_the_one_that_is_written(files, tmp_path, run):
    """What a dry run lists is what the run writes."""
    shutil.copytree(files / "dynamic", tmp_path / "bundle")
    with api.DryRun() as plan:
        api.export(CHECKPOINT, tmp_path / "out", arch=str(ARCH), plan=plan)
        pytest.fail("the work has begun")
    api.export(CHECKPOINT, tmp_path / "out", arch=str(ARCH))
    assert sorted(plan.files) == sorted((tmp_path / "out").iterdir())
    maps = {"images": HELDOUT, "max_images": 3}
    with api.DryRun() as plan:
        api.visualize(tmp_path / "bundle", tmp_path / "maps", plan=plan, **maps)
    assert plan.files == api.visualize(tmp_path / "bundle", tmp_path / "maps", **maps)
