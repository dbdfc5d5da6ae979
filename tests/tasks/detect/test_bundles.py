"""Export, verify and bench of detection models, as a user runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")

from svit_deploy import api
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bench.targets import bench_paths
from svit_deploy.cli import main
from svit_deploy.errors import CapabilityError, InputError, UsageError
from tests.shortened import SETTINGS
from tests.told import ADAPTER, IMAGENET, LAST_NINE, as_options

SIZES = "64x64:96x128:256x256"
QUICK = BenchSettings(warmup_s=0, duration_s=0, min_samples=4, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "mode"), [("backbone", "dynamic"), ("backbone", "dense"), ("detect", "budget")]
)
def test_verify_passes(checkpoint: Path, export: Any, photos: Path, task: str, mode: str) -> None:
    """On pictures of several sizes, far from the limits."""
    bundle = export(task, mode)
    report = api.verify(bundle.path, against=checkpoint, images=photos, threads=1)
    assert report.passed, report.verdict
    assert report.images == 2
    content = report.to_dict()
    assert set(content["results"]["features"]) == {f"stride_{s}" for s in (4, 8, 16, 32)}
    assert (content["results"]["detections"] is not None) == (task == "detect")
    assert max(stage.error / stage.limit for stage in report.stages) < 0.2


@pytest.mark.slow
def test_verify_passes_for_a_detector_of_full_length(
    detection_golden: Any, tmp_path: Path, photos: Path
) -> None:
    found = detection_golden("svit_mask_rcnn")
    options = {"task": "detect", "image_size": SIZES, "overrides": ADAPTER | LAST_NINE}
    bundle = api.export(found.path, tmp_path / "out", calibration=photos, **options)
    report = api.verify(bundle.path, against=found.path, threads=1)
    assert report.passed, report.verdict
    assert (report.images, len(report.gates)) == (2, 9)
    assert max(stage.error / stage.limit for stage in report.stages) < 0.2


@pytest.mark.slow
def test_manifest_tells_task_and_sizes(export: Any) -> None:
    bundle = export("detect", "budget")
    assert bundle.task.name == "detect" and str(bundle.sizes) == SIZES
    assert [budget.value for budget in bundle.budgets] == [0.9, 0.7, 0.5]
    assert bundle.rows((96, 128)).tolist() == [44, 34, 24]
    facts = json.dumps(api.inspect(bundle.path).to_dict())
    assert "svit_adapter" in facts


@pytest.mark.slow
@pytest.mark.parametrize("task", ["backbone", "detect"])
def test_one_image_at_a_time(checkpoint: Path, export: Any, task: str) -> None:
    """`--batch 1` spares the hiding of empty slots, and refuses batches."""
    bundle = export(task, "dynamic", batch="1")
    model = bundle.load_model()
    assert len(model.graph.node) < len(export(task, "dynamic").load_model().graph.node)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    report = api.verify(bundle.path, against=checkpoint, threads=1)
    assert report.passed, report.verdict


@pytest.mark.slow
def test_gates_and_budgets_from_pictures(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    bundle = api.export(
        checkpoint,
        tmp_path / "out",
        task="backbone",
        tokens="budget",
        budget="auto",
        calibration=photos,
        calibrate_gates=photos,
        target_keep="0.6",
        overrides=SETTINGS | IMAGENET,
        image_size=SIZES,
    )
    kept = [part.result.selected.keep_mask[0].mean(axis=1) for part in bundle.load_samples()]
    np.testing.assert_allclose(np.mean(kept, axis=0), 0.6, atol=0.05)
    shares = [budget.value for budget in bundle.budgets]
    np.testing.assert_allclose(shares, np.max(kept, axis=0), atol=1e-4)
    report = api.verify(bundle.path, against=checkpoint, threads=1)
    assert report.passed, report.verdict
    (note,) = report.notes
    assert note.startswith("the bundle's own thresholds are used, as chosen at export: ")


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
    checkpoint: Path, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    options = {"task": "backbone", "image_size": SIZES, **options}
    with pytest.raises(UsageError, match=message):
        api.export(checkpoint, tmp_path / "out", overrides=SETTINGS, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "mode", "precision"), [("backbone", "masked", "bf16"), ("detect", "budget", "fp16")]
)
def test_half_precision(
    checkpoint: Path, export: Any, photos: Path, task: str, mode: str, precision: str
) -> None:
    bundle = export(task, mode, precision=precision)
    report = api.verify(bundle.path, against=checkpoint, images=photos, threads=1)
    assert report.passed, report.verdict
    errors = {stage.name: stage.error for stage in report.stages}
    assert errors["pyramid"] > 1e-4  # rounded indeed
    assert all(errors[f"gate {gate.gate}"] < 1e-4 for gate in report.gates)  # float32 all the same
    assert task == "backbone" or report.limits.box == 1e-3


def test_no_detector_in_bfloat16(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="would move its boxes by pixels; compute it in fp16"):
        api.export(checkpoint, tmp_path / "out", task="detect", precision="bf16")
    assert not (tmp_path / "out").exists()


def test_dense_checkpoints_cannot_prune(detection_golden: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no gates"):
        api.export(
            detection_golden("vit_adapter_dense").path,
            tmp_path / "out",
            task="backbone",
            tokens="dynamic",
            overrides=ADAPTER,
        )


def test_missing_torchvision_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(CapabilityError, match=r"needs torchvision.*svit-deploy\[detect\]"):
        api.export(checkpoint, tmp_path / "out", task="detect", overrides=SETTINGS)


# --- manifests of anyone -----------------------------------------------------------------------


@pytest.fixture
def changed(export: Any, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """A copy of a detector's bundle whose manifest says something else."""

    def make(change: Callable[[dict[str, Any]], Any]) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(export("detect", "dynamic").path, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(task="classify"), "'image' is unknown"),
        (lambda m: m["image"].update(opt=[96, 96]), "two image sizes"),
        (lambda m: m["image"].update(min=[96, 100]), "not a multiple of 32"),
        (lambda m: m["tokens"].update(budgets=[0.5]), "budgets"),
        (lambda m: m.update(task="backbone"), "num_classes is 80, and a backbone alone has"),
        (lambda m: m.pop("task"), "'image' is unknown"),
    ],
)
def test_contradicting_manifests_are_refused(
    changed: Any, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        api.verify(changed(change))


def test_an_endless_number_of_samples_is_refused(changed: Any) -> None:
    folder = changed(lambda manifest: manifest["reference"].update(images=10**15))
    with pytest.raises(InputError, match="cannot hold 1000000000000000 images"):
        api.verify(folder)


# --- on a target -------------------------------------------------------------------------------

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
             ["predict", bundle, photos, "-o", output, "--threads", "1"], ["inspect", bundle],
             ["predict", bundle, photos, "-o", output + ".jsonl", "--threads", "1"]):
    code = main(["-q", "--no-progress", *line])
    assert code == 0, (line, code)
"""


@pytest.mark.slow
def test_a_target_needs_no_pytorch(export: Any, photos: Path, tmp_path: Path) -> None:
    bundle = export("detect", "dynamic")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(bundle.path), str(photos)]
    done = subprocess.run([*command, str(tmp_path / "found")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dynamic", "masked"])
def test_bench_compares_with_the_dense_twin(export: Any, photos: Path, mode: str) -> None:
    dense, bundle = export("detect", "dense"), export("detect", mode)
    report = api.bench([dense.path, bundle.path], images=photos, settings=QUICK)
    assert report.results[1].speedup is not None
    assert report.results[1].kept is not None and report.results[1].kept.tokens == 48


@pytest.mark.slow
def test_bench_sweeps_kept_tokens_at_a_given_size(export: Any, photos: Path) -> None:
    bundle = export("backbone", "dynamic")
    settings = replace(QUICK, sweep_tokens=Path("sweep.png"), images=photos, image_size=(160, 96))
    result = bench_paths([bundle.path], settings).results[0]
    assert result.kept is not None and result.kept.tokens == 60
    assert result.sweep is not None
    assert [point.keep_ratio for point in result.sweep.points] == pytest.approx(
        [0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0], abs=0.02
    )
    with pytest.raises(UsageError, match=r"and not of 100x96; .* --image-size 96x96"):
        api.bench([bundle.path], images=photos, settings=replace(QUICK, image_size=(100, 96)))


@pytest.mark.slow
def test_command_line(checkpoint: Path, photos: Path, tmp_path: Path, capsys: Any) -> None:
    path, out = str(checkpoint), str(tmp_path / "out")
    told = as_options(SETTINGS)
    small = ["--image-size", "64x64:64x64:256x256"]
    assert main(["export", path, "-o", out, "--task", "detect", *told, *small]) == 0
    assert "task detect, 64x64 to 256x256" in capsys.readouterr().out
    found = str(tmp_path / "found")
    assert (
        main(["-q", "--no-progress", "predict", out, str(photos / "across.png"), "-o", found]) == 0
    )
    assert "wrote 2 files" in capsys.readouterr().out
    assert main(["-q", "export", path, "-o", str(tmp_path / "x"), "--task", "cats"]) == 2
    assert "use classify, backbone, detect, cascade or video" in capsys.readouterr().err
