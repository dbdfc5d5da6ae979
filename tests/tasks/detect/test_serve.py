"""A detector behind a server: boxes in the pixels of the picture that was sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from svit_deploy.bundle import Bundle
from svit_deploy.engines.settings import RunSettings
from svit_deploy.images import read_picture
from svit_deploy.inference.engine import open_bundle_engine
from svit_deploy.tasks.detect.detections import IMAGE_INDEX, OUTPUTS, SCORES
from tests.serve.needs import needs_kserve
from tests.serve.serving import Server, binary, parse, pictures_request


@needs_kserve
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dynamic", "budget"])
def test_pictures_and_tensors(
    export: Callable[..., Bundle], photos: Path, tmp_path: Path, mode: str
) -> None:
    bundle = export("detect", mode)
    task, config, sizes = bundle.task, bundle.config, bundle.sizes
    files = [photos / "across.png", photos / "upright.png"]  # of two sizes: two runs, one answer
    limits = ["--threads", 1, "--max-delay", 50, "--max-batch", 1]
    with Server(tmp_path / "log", f"detector={bundle.path}", *limits) as server:
        infer = "/v2/models/detector/infer"
        names = [*OUTPUTS, "summary"]
        body, headers = pictures_request([file.read_bytes() for file in files], names)
        found = parse(server.client.post(infer, content=body, headers=headers))
        every, every_headers = pictures_request([file.read_bytes() for file in files])
        response = server.client.post(infer, content=every, headers=every_headers)
        assert response.status_code == 400
        assert "another shape for each image size" in response.json()["error"]
        for number, file in enumerate(files):
            image = task.prepare(read_picture(file), config, sizes)
            feeds = task.feeds([image])
            with open_bundle_engine(bundle, RunSettings()) as engine:
                expected = engine.run(feeds)
            own = found[IMAGE_INDEX] == number
            assert own.sum() == len(expected[SCORES])
            for name in ("boxes", "scores", "labels"):
                np.testing.assert_allclose(found[name][own], expected[name], atol=1e-3)
            told = json.loads(found["summary"][number])["detections"]
            assert len(told) == (expected[SCORES] >= 0.3).sum()
            tensors = {n: ("FP32", list(a.shape), a.tobytes()) for n, a in feeds.items()}
            body, headers = binary(tensors, list(OUTPUTS))
            alone = parse(server.client.post(infer, content=body, headers=headers))
            np.testing.assert_allclose(alone["boxes"], expected["boxes"], atol=1e-3)
        beyond = server.metric("svit_overflow_images_total", model_name="detector", gate=0)
        assert (beyond > 0) == (mode == "budget" and bool(expected["overflow"][:, 0].any()))
