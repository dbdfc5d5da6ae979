"""Every command as a user types it: exit code, standard output, standard error, files."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from svit_deploy import __version__, api
from svit_deploy.bundle import MANIFEST, MODEL
from svit_deploy.commands.console import headline, make_console
from svit_deploy.errors import UsageError
from svit_deploy.graph.edit import set_scalars
from svit_deploy.images import load_images
from svit_deploy.inspection import doctor
from svit_deploy.io.files import hash_file
from svit_deploy.loading.presets import PRESETS
from svit_deploy.methods.families import FAMILIES
from tests.result import Result

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
CHECKPOINT, ARCH = DIGITS / "svit_digits.pth", DIGITS / "arch.yaml"
GATES = ("gate_blocks=2,3,4,5", "gate_class_token=false,false,false,true")
TOLD = tuple(word for setting in ("num_heads=4", *GATES) for word in ("--set", setting))
QUICK = ("--warmup", "0", "--duration", "0", "--min-samples", "1", "--threads", "1")
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some held-out digits with their labels, as .npz."""
    path = tmp_path_factory.mktemp("pictures") / "some.npz"
    with np.load(DIGITS / "heldout.npz") as arrays:
        np.savez(path, images=arrays["images"][:40], labels=arrays["labels"][:40])
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A folder with the digits model in token modes dense and dynamic."""
    folder = tmp_path_factory.mktemp("bundles")
    for mode in ("dense", "dynamic"):
        settings = {"tokens": mode, "calibration": pictures, "max_images": 8}
        api.export(CHECKPOINT, folder / mode, arch=str(ARCH), **settings)
    return folder


def manifest_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / MANIFEST).read_text())


def only_json(result: Result) -> dict[str, Any]:
    """Standard output, which holds a JSON object and nothing else."""
    return json.loads(result.out)


# --- before the command's name ------------------------------------------------------------------


def test_version_and_help(cli):
    assert cli("--version") == Result(0, f"svit-deploy {__version__}\n", "")
    bare, long, short = cli(), cli("--help"), cli("-h")
    assert bare == long == short
    assert bare.code == 0
    commands = ("export", "verify", "evaluate", "bench", "predict", "inspect", "visualize")
    for command in (*commands, "init", "doctor"):
        assert f"  {command} " in bare.out
        assert cli(command, "--help").code == 0
    assert "..." not in bare.out.partition("Commands:")[2]


def test_help_imports_nothing_heavy():
    code = "import sys; from svit_deploy.cli import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "onnx", "onnxruntime", "numpy", "yaml", "PIL"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["expor"], "no such command 'expor'"),
        (["export", "x.pth", "--forc"], "--force"),
        (["export", "x.pth"], "'-o' / '--output'; see svit-deploy export --help."),
        (["verify"], "missing argument"),
        (["bench", "x", "--max-images", "0"], "'--max-images'"),
        (["bench", "x", "--max-images", "many"], "'--max-images'"),
        (["verify", "x", "--repeats", "1"], "'--repeats'"),
        (["init", "svit_s", "-o", "x.pth", "--seed", "-1"], "'--seed'"),
    ],
)
def test_usage_errors_are_one_sentence(cli, args, words):
    result = cli(*args)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert words in result.err


@pytest.mark.slow
def test_notes_progress_and_quiet(cli, tmp_path):
    export = ("export", CHECKPOINT, "--arch", ARCH, "--tokens", "dense")
    loud = cli(*export, "-o", tmp_path / "a")
    assert "running the reference" in loud.err
    assert "note: model_ema ignored, weights taken from 'model'\n" in loud.err
    plain = cli("--no-progress", *export, "-o", tmp_path / "b")
    assert plain.err == "note: model_ema ignored, weights taken from 'model'\n"
    assert cli("-q", *export, "-o", tmp_path / "c").err == ""


def test_warnings_go_through_the_log(cli, monkeypatch):
    def warn():
        warnings.warn("old\nthings", DeprecationWarning, stacklevel=1)
        logging.getLogger("svit_deploy.test").warning("two\nlines")
        logging.getLogger("svit_deploy.test").debug("details")
        return SimpleNamespace(render=lambda console: None, to_dict=dict)

    monkeypatch.setattr(doctor, "examine", warn)
    warnings.simplefilter("always")
    assert cli("doctor").err == "warning: two lines\n"
    assert cli("-q", "doctor").err == "warning: two lines\n"
    loud = cli("-v", "doctor").err.splitlines()
    assert len(loud) == 3
    assert loud[0].startswith("warning: ") and "DeprecationWarning: old things" in loud[0]
    assert loud[1:] == ["warning: two lines", "debug: details"]


def test_unexpected_error_asks_for_a_report(cli, monkeypatch):
    def fail(path):
        raise KeyError("oops")

    monkeypatch.setattr(api, "inspect", fail)
    result = cli("inspect", "x")
    assert result.code == 1
    assert result.err.startswith("error: unexpected KeyError: 'oops'. This is a bug:")
    assert result.err.count("\n") == 1
    with pytest.raises(KeyError):  # the interpreter prints the traceback
        cli("-v", "inspect", "x")


@pytest.mark.slow
def test_the_installed_program(bundles, tmp_path):
    program = Path(sys.executable).with_name("svit-deploy")
    if not program.is_file():
        pytest.skip("the package is not installed beside this Python")

    def run(*args: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [str(program), *map(str, args)], capture_output=True, text=True, env=environment
        )

    done = run("verify", bundles / "dynamic", "--json", "-")
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"]["verdict"] == "pass"
    assert "PASS dynamic" in done.stderr
    done = run("-q", "inspect", tmp_path / "absent")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: ")
    module = [sys.executable, "-m", "svit_deploy", "--version"]
    assert subprocess.run(module, capture_output=True, text=True).stdout.endswith("0\n")


# --- export -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "options", "budgets"),
    [
        ("dynamic", [], []),
        ("masked", [], []),
        ("dense", [], []),
        ("budget", ["--budget", "48,40,30,20"], [48, 40, 30, 20]),
        ("budget", ["--budget", "0.5,0.25"], [32, 32, 16, 17]),
        ("budget", ["--budget", "auto"], None),
    ],
)
def test_export_then_verify(cli, pictures, tmp_path, mode, options, budgets):
    output = tmp_path / "out"
    result = cli(
        *("export", CHECKPOINT, "--arch", ARCH, "--tokens", mode, *options, "-o", output),
        *("--calibration", pictures, "--max-images", "10"),
    )
    assert result.code == 0, result.err
    content = manifest_of(output)
    assert content["tokens"]["mode"] == mode
    if budgets is None:
        measured = [round(g["measured_keep"] * g["gated_tokens"], 1) for g in content["gates"]]
        assert all(
            kept <= budget for kept, budget in zip(measured, content["tokens"]["budgets"], strict=1)
        )
    else:
        assert content["tokens"]["budgets"] == budgets
    assert content["reference"]["images"] == 10
    assert content["command"][:2] == ["svit-deploy", "export"]
    assert str(tmp_path) not in json.dumps(content)
    lines = result.out.splitlines()
    assert lines[0].startswith("checkpoint  svit_digits.pth, sha256 6441a9e9")
    assert len(lines) < 14
    assert f"token mode {mode}" in result.out
    assert "no random operator" in result.out
    assert lines[-2].startswith("next:       svit-deploy verify ")
    assert cli("verify", output, "--threads", "1").code == 0


@pytest.mark.slow
def test_what_export_recommends_next_works(cli, tmp_path):
    output = tmp_path / "with space"
    overrides = (*TOLD, "--set", "crop_ratio=1.0")
    done = cli("export", CHECKPOINT, *overrides, "--tokens", "masked", "-o", output)
    program, *verify = done.out.splitlines()[-2].removeprefix("next:").split("'")
    assert program.split()[:2] == ["svit-deploy", "verify"]
    assert verify[0] == str(output)
    assert verify[1].split()[2:] == list(overrides)
    assert cli("verify", output, "--against", CHECKPOINT, *overrides).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("target", [None, "0.5", "0.6,0.3"])
def test_export_calibrates_gates(cli, tmp_path, target):
    output = tmp_path / "out"
    options = ["--target-keep", target] if target else []
    result = cli(
        *("export", CHECKPOINT, "--arch", ARCH, "-o", output, *options),
        *("--calibrate-gates", DIGITS / "calibration.npz", "--max-images", "32"),
    )
    assert result.code == 0, result.err
    assert "calibrating the gates" in result.err
    wanted = {None: [0.7, 0.7, 0.49, 0.343], "0.5": [0.5] * 4, "0.6,0.3": [0.6, 0.6, 0.3, 0.3]}
    gates = manifest_of(output)["gates"]
    assert [gate["target_keep"] for gate in gates] == wanted[target]
    for gate in gates:
        token = 1 / (32 * gate["gated_tokens"])
        assert gate["measured_keep"] == pytest.approx(gate["target_keep"], abs=token)
        assert gate["threshold"] != 0
    shown = cli("inspect", output, "--json", "-")
    assert only_json(shown)["gates"] == gates
    for number in ("target", "kept", "threshold", f"{gates[0]['threshold']:.4g}"):
        assert number in shown.err
    assert f"{gates[0]['threshold']:.3f}" in result.out
    assert cli("verify", output, "--against", CHECKPOINT, "--arch", ARCH).code == 0


@pytest.mark.slow
def test_export_at_another_image_size(cli, tmp_path):
    output = tmp_path / "out"
    result = cli("export", CHECKPOINT, "--arch", ARCH, "-o", output, "--image-size", "60x36")
    assert result.code == 0
    assert "note: position embedding resized from 48x48 to 60x36 pixels" in result.err
    assert "60x36 pixels" in result.out
    with np.load(output / "reference.npz") as arrays:
        assert arrays["images"].shape[1:] == (3, 60, 36)
    assert cli("verify", output, "--against", CHECKPOINT).code == 0


@pytest.mark.slow
def test_export_without_gate_outputs(cli, pictures, tmp_path):
    output = tmp_path / "out"
    done = cli("export", CHECKPOINT, "--arch", ARCH, "-o", output, "--no-gate-outputs")
    assert done.code == 0
    outputs = [value.name for value in onnx.load(output / MODEL).graph.output]
    assert outputs == ["logits"]
    assert cli("verify", output).code == 0
    assert cli("bench", output, *QUICK).code == 0
    refused = cli("visualize", output, "--images", pictures, "-o", tmp_path / "maps")
    assert refused.code == 3
    assert "exported with gate outputs" in refused.err
    assert not (tmp_path / "maps").exists()


@pytest.mark.slow
def test_export_replaces_only_with_force(cli, tmp_path):
    output = tmp_path / "out"
    export = ("-q", "export", CHECKPOINT, "--arch", ARCH, "--tokens")
    assert cli(*export, "dense", "-o", output).code == 0
    before = hash_file(output / MANIFEST)
    refused = cli(*export, "masked", "-o", output)
    assert refused.code == 5
    assert "--force" in refused.err
    assert hash_file(output / MANIFEST) == before
    assert cli(*export, "masked", "-o", output, "--force").code == 0
    assert manifest_of(output)["tokens"]["mode"] == "masked"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    assert cli(*export, "dense", "-o", home, "--force").code == 5
    assert [entry.name for entry in home.iterdir()] == ["thesis.txt"]


# --- verify -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verify_against_the_checkpoint_with_labels(cli, bundles, pictures, tmp_path):
    report = tmp_path / "reports" / "verify.json"
    result = cli(
        *("verify", bundles / "dynamic", "--against", CHECKPOINT, "--arch", ARCH),
        *("--images", pictures, "--max-images", "20", "--json", report),
    )
    assert result.code == 0, result.err
    assert "PASS dynamic: 20 images, decisions of 4 gates identical" in result.out
    content = json.loads(report.read_text())
    assert list(content)[:4] == ["schema_version", "tool", "created_utc", "command"]
    assert content["tool"] == {"name": "svit-deploy", "version": __version__}
    assert content["command"][:2] == ["svit-deploy", "verify"]
    assert content["status"] == {"verdict": "pass", "reasons": []}
    assert content["inputs"][0]["model_sha256"] == hash_file(bundles / "dynamic" / MODEL)
    assert content["results"]["top1_accuracy"] > 0.9
    assert content["results"]["top1_accuracy"] == content["results"]["reference_top1_accuracy"]


def test_verify_with_labels_from_a_file(cli, bundles, tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    found = load_images(DIGITS / "heldout.npz", limit=3)
    for i, picture in enumerate(found.arrays):
        Image.fromarray(picture).save(folder / f"{i}.png")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(map(str, found.labels)))
    images = ("--images", folder, "--labels", labels)
    result = cli("verify", bundles / "dense", "--against", CHECKPOINT, *images)
    assert result.code == 0, result.err
    assert "top-1 accuracy 100.00%" in result.out


@pytest.mark.slow
def test_verify_writes_json_alone_to_stdout(cli, bundles):
    result = cli("verify", bundles / "dynamic", "--json", "-")
    assert only_json(result)["results"]["images"] == 8
    assert "PASS dynamic" in result.err


def test_verify_refuses_a_tampered_model(cli, bundles, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(bundles / "dynamic", broken)
    model = set_scalars(onnx.load(broken / MODEL), {"gate_1.threshold": 0.5})
    onnx.save(model, broken / MODEL)
    changed = cli("verify", broken)
    assert changed.code == 3
    assert "is not the file that was exported" in changed.err
    content = manifest_of(broken)
    content["files"][MODEL] = {
        "size_bytes": (broken / MODEL).stat().st_size,
        "sha256": hash_file(broken / MODEL),
    }
    (broken / MANIFEST).write_text(json.dumps(content))
    result = cli("-q", "verify", broken, "--json", tmp_path / "verify.json")
    assert result.code == 6
    assert result.err.startswith("error: broken: ")
    assert result.err.endswith("; do not ship this bundle.\n")
    assert result.err.count("\n") == 1
    assert "FAIL broken" in result.out
    status = json.loads((tmp_path / "verify.json").read_text())["status"]
    assert status["verdict"] == "fail"
    assert status["reasons"]


@pytest.mark.slow
def test_verify_notes_another_checkpoint(cli, bundles, tmp_path):
    import torch

    other = tmp_path / "other.pth"
    state = torch.load(CHECKPOINT, weights_only=False)["model"]
    state["head.bias"][3] += 1
    torch.save({"model": state}, other)
    result = cli("verify", bundles / "dynamic", "--against", other)
    assert result.code == 6
    assert "exported from another file" in result.out


# --- bench --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bench_compares_bundles(cli, bundles, pictures, tmp_path):
    report = tmp_path / "bench.json"
    result = cli(
        *("bench", bundles / "dense", bundles / "dynamic", "--images", pictures, *QUICK),
        *("--batch", "1,4", "--json", report),
    )
    assert result.code == 0, result.err
    assert "dynamic: speed-up over dense" in result.out
    content = json.loads(report.read_text())
    assert list(content)[:4] == ["schema_version", "tool", "created_utc", "command"]
    assert content["command"][:2] == ["svit-deploy", "bench"]
    assert content["status"]["verdict"] == "ok"
    assert [entry["label"] for entry in content["inputs"]] == ["dense", "dynamic"]
    for entry in content["inputs"]:
        model = bundles / entry["label"] / MODEL
        assert entry["model_sha256"] == hash_file(model)
        assert entry["size_bytes"] == model.stat().st_size
        assert entry["images"] == "npz"
        assert entry["images_sha256"] == load_images(pictures).sha256
    assert [(r["label"], r["batch"]) for r in content["results"]] == [
        (label, batch) for batch in (1, 4) for label in ("dense", "dynamic")
    ]
    pruned = content["results"][1]
    assert pruned["kept"]["tokens"] == 65
    assert pruned["worst_case"]["latency"]["p50_ms"] > 0


def test_bench_on_recorded_samples_to_stdout(cli, bundles):
    result = cli("bench", bundles / "dynamic", "--no-worst-case", *QUICK, "--json", "-")
    content = only_json(result)
    assert content["inputs"][0]["images"] == "recorded (npz)"
    assert content["results"][0]["worst_case"] is None
    assert "latency, ms" in result.err


@pytest.mark.slow
def test_bench_of_an_onnx_file(cli, bundles, pictures):
    models = [bundles / mode / MODEL for mode in ("dense", "dynamic")]
    result = cli("bench", *models, "--images", pictures, *QUICK, "--json", "-")
    labels = [entry["label"] for entry in only_json(result)["inputs"]]
    assert labels == ["model#1", "model#2"]
    assert cli("bench", models[0], "--random", "--batch", "40", *QUICK).code == 0
    for args, words in [((models[0],), "--random"), ((models[1],), "--images")]:
        refused = cli("bench", *args, *QUICK)
        assert refused.code == 2
        assert "brings no sample inputs" in refused.err
        assert words in refused.err


@pytest.mark.slow
def test_bench_refuses_noise_where_content_decides(cli, bundles):
    for target in (bundles / "dynamic", bundles / "dynamic" / MODEL):
        refused = cli("bench", target, "--random", *QUICK)
        assert refused.code == 2
        assert "--allow-noise" in refused.err
        assert cli("bench", target, "--random", "--allow-noise", *QUICK).code == 0
    assert cli("bench", bundles / "dense", "--random", *QUICK).code == 0


@pytest.mark.slow
def test_bench_sweeps_tokens(cli, bundles, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plots" / "sweep.png"
    result = cli("bench", bundles / "dense", bundles / "dynamic", *QUICK, "--sweep-tokens", plot)
    assert result.code == 0, result.err
    assert plot.read_bytes().startswith(PNG)
    assert [entry.name for entry in plot.parent.iterdir()] == ["sweep.png"]
    assert "latency by keep ratio" in result.out


@pytest.mark.slow
def test_bench_fails_above_a_limit(cli, bundles, tmp_path):
    report = tmp_path / "bench.json"
    limit = ("--fail-above", "p50=0.0001ms")
    result = cli("-q", "bench", bundles / "dynamic", *QUICK, *limit, "--json", report)
    assert result.code == 7
    assert result.err.startswith("error: dynamic, batch 1: p50 is ")
    assert result.err.count("\n") == 1
    assert json.loads(report.read_text())["status"]["verdict"] == "failed"
    assert cli("bench", bundles / "dynamic", *QUICK, "--fail-above", "p50=60000").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("spelled", ["0.02", "0.02s", "20ms", "20 ms"])
def test_bench_durations_have_units(cli, bundles, spelled):
    options = ("--warmup", "0", "--duration", spelled, "--min-samples", "1", "--no-worst-case")
    content = only_json(cli("bench", bundles / "dense", *options, "--json", "-"))
    assert content["settings"]["duration_s"] == pytest.approx(0.02)


def test_bench_without_the_gpu_it_asks_for(cli, bundles):
    result = cli("-q", "bench", bundles / "dense", *QUICK, "--provider", "cuda")
    if result.code == 0:
        pytest.skip("there is a GPU")
    assert result.code == 4
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert "--provider cpu" in result.err


# --- the others ---------------------------------------------------------------------------------


def test_inspect(cli, bundles):
    for path, kind in [
        (CHECKPOINT, "checkpoint"),
        (bundles / "dynamic", "bundle"),
        (bundles / "dynamic" / MANIFEST, "bundle"),
        (bundles / "dynamic" / MODEL, "onnx"),
    ]:
        result = cli("inspect", path, "--json", "-")
        assert result.code == 0
        assert only_json(result)["kind"] == kind
        assert kind in cli("inspect", path).out


def test_doctor(cli, tmp_path):
    assert only_json(cli("doctor", "--json", "-"))["findings"]
    result = cli("doctor", "--json", tmp_path / "doctor.json")
    assert result.code == 0
    assert "torch" in result.out
    content = json.loads((tmp_path / "doctor.json").read_text())
    assert content["commands"]["export"]["works"] is True


def test_visualize(cli, bundles, pictures, tmp_path):
    maps = tmp_path / "maps"
    args = ("visualize", bundles / "dynamic", "--images", pictures, "-o", maps)
    result = cli(*args, "--max-images", "5")
    assert (result.code, result.out) == (0, f"wrote 8 files to {maps}\n")
    assert (maps / "mean_map.png").read_bytes().startswith(PNG)
    usage = json.loads((maps / "token_usage.json").read_text())
    assert len(usage["images"]) == 5
    dense = cli("visualize", bundles / "dense", "--images", pictures, "-o", tmp_path / "none")
    assert dense.code == 3
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_init_then_export(cli, tmp_path, suffix):
    arch = tmp_path / "arch.yaml"
    sizes = "family: svit\nnum_heads: 2\nembed_dim: 32\ndepth: 4\npatch_size: 8\nimage_size: 64\n"
    gates = "gate_blocks: [1, 2, 3]\ngate_class_token: [false, false, true]\n"
    arch.write_text(f"{sizes}{gates}target_keep: [0.8, 0.6, 0.4]\n")
    weights = tmp_path / f"random{suffix}"
    result = cli("init", arch, "-o", weights)
    assert result.code == 0, result.err
    assert result.out.startswith(f"wrote {weights}: random arch.yaml, gates keep 0.8")
    again = cli("init", arch, "-o", weights)
    assert again.code == 5
    assert "--force" in again.err
    output = tmp_path / "out"
    assert cli("export", weights, "--arch", arch, "-o", output).code == 0
    assert cli("verify", output, "--against", weights, "--arch", arch).code == 0
    kept = [gate["measured_keep"] for gate in manifest_of(output)["gates"]]
    assert kept == pytest.approx([0.8, 0.6, 0.4], abs=0.1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["arch.yaml", "out", weights.name]


# --- list ---------------------------------------------------------------------------------------


def test_list_says_what_each_method_must_be_told(cli):
    shown = cli("list", "--json", "-")
    told = only_json(shown)
    assert list(told) == ["schema_version", "tool", "presets", "methods", "backbones", "tasks"]
    methods = {row["family"]: row for row in told["methods"]}
    assert list(methods) == list(FAMILIES)
    for name, row in methods.items():
        family = FAMILIES[name]
        told_of = (*row["must_be_told"], *row["assumed_of_a_preset"], *row["told_by_the_weights"])
        named = (*(["family"] if family.keys_of else []), *family.needed, *family.assumed)
        assert sorted(told_of) == sorted(named)
    assert methods["evit"]["must_be_told"] == ["family", "keep_rate", "fuse"]
    assert methods["stvitr"]["told_by_the_weights"][:3] == ["depths", "stage_heads", "window"]
    assert methods["evovit"]["assumed_of_a_preset"][0] == "prune_ratio"
    assert [row["preset"] for row in told["presets"]] == list(PRESETS)
    evit = next(row for row in told["presets"] if row["preset"] == "evit_s")
    assert evit["tells"] == {"family": "evit", "keep_rate": "0.7", "fuse": "true"}
    assert {row["backbone"]: row["tasks"] for row in told["backbones"]}["ViT-Adapter"] == [
        "backbone",
        "detect",
    ]
    assert {row["task"]: row["export_needs"] for row in told["tasks"]}["detect"] == [
        "torch",
        "torchvision",
    ]
    for name in (*PRESETS, *FAMILIES):
        assert name in shown.err


def test_what_a_preset_tells_is_enough_for_its_method():
    """A row of `list presets` leaves nothing that its method must be told."""
    rows = api.catalogue().to_dict()
    methods = {row["family"]: row for row in rows["methods"]}
    for row in rows["presets"]:
        assert set(methods[row["tells"]["family"]]["must_be_told"]) <= set(row["tells"])


def test_list_of_one_kind(cli, tmp_path):
    result = cli("list", "tasks", "--json", tmp_path / "tasks.json")
    assert result.code == 0
    assert result.out.splitlines()[0] == "tasks"
    assert "detect" in result.out and "svit_s" not in result.out
    told = json.loads((tmp_path / "tasks.json").read_text())
    assert list(told) == ["schema_version", "tool", "tasks"]
    refused = cli("list", "cats")
    assert refused.code == 2
    assert "use presets, methods, backbones, tasks" in refused.err
    assert api.catalogue("tasks").to_dict() == told
    with pytest.raises(UsageError):
        api.catalogue("cats")


# --- what is printed where ----------------------------------------------------------------------


@pytest.mark.slow
def test_piped_output_is_neither_wrapped_nor_cut_nor_padded(cli, bundles, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    name = "a-name-of-a-bundle-that-is-far-longer-than-the-forty-columns-of-this-console"
    shutil.copytree(bundles / "dynamic", tmp_path / name)
    shown = cli("bench", tmp_path / name, bundles / "dense", *QUICK)
    label = f"{name}: cold start "
    assert any(line.startswith(label) and line.endswith("run") for line in shown.out.splitlines())
    assert any(line.startswith(f"{name} ") for line in shown.out.splitlines())
    assert any(line.endswith("of images are not included") for line in shown.out.splitlines())
    assert any(f"timing {name}, dense" in line for line in shown.err.splitlines())
    lines = cli("inspect", tmp_path / name).out.splitlines()
    assert lines[0] == f"bundle {name}"
    sha256 = hash_file(CHECKPOINT)
    assert f"its sha256     {sha256}" in lines
    verdict = cli("verify", tmp_path / name).out.splitlines()[-1]
    assert verdict.startswith(f"PASS {name}: 8 images") and verdict.endswith("(8 images)")
    for text in (shown.out, "\n".join(lines), cli("doctor").out, cli("list").out):
        assert not any(line.endswith(" ") for line in text.splitlines())
    findings = only_json(cli("doctor", "--json", "-"))["findings"]
    told = cli("doctor").out.splitlines()
    for finding in findings:
        assert sum(line.startswith(f"{finding['name']} ") for line in told) == 1


def test_forced_colours_do_not_bring_widths_back(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert any(len(line) > 100 for line in cli("list", "methods").out.splitlines())


def test_a_terminal_keeps_its_layout(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", Screen())
    console = make_console()
    headline(console, "summary")
    console.print("word " * 40)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 60 and len(lines) > 3


@pytest.mark.slow
def test_a_quiet_export_prints_its_folder_and_what_is_assumed(cli, tmp_path):
    told = cli("-q", "export", CHECKPOINT, "--arch", ARCH, "-o", tmp_path / "a")
    assert told == Result(0, f"{tmp_path / 'a'}\n", "")
    assumed = cli("-q", "export", CHECKPOINT, *TOLD, "-o", tmp_path / "b")
    assert (assumed.code, assumed.out) == (0, f"{tmp_path / 'b'}\n")
    assert assumed.err.startswith("warning: assumed mean=0.485,0.456,0.406 std=")
    assert assumed.err.endswith("; give --set NAME=VALUE for what was trained otherwise\n")
    assert assumed.err.count("\n") == 1


# --- how long a benchmark takes -----------------------------------------------------------------


@pytest.mark.slow
def test_bench_tells_its_time_and_keeps_to_a_limit(cli, bundles):
    start = time.monotonic()
    line = ("bench", bundles / "dense", bundles / "dynamic", "--threads", "1", "--batch", "1,4")
    result = cli(*line, "--max-time", "15", "--json", "-")
    assert result.code == 0, result.err
    content = only_json(result)
    assert "note: measuring takes about " in result.err
    assert "limited to 15 s in all" in result.err
    assert time.monotonic() - start < 30  # the statistics and the first import are not measured
    assert content["settings"]["max_time_s"] == 15
    left = [row["rounds_left"] for row in content["results"]]
    assert max(left) > 0
    assert f"--max-time left out {left[0]} of about " in result.err
    assert all(row["rounds"] * 2 == row["latency"]["count"] for row in content["results"])


@pytest.mark.slow
def test_a_quick_bench_says_what_it_is(cli, bundles):
    result = cli("bench", bundles / "dense", bundles / "dynamic", "--quick", "--threads", "1")
    assert result.code == 0, result.err
    assert "batch 1, 12 runs each, interleaved, quick: not a figure to publish" in result.out
    assert "note: a quick run of a few rounds" in result.out
    refused = cli("bench", bundles / "dense", "--quick", "--duration", "9s")
    assert refused.code == 2
    assert "--quick says how long to measure" in refused.err
