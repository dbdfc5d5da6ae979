"""Detections, drawn pictures and average precision are on Ray what they are without it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from svit_deploy import api
from svit_deploy.images import load_images
from svit_deploy.machine.cluster import LOCAL, cluster
from tests.conftest import skip_without
from tests.tasks.detect.annotated import annotate
from tests.tasks.detect.test_evaluate import detect

skip_without("ray")


@pytest.fixture
def parted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One cluster for all that is run here."""

    @contextmanager
    def there(address: str) -> Iterator[None]:
        yield

    with cluster(LOCAL):
        monkeypatch.setattr("svit_deploy.inference.places.cluster", there)
        yield


@pytest.mark.slow
def test_on_ray_as_here(export: Any, photos: Path, tmp_path: Path, parted: None) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):  # two shards
        for photo in photos.iterdir():
            shutil.copy(photo, folder / f"{photo.stem}{number}.png")
    bundle = export("detect", "dynamic", calibration=photos)
    images = load_images(folder)
    found = [one.above(0.05) for one in detect(bundle, folder)]
    sizes = [picture.shape[:2] for picture in images.arrays]
    truth = annotate(tmp_path / "truth.json", list(zip(images.names, sizes, found, strict=True)))
    seen: list[Any] = []
    for place in ({}, {"ray": "auto", "actors": 2}):
        run: dict[str, Any] = {"threads": 1, **place}
        output = tmp_path / f"{len(place)}"
        files = api.predict(bundle.path, output / "drawn", images=folder, min_score=0.06, **run)
        files += api.predict(
            bundle.path, output / "coco.json", images=folder, annotations=truth, **run
        )
        scores = api.evaluate(bundle.path, images=folder, annotations=truth, **run).results()
        for name in ("seconds", "images_per_s", "engine_images_per_s"):
            del scores[name]
        seen.append(({file.name: file.read_bytes() for file in files}, scores))
    assert len(seen[0][0]) == 12 and seen[0][1]["measures"]["box_ap"]["low"] is not None
    assert seen[0] == seen[1]
