"""Random-weight checkpoints: sizes, keep ratios, spread, and files that are whole or absent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from svit_deploy.errors import ExportError, InputError, UsageError
from svit_deploy.images import synthetic_images
from svit_deploy.images.prepared import Prepared
from svit_deploy.io.files import hash_file
from svit_deploy.loading.layout import expected_shapes
from svit_deploy.loading.load import build_model, load_model
from svit_deploy.loading.presets import PRESETS
from svit_deploy.loading.random import _dims, init_checkpoint, random_weights
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.counts import kept_counts
from svit_deploy.model.model import Model
from svit_deploy.model.result import Result, stack
from svit_deploy.tasks import TASKS, Task
from svit_deploy.tasks.detect.keys import HeadDims

pytest.importorskip("torch")

SIZES = "family: svit\nnum_heads: 3\nembed_dim: 96\ndepth: 6\npatch_size: 8\nimage_size: 112\n"


@pytest.fixture
def arch(tmp_path: Path):
    """Writes an architecture file with some more lines."""

    def write(*lines: str, sizes: str = SIZES) -> str:
        path = tmp_path / "arch.yaml"
        path.write_text(sizes + "\n".join(lines))
        return str(path)

    return write


def run(model: Model, count: int, seed: int = 0, **options: bool) -> Result:
    """What the reference computes of synthetic images."""
    from svit_deploy.tasks.reference import Reference

    config = model.config
    images = synthetic_images(count, config.image_size, seed=seed)
    inputs = images.inputs(config.preprocess, config.image_size)
    images = [Prepared.whole(pixels) for pixels in inputs]
    return Reference(model, TASKS["classify"]).run(images, **options)


def keep_shares(model: Model, seed: int, count: int = 32) -> np.ndarray:
    """Kept over gated tokens of synthetic images, `[count, G]`."""
    config = model.config
    gated = [config.gated_tokens(gate) for gate in range(config.num_gates)]
    return kept_counts(run(model, count, seed).selected.keep_mask, config) / np.array(gated)


@pytest.mark.slow
def test_gates_keep_what_is_asked_for(arch, tmp_path):
    file = arch("gate_blocks: [1, 3, 5]")
    made = init_checkpoint(file, tmp_path / "x.pth", keep_ratio=(0.7, 0.5, 0.3))
    assert made.keep_ratios == pytest.approx((0.7, 0.5, 0.3), abs=1e-3)
    model = load_model(made.path, arch=file)
    assert model.config.gate_blocks == (1, 3, 5)
    assert model.config.thresholds == (0, 0, 0)
    shares = keep_shares(model, seed=0)  # the images it was calibrated on
    assert shares.mean(axis=0) == pytest.approx((0.7, 0.5, 0.3), abs=2e-3)
    shares = keep_shares(model, seed=1)
    assert shares.mean(axis=0) == pytest.approx((0.7, 0.5, 0.3), abs=0.06)
    # Content decides, as in trained models: about a tenth from image to image.
    assert ((shares.std(axis=0) > 0.03) & (shares.std(axis=0) < 0.2)).all()


@pytest.mark.parametrize(("ratios", "expected"), [((0.6,), (0.6, 0.6)), ((1.0, 0.05), (1.0, 0.05))])
def test_ratios_are_spread_over_the_gates(arch, tmp_path, ratios, expected):
    file = arch("gate_blocks: [2, 4]")
    made = init_checkpoint(file, tmp_path / "x.safetensors", keep_ratio=ratios)
    assert made.keep_ratios == pytest.approx(expected, abs=1e-3)


def test_targets_of_the_architecture_are_the_default(arch, tmp_path):
    file = arch("target_keep: 0.4", sizes=SIZES.replace("112", "64"))
    made = init_checkpoint(file, tmp_path / "x.safetensors")
    assert made.keep_ratios == pytest.approx([0.4] * 6, abs=1e-3)  # a gate in front of each block


def test_sizes_come_from_the_file(arch, tmp_path):
    more = ("num_classes: 7", "gate_blocks: [5]", "mean: [0, 0, 0]")
    file = arch(*more, sizes=SIZES.replace("112", "64x112"))
    made = init_checkpoint(file, tmp_path / "x.safetensors", keep_ratio=(0.5,))
    config = load_model(made.path, arch=file).config
    assert (config.embed_dim, config.depth, config.mlp_dim) == (96, 6, 384)
    assert (config.num_classes, config.patch_size, config.native_grid) == (7, 8, (8, 14))
    assert config.preprocess.mean == (0, 0, 0)


def task_of(preset: str) -> Task:
    return TASKS[FAMILIES[PRESETS[preset].family].backbone.tasks[-1]]


UNGATED = [name for name, arch in PRESETS.items() if not FAMILIES[arch.family].method.trained_gates]


@pytest.mark.parametrize("preset", UNGATED)
def test_presets_without_gates(preset):
    """Of the right sizes; the largest are not written."""
    task = task_of(preset)
    dims = _dims(preset, PRESETS[preset], task)
    small = replace(dims, num_classes=2, embed_dim=32, mlp_dim=64)
    small = replace(small, heads=HeadDims(8, 16)) if dims.heads else small
    weights = random_weights(small, task, np.random.default_rng(0))
    assert {name: array.shape for name, array in weights.items()} == expected_shapes(small, task)
    assert all(array.dtype == np.float32 for array in weights.values())
    assert all(array.min() > 0 for name, array in weights.items() if "running_var" in name)


@pytest.mark.parametrize("preset", ["dynamicvit_256", "evovit_t"])
def test_written_methods_are_recognised(preset, tmp_path):
    made = init_checkpoint(preset, tmp_path / "x.safetensors")
    assert load_model(made.path, arch=preset).config.family == PRESETS[preset].family


def test_written_preset_is_recognised(tmp_path):
    made = init_checkpoint("deit_tiny_distilled", tmp_path / "x.safetensors")
    assert made.keep_ratios == ()
    model = load_model(made.path)
    assert (model.arch, model.config.num_heads) == ("deit_tiny_distilled", 3)
    assert "recognised as deit_tiny_distilled by its dimensions" in model.notes


def test_svit_preset(tmp_path):
    dims = _dims("svit_s", PRESETS["svit_s"], TASKS["classify"])
    assert (dims.num_gates, dims.gate_dim, dims.num_patches) == (9, 96, 196)


def test_seed_decides(arch, tmp_path):
    small = SIZES.replace("112", "32")
    file = arch("gate_blocks: [5]", "target_keep: 0.5", sizes=small)

    def made(seed: int, name: str) -> str:
        return hash_file(init_checkpoint(file, tmp_path / name, seed=seed).path)

    assert made(1, "a.safetensors") == made(1, "b.safetensors") != made(2, "c.safetensors")


@pytest.mark.slow
def test_activations_neither_vanish_nor_explode(arch, tmp_path):
    deep = SIZES.replace("depth: 6", "depth: 24")
    made = init_checkpoint(arch("target_keep: 0.5", sizes=deep), tmp_path / "x.safetensors")
    model = load_model(made.path, arch=str(tmp_path / "arch.yaml"))
    result = run(model, 4, stages=True)
    scales = [float(stage.std()) for name, stage in result.stages.items() if ".out" in name]
    assert len(scales) == 24
    assert max(scales) < 10 * min(scales)
    assert 0.1 < stack(result.outputs, "logits").std() < 10
    margin = result.selected.margin
    margins = margin[np.isfinite(margin)]
    assert 0.1 < margins.std() < 10


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        ([], {}, "add --keep-ratio"),
        (["gate_blocks: [1, 2]"], {"keep_ratio": (0.5, 0.5, 0.5)}, "--keep-ratio has 3 values"),
        ([], {"keep_ratio": (0.0,)}, "above 0"),
        ([], {"keep_ratio": (1.5,)}, "at most 1"),
        (["family: deit"], {"keep_ratio": (0.5,)}, "leave --keep-ratio out"),
    ],
)
def test_wrong_ratios(arch, tmp_path, lines, options, words):
    sizes = SIZES.replace("family: svit\n", "") if "family: deit" in lines else SIZES
    file = arch(*lines, sizes=f"{sizes}\n")
    with pytest.raises(UsageError, match=words):
        init_checkpoint(file, tmp_path / "x.safetensors", **options)
    assert [entry.name for entry in tmp_path.iterdir()] == ["arch.yaml"]


SWIN = "family: swin\nnum_heads: 3\nembed_dim: 96\ndepth: 4\npatch_size: 4\nimage_size: 32\n"
STVIT = "family: stvit\nnum_heads: 3\nembed_dim: 96\ndepth: 6\npatch_size: 8\nimage_size: 112\n"


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (SIZES.replace("svit", "vit"), "family=vit has a bad value; give one of dynamicvit"),
        (SWIN, "does not say depths"),
        (f"{SWIN}depths: [2, 2]\n", r"depths \[2, 2\] are not those of 4 stages"),
        (f"{SWIN}depths: [1, 1, 2, 0]\n", "are not those of 4 stages"),
        (STVIT, "does not say semantic"),
        (f"{STVIT}semantic: -4\n", r"semantic_tokens has the shape \[1, -4, 96\]"),
    ],
)
def test_wrong_architectures(arch, tmp_path, sizes, words):
    with pytest.raises((InputError, UsageError), match=words):
        init_checkpoint(arch(sizes=sizes), tmp_path / "x.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["arch.yaml"]


def test_wrong_outputs(arch, tmp_path):
    with pytest.raises(UsageError, match=r"\.pth or \*\.safetensors"):
        init_checkpoint("deit_tiny", tmp_path / "x.onnx")
    there = tmp_path / "x.safetensors"
    there.write_text("mine")
    with pytest.raises(ExportError, match="--force"):
        init_checkpoint("deit_tiny", there)
    assert there.read_text() == "mine"
    with pytest.raises(UsageError, match="does not say embed_dim"):
        init_checkpoint(arch(sizes="family: svit\nnum_heads: 2\n"), tmp_path / "y.pth")


def test_failed_write_leaves_nothing(arch, tmp_path, monkeypatch):
    file = arch("gate_blocks: [5]", "target_keep: 0.5", sizes=SIZES.replace("112", "32"))

    def interrupt(self, content):
        with self.open("wb") as stream:
            stream.write(content[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        init_checkpoint(file, tmp_path / "x.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["arch.yaml"]


def test_flat_parts_of_an_image_are_tokens_too():
    """Errors are relative to tokens: one that is rounding noise alone could not be compared."""
    from svit_deploy.tasks.reference import Reference

    arch, task = replace(PRESETS["stvitr_s"], num_heads=3, embed_dim=24), TASKS["classify"]
    dims = FAMILIES["stvitr"].dims_from_arch(arch)
    model = build_model(random_weights(dims, task, np.random.default_rng(0)))
    black = Prepared.whole(np.zeros((3, 224, 224), np.float32))
    embedding = Reference(model, task).run([black], stages=True).stages["embedding"]
    assert np.linalg.norm(embedding, axis=-1).min() > 0.1
