"""Replicas behind Ray Serve: the same answers, and one that is killed is replaced."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from svit_deploy.bundle import Bundle
from svit_deploy.images import ImageSet
from svit_deploy.inference.engine import open_bundle_engine
from svit_deploy.inference.settings import InferenceSettings
from tests.conftest import skip_without

skip_without("kserve")
skip_without("ray")
from tests.serve.serving import Server  # noqa: E402

pytestmark = pytest.mark.slow


def replicas_of(server: Server) -> list[int]:
    """Processes of replicas among those that the server began."""
    told = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in told.splitlines()]
    below, found = {server.process.pid}, []
    while new := {int(pid) for pid, parent, _ in rows if int(parent) in below} - below:
        below |= new
    for pid, _, args in rows:
        if int(pid) in below and args.startswith("ray::ServeReplica"):
            found.append(int(pid))
    return found


def test_answers_of_replicas(digits_bundle: Bundle, heldout: ImageSet, tmp_path: Path) -> None:
    with open_bundle_engine(digits_bundle, InferenceSettings(threads=1)) as engine:
        images = heldout.inputs(digits_bundle.config.preprocess, digits_bundle.config.image_size)
        expected = engine.run({"images": images[:4]}, ["logits"])["logits"]
    request = {
        "inputs": [
            {
                "name": "images",
                "datatype": "FP32",
                "shape": [4, *images.shape[1:]],
                "data": images[:4].ravel().tolist(),
            }
        ],
        "outputs": [{"name": "logits"}, {"name": "summary"}],
    }
    log, path = tmp_path / "log", "/v2/models/digits"
    with Server(log, f"digits={digits_bundle.path}", "--ray", "local", "--threads", "1") as server:

        def ask() -> np.ndarray:
            answer = server.client.post(f"{path}/infer", json=request)
            assert answer.status_code == 200, answer.text
            logits, summary = answer.json()["outputs"]
            assert all("kept_tokens" in text for text in summary["data"])
            return np.array(logits["data"], np.float32).reshape(logits["shape"])

        assert ask() == pytest.approx(expected, abs=1e-5)
        (killed,) = replicas_of(server)
        os.kill(killed, signal.SIGKILL)
        assert ask() == pytest.approx(expected, abs=1e-5)
        assert killed not in replicas_of(server)
        refused = server.client.post(f"{path}/infer", json={"inputs": []})
        assert refused.status_code == 400 and "images" in refused.json()["error"]
        assert server.client.post(f"/v2/repository{path[3:]}/load").status_code == 200
        assert ask() == pytest.approx(expected, abs=1e-5)
        assert server.metric("svit_images_total", model_name="digits") == 12
        assert server.metric("svit_queue_images", model_name="digits") == 0
        assert server.stop() == 0
    assert "raylet" not in log.read_text()
