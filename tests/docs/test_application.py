"""The code of docs/application.md gives what svit-deploy gives, bit for bit."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from svit_deploy import api
from svit_deploy.bundle import open_bundle
from svit_deploy.cli import main
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.images import read_picture, synthetic_images
from tests.conftest import DIGITS
from tests.docs.pages import blocks_of

(CODE,) = (b.content for b in blocks_of("docs/application.md") if b.language == "python")
ORIENTATION = 0x0112  # EXIF


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose crop, interpolation, mean and standard deviation are nobody's defaults."""
    folder = tmp_path_factory.mktemp("application")
    told = {"crop_ratio": "0.8", "interpolation": "bilinear", "mean": "0.4,0.5,0.6"}
    api.export(
        DIGITS / "svit_digits.pth",
        folder / "out" / "dynamic",
        arch=str(DIGITS / "arch.yaml"),
        overrides={**told, "std": "0.2,0.3,0.25"},
        image_size="48x72",
    )
    return folder


def run_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(CODE, "docs/application.md", "exec"), names)
    return names


def test_the_code_imports_nothing_of_ours_and_is_short():
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(CODE))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert imported == {"json", "pathlib", "numpy", "onnxruntime", "PIL"}
    lines = [line for line in CODE.splitlines() if line and "import " not in line]
    assert len(lines) <= 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "orientation"),
    [((90, 91), 1), ((50, 300), 1), ((300, 50), 1), ((60, 90), 6), ((31, 17), 1), ((60, 90), 1)],
)
def test_it_gives_what_svit_deploy_gives(folder, size, orientation, monkeypatch, capsys):
    (picture,) = synthetic_images(1, size, seed=sum(size)).arrays
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(picture).save(folder / "street.jpg", exif=exif)
    found = run_code(folder, monkeypatch)

    bundle = open_bundle(folder / "out" / "dynamic")
    image = bundle.task.prepare(read_picture(folder / "street.jpg"), bundle.config, bundle.sizes)
    np.testing.assert_array_equal(found["images"][0], image.pixels)
    with OnnxRuntimeEngine(bundle.model_path) as engine:
        outputs = engine.run(bundle.task.feeds([image]))
    np.testing.assert_array_equal(found["logits"], outputs["logits"])
    np.testing.assert_array_equal(found["keep_mask"], outputs["keep_mask"])

    assert main(["predict", "out/dynamic", "street.jpg", "-o", "classes.jsonl"]) == 0
    predicted = json.loads((folder / "classes.jsonl").read_text())
    (folder / "classes.jsonl").unlink()
    best = [entry["label"] for entry in predicted["classes"]]
    assert best == np.argsort(-found["logits"][0], kind="stable")[: len(best)].tolist()
    assert predicted["kept_tokens"] == found["keep_mask"].sum(axis=2)[0].tolist()
