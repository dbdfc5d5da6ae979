"""What the files of a bundle tell: of the model, of each other, and not of where they were made."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.bundle.bundle import MODEL, REFERENCE
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.record import _without_folders
from svit_deploy.export.settings import ExportSettings
from svit_deploy.io.onnx_file import read_metadata
from svit_deploy.model.counts import keep_ratios


@pytest.mark.parametrize(
    ("argument", "recorded"),
    [
        ("/home/me/svit_s.pth", "svit_s.pth"),
        ("--arch=/home/me/a.yaml", "--arch=a.yaml"),
        ("num_heads=6", "num_heads=6"),
        ("--tokens", "--tokens"),
    ],
)
def test_arguments_lose_their_folders_and_keep_their_option(argument, recorded):
    assert _without_folders(argument) == recorded


@pytest.mark.parametrize(("name", "mode"), [("svit_cls", "budget"), ("deit", "dense")])
def test_metadata(golden, export, name, mode):
    found, bundle = golden(name), export(name, mode)
    metadata = read_metadata(bundle.load_model())
    assert metadata["mode"] == mode
    assert metadata["method"] == found.model.config.family
    assert metadata["checkpoint_sha256"] == found.model.checkpoint.sha256
    assert json.loads(metadata["preprocess"])["mean"] == [0.485, 0.456, 0.406]
    gates = json.loads(metadata["gates"])
    assert gates == bundle.manifest["gates"]
    assert [gate["block"] for gate in gates] == list(found.model.config.gate_blocks)
    if gates:
        assert "tie is pruned" in metadata["gating"]
        assert gates[8]["sees_class_token"]
        measured = keep_ratios(found.keep_mask, found.model.config)
        np.testing.assert_allclose([g["measured_keep"] for g in gates], measured, atol=1e-6)


def test_no_file_tells_where_it_was_made(golden, tmp_path):
    found, output = golden("svit_cls"), tmp_path / "home" / "user" / "bundle"
    command = ("/opt/bin/svit-deploy", "export", str(found.model.checkpoint.path), f"-o={output}")
    model = replace(found.model, arch=str(tmp_path / "arch.yaml"))
    settings = ExportSettings(calibration=found.images)
    bundle = export_model(model, output, settings, command=command)
    places = [tmp_path, output, Path.cwd(), Path.home(), found.model.checkpoint.path.parent]
    for file in bundle.path.iterdir():
        content = file.read_bytes()
        for place in places:
            assert str(place).encode() not in content, (file.name, place)
    for text in read_metadata(bundle.load_model()).values():
        assert not re.search(r"(?:^|[\s\"'=])(?:/|[A-Z]:\\)\w", text), text
    assert bundle.manifest["arch"] == "arch.yaml"


def test_the_manifest_accounts_for_every_file(export):
    bundle = export("svit_cls", "budget")
    assert set(bundle.manifest["files"]) == {MODEL, REFERENCE}
    for name, entry in bundle.manifest["files"].items():
        content = (bundle.path / name).read_bytes()
        assert entry["size_bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
