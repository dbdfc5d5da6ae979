"""Bundles that svit-deploy 0.1.0 exported: this version opens, verifies, runs and shows them.

tests/data/bundles_0.1 holds a classifier (golden `svit_cls`, token mode `dynamic`) and a detector
(golden `svit_mask_rcnn`, token mode `budget`).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from svit_deploy import api
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bundle import open_bundle
from svit_deploy.errors import InputError
from svit_deploy.loading.serialise import config_from_dict, config_to_dict
from svit_deploy.methods.stvit import FIRST_RELEASE
from svit_deploy.tasks import TASKS
from tests.small_models import small_model
from tests.told import checkpoint_of, skip_without_data

pytest.importorskip("torch")

BUNDLES = Path(__file__).parents[1] / "data" / "bundles_0.1"
CHECKPOINTS = {"classifier": "svit_cls", "detector": "svit_mask_rcnn"}


@pytest.fixture(params=CHECKPOINTS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    skip_without_data()
    return Path(shutil.copytree(BUNDLES / request.param, tmp_path / request.param))


def test_it_is_of_the_version_that_it_says(old: Path) -> None:
    told = json.loads((old / "manifest.json").read_text())
    assert told["tool"]["version"] == "0.1.0"
    assert open_bundle(old).task.name == ("detect" if old.name == "detector" else "classify")


@pytest.mark.slow
def test_it_verifies_against_its_recorded_samples(old: Path) -> None:
    report = api.verify(old, threads=1)
    assert report.passed, report.verdict
    assert report.gates


@pytest.mark.slow
def test_it_verifies_against_its_checkpoint(old: Path) -> None:
    checkpoint = checkpoint_of(CHECKPOINTS[old.name])
    report = api.verify(old, against=checkpoint, overrides={"num_heads": "6"}, threads=1)
    assert report.passed, report.verdict
    assert report.stages


def test_a_changed_weight_is_refused(old: Path) -> None:
    model = old / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 0x40
    model.write_bytes(content)
    with pytest.raises(InputError, match="not the file that was exported"):
        api.verify(old)


def test_inspect_shows_its_gates(old: Path) -> None:
    facts = api.inspect(old).facts
    assert facts["tokens"]["mode"] == ("budget" if old.name == "detector" else "dynamic")
    assert [gate["block"] for gate in facts["gates"]] == list(range(3, 12))


@pytest.mark.slow
def test_bench_runs_it(old: Path) -> None:
    quick = BenchSettings(warmup_s=0, duration_s=0, min_samples=2, threads=1)
    (result,) = api.bench([old], settings=quick).results
    assert result.kept is not None and result.kept.tokens == (24 if old.name == "detector" else 197)


def test_an_stvit_without_its_later_settings_is_what_it_was() -> None:
    config = small_model("stvit", "classify").config
    was = replace(config, settings=replace(config.settings, **FIRST_RELEASE))
    told = config_to_dict(was)
    told["settings"] = {k: v for k, v in told["settings"].items() if k not in FIRST_RELEASE}
    assert config_from_dict(told, TASKS["classify"]) == was != config
