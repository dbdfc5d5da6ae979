"""What a detector and a backbone show of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("torchvision")

from svit_deploy import api
from svit_deploy.errors import InputError

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_predict_draws_and_tells(export: Any, photos: Path, tmp_path: Path) -> None:
    bundle = export("detect", "dynamic")
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
    bundle = export("detect", "dense")
    files = api.predict(bundle.path, tmp_path / "none", images=photos, min_score=1.0, threads=1)
    content = json.loads(files[-1].read_text())
    assert all(entry["detections"] == [] for entry in content["images"])


def test_predict_draws_a_backbones_tokens(export: Any, photos: Path, tmp_path: Path) -> None:
    bundle = export("backbone", "dynamic")
    files = api.predict(bundle.path, tmp_path / "maps", images=photos, threads=1)
    assert len(files) == 3
    dense = export("backbone", "dense")
    with pytest.raises(InputError, match="nothing to draw"):
        api.predict(dense.path, tmp_path / "no", images=photos)


def test_predict_refuses_foreign_folders_and_visualize_many_sizes(
    export: Any, photos: Path, tmp_path: Path
) -> None:
    bundle = export("detect", "dynamic")
    (tmp_path / "letter.txt").write_text("keep me")
    with pytest.raises(InputError, match="not predictions"):
        api.predict(bundle.path, tmp_path, images=photos)
    assert (tmp_path / "letter.txt").read_text() == "keep me"
    with pytest.raises(InputError, match="use predict"):
        api.visualize(bundle.path, tmp_path / "maps", images=photos)
