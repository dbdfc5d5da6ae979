"""Export, verify, bench and predict of detection models, as a user runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("torchvision")

from svit_deploy.detection.bundle import DetectionBundle

from svit_deploy import api
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.cli import main
from svit_deploy.errors import CapabilityError, InputError, UsageError

SIZES = "64x64:96x128:256x256"
QUICK = BenchSettings(warmup_s=0, duration_s=0, min_samples=4, threads=1)


@pytest.fixture(scope="session")
def export(golden: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Exports a golden once per session: name, task, token mode, more options."""

    @cache
    def make(name: str, task: str, mode: str, **options: Any) -> DetectionBundle:
        output = tmp_path_factory.mktemp(f"{name}-{task}-{mode}") / "bundle"
        budget = "0.9,0.7,0.5" if mode == "budget" else None
        options = {"image_size": SIZES, "budget": budget, **options}
        overrides = {"num_heads": "6"}
        path = golden(name).path
        bundle = api.export(path, output, task=task, tokens=mode, overrides=overrides, **options)
        assert isinstance(bundle, DetectionBundle)
        return bundle

    return make


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two painted pictures, upright and across."""
    from svit_deploy.images.synthetic import paint_scene

    folder = tmp_path_factory.mktemp("photos")
    for name, size in (("across", (60, 90)), ("upright", (90, 50))):
        picture = paint_scene(*size, np.random.default_rng(len(name)))
        Image.fromarray(picture).save(folder / f"{name}.png")
    return folder


CASES = [
    ("svit_adapter", "backbone", "dynamic"),
    ("svit_adapter", "backbone", "budget"),
    ("svit_adapter", "backbone", "masked"),
    ("svit_adapter", "backbone", "dense"),
    ("vit_adapter_dense", "backbone", "dense"),
    ("svit_mask_rcnn", "detect", "dynamic"),
    ("svit_mask_rcnn", "detect", "budget"),
    ("svit_mask_rcnn", "detect", "masked"),
    ("svit_mask_rcnn", "detect", "dense"),
]


@pytest.mark.parametrize(("name", "task", "mode"), CASES)
def test_verify_passes(
    golden: Any, export: Any, photos: Path, name: str, task: str, mode: str
) -> None:
    bundle = export(name, task, mode)
    against = golden(name).path
    for report in (
        api.verify(bundle.path, threads=1),
        api.verify(bundle.path, against=against, images=photos, threads=1),
    ):
        assert report.passed, report.verdict
        assert report.images == 2
        content = report.to_dict()
        assert set(content["results"]["features"]) == {f"stride_{s}" for s in (4, 8, 16, 32)}
        assert (content["results"]["detections"] is not None) == (task == "detect")
    largest = max(stage.error / stage.limit for stage in report.stages)
    assert largest < 0.2  # correct exports stay far from the limits


def test_manifest_tells_task_and_sizes(export: Any) -> None:
    bundle = export("svit_mask_rcnn", "detect", "budget")
    assert bundle.task.value == "detect" and str(bundle.sizes) == SIZES
    assert bundle.shares == (0.9,) * 3 + (0.7,) * 3 + (0.5,) * 3
    assert bundle.rows_for(48) == (44,) * 3 + (34,) * 3 + (24,) * 3
    facts = json.dumps(api.inspect(bundle.path).to_dict())
    assert "svit_adapter" in facts


def test_without_gate_outputs(golden: Any, export: Any) -> None:
    bundle = export("svit_mask_rcnn", "detect", "dynamic", gate_outputs=False)
    report = api.verify(bundle.path, against=golden("svit_mask_rcnn").path, threads=1)
    assert report.passed, report.verdict
    assert "alike without its gates in view" in [check.name for check in report.checks]


@pytest.mark.parametrize(("name", "task"), [c[:2] for c in CASES[::5]])
def test_one_image_at_a_time(golden: Any, export: Any, name: str, task: str) -> None:
    """`--batch 1` spares the hiding of empty slots, and refuses batches."""
    bundle = export(name, task, "dynamic", batch="1")
    model = bundle.load_model()
    assert len(model.graph.node) < len(export(name, task, "dynamic").load_model().graph.node)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    report = api.verify(bundle.path, against=golden(name).path, threads=1)
    assert report.passed, report.verdict


def test_gates_and_budgets_from_pictures(golden: Any, photos: Path, tmp_path: Path) -> None:
    bundle = api.export(
        golden("svit_adapter").path,
        tmp_path / "out",
        task="backbone",
        tokens="budget",
        budget="auto",
        calibration=photos,
        calibrate_gates=photos,
        target_keep="0.6",
        overrides={"num_heads": "6"},
        image_size=SIZES,
    )
    assert isinstance(bundle, DetectionBundle)
    kept = [sample.keep_mask.mean(axis=1) for sample in bundle.load_samples()]
    np.testing.assert_allclose(np.mean(kept, axis=0), 0.6, atol=0.05)
    np.testing.assert_allclose(bundle.shares, np.max(kept, axis=0), atol=1e-4)
    assert api.verify(bundle.path, against=golden("svit_adapter").path, threads=1).passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "budget"}, "add --budget"),
        ({"tokens": "budget", "budget": "150,110,80"}, "counts tokens"),
        ({"tokens": "budget", "budget": "0.5,1.5,0.2"}, "keep ratio of 1.5"),
        ({"tokens": "budget", "budget": "auto"}, "needs images"),
        ({"image_size": "100x128"}, "not a multiple of 32"),
        ({"task": "segment"}, "--task 'segment' is unknown"),
    ],
)
def test_options_that_cannot_work(
    golden: Any, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    options = {"task": "backbone", "image_size": SIZES, **options}
    path = golden("svit_adapter").path
    with pytest.raises(UsageError, match=message):
        api.export(path, tmp_path / "out", overrides={"num_heads": "6"}, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "task", "mode", "precision"),
    [
        ("svit_adapter", "backbone", "dynamic", "fp16"),
        ("svit_adapter", "backbone", "masked", "bf16"),
        ("svit_mask_rcnn", "detect", "budget", "fp16"),
        ("svit_mask_rcnn", "detect", "dense", "fp16"),
    ],
)
def test_half_precision(
    golden: Any, export: Any, name: str, task: str, mode: str, precision: str
) -> None:
    bundle = export(name, task, mode, precision=precision)
    report = api.verify(bundle.path, against=golden(name).path, threads=1)
    assert report.passed, report.verdict
    errors = {stage.name: stage.error for stage in report.stages}
    assert errors["pyramid"] > 1e-4  # rounded indeed
    assert all(errors[f"gate {gate.gate}"] < 1e-4 for gate in report.gates)  # float32 all the same
    assert report.limits.box == 1e-3 or task == "backbone"


def test_no_detector_in_bfloat16(golden: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="would move its boxes by pixels; use --precision fp16"):
        api.export(golden("svit_mask_rcnn").path, tmp_path / "out", task="detect", precision="bf16")
    assert not (tmp_path / "out").exists()


def test_dense_checkpoints_cannot_prune(golden: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no gates"):
        api.export(
            golden("vit_adapter_dense").path,
            tmp_path / "out",
            task="backbone",
            tokens="dynamic",
            overrides={"num_heads": "6"},
        )


def test_missing_torchvision_is_named(
    golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(CapabilityError, match=r"needs torchvision.*svit-deploy\[detect\]"):
        api.export(
            golden("svit_mask_rcnn").path,
            tmp_path / "out",
            task="detect",
            overrides={"num_heads": "6"},
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(task="classify"), "classify"),
        (lambda m: m["image"].update(opt=[96, 96]), "two image sizes"),
        (lambda m: m["image"].update(min=[96, 100]), "not a multiple of 32"),
        (lambda m: m["tokens"].update(budgets=[0.5]), "budgets"),
        (lambda m: m.update(task="backbone"), "do not fit the task"),
        (lambda m: m.pop("task"), "unknown|missing"),
    ],
)
def test_contradicting_manifests_are_refused(
    export: Any, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(export("svit_mask_rcnn", "detect", "dynamic").path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=message):
        api.verify(folder)


def test_an_endless_number_of_samples_is_refused(export: Any, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(export("svit_mask_rcnn", "detect", "dynamic").path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["reference"]["images"] = 10**15
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="cannot hold 1000000000000000 images"):
        api.verify(folder)


WITHOUT_TORCH = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "pycocotools"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from svit_deploy.cli import main
bundle, photos, output = sys.argv[1:]
quick = ["--duration", "0", "--warmup", "0", "--min-samples", "2", "--threads", "1"]
for line in (["verify", bundle, "--threads", "1"], ["bench", bundle, *quick, "--images", photos],
             ["predict", bundle, photos, "-o", output, "--threads", "1"], ["inspect", bundle]):
    code = main(["-q", "--no-progress", *line])
    assert code == 0, (line, code)
"""


def test_a_target_needs_no_pytorch(export: Any, photos: Path, tmp_path: Path) -> None:
    bundle = export("svit_mask_rcnn", "detect", "dynamic")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(bundle.path), str(photos)]
    done = subprocess.run([*command, str(tmp_path / "found")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bench_compares_with_the_dense_twin(export: Any, photos: Path) -> None:
    dense = export("svit_mask_rcnn", "detect", "dense")
    for name in ("dynamic", "masked"):
        bundle = export("svit_mask_rcnn", "detect", name)
        report = api.bench([dense.path, bundle.path], images=photos, settings=QUICK)
        assert report.results[1].speedup is not None
        assert report.results[1].kept is not None and report.results[1].kept.tokens == 48


def test_bench_sweeps_kept_tokens_at_a_given_size(export: Any, photos: Path) -> None:
    from dataclasses import replace

    bundle = export("svit_adapter", "backbone", "dynamic")
    settings = replace(QUICK, sweep=True, image_size=(160, 96))
    result = api.bench([bundle.path], images=photos, settings=settings).results[0]
    assert result.kept is not None and result.kept.tokens == 60
    assert result.sweep is not None
    assert [point.keep_ratio for point in result.sweep.points] == pytest.approx(
        [0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0], abs=0.02
    )
    with pytest.raises(InputError, match="not a multiple of 32"):
        api.bench([bundle.path], images=photos, settings=replace(QUICK, image_size=(100, 96)))


def test_predict_draws_and_tells(export: Any, photos: Path, tmp_path: Path) -> None:
    bundle = export("svit_mask_rcnn", "detect", "dynamic")
    output = tmp_path / "found"
    for _ in range(2):  # an earlier result is replaced
        files = api.predict(bundle.path, output, images=photos, min_score=0.06, threads=1)
        assert sorted(files) == sorted(output.iterdir())
    content = json.loads((output / "predictions.json").read_text())
    assert [entry["size"] for entry in content["images"]] == [[60, 90], [90, 50]]
    found = [d for entry in content["images"] for d in entry["detections"]]
    assert found and all(d["score"] >= 0.06 and d["name"].startswith("c") for d in found)
    for entry in content["images"]:
        height, width = entry["size"]
        for d in entry["detections"]:
            left, top, right, bottom = d["box"]
            assert 0 <= left < right <= width + 0.01 and 0 <= top < bottom <= height + 0.01
    with Image.open(files[0]) as drawn:
        assert drawn.width > 2 * 90


def test_predict_without_any_detection(export: Any, photos: Path, tmp_path: Path) -> None:
    bundle = export("svit_mask_rcnn", "detect", "dense")
    files = api.predict(bundle.path, tmp_path / "none", images=photos, min_score=1.0, threads=1)
    content = json.loads(files[-1].read_text())
    assert all(entry["detections"] == [] for entry in content["images"])


def test_predict_draws_a_backbones_tokens(export: Any, photos: Path, tmp_path: Path) -> None:
    bundle = export("svit_adapter", "backbone", "dynamic")
    files = api.predict(bundle.path, tmp_path / "maps", images=photos, threads=1)
    assert len(files) == 3
    dense = export("svit_adapter", "backbone", "dense")
    with pytest.raises(InputError, match="nothing to draw"):
        api.predict(dense.path, tmp_path / "no", images=photos)


def test_predict_refuses_foreign_folders_and_classifiers(
    export: Any, photos: Path, tmp_path: Path
) -> None:
    bundle = export("svit_mask_rcnn", "detect", "dynamic")
    (tmp_path / "letter.txt").write_text("keep me")
    with pytest.raises(InputError, match="not predictions"):
        api.predict(bundle.path, tmp_path, images=photos)
    assert (tmp_path / "letter.txt").read_text() == "keep me"
    with pytest.raises(InputError, match="use predict"):
        api.visualize(bundle.path, tmp_path / "maps", images=photos)


def test_command_line(golden: Any, photos: Path, tmp_path: Path, capsys: Any) -> None:
    path, out = str(golden("svit_mask_rcnn").path), str(tmp_path / "out")
    heads = ["--set", "num_heads=6"]
    small = ["--image-size", "64x64:64x64:256x256"]
    assert main(["-q", "export", path, "-o", out, "--task", "detect", *heads, *small]) == 0
    assert "task detect, 64x64 to 256x256" in capsys.readouterr().out
    found = str(tmp_path / "found")
    assert (
        main(["-q", "--no-progress", "predict", out, str(photos / "across.png"), "-o", found]) == 0
    )
    assert "wrote 2 files" in capsys.readouterr().out
    assert main(["-q", "export", path, "-o", str(tmp_path / "x"), "--task", "cats"]) == 2
    assert "use classify, backbone or detect" in capsys.readouterr().err
