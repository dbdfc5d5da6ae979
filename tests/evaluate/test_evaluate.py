"""Evaluations of the toy model, of a backbone, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from svit_deploy import api
from svit_deploy.bundle import Bundle
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import InputError, UsageError
from svit_deploy.images import ImageSet
from svit_deploy.tasks.scores import wilson_interval

pytestmark = pytest.mark.slow

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
HELDOUT = DIGITS / "heldout.npz"


@pytest.fixture(scope="session")
def by_hand(digits_bundle: Bundle, heldout: ImageSet) -> dict[str, Any]:
    """Logits and keep masks of all held-out digits, run at once."""
    config = digits_bundle.config
    pixels = heldout.inputs(config.preprocess, config.image_size)
    with OnnxRuntimeEngine(digits_bundle.model_path, threads=1) as engine:
        return engine.run({"images": pixels})


def test_figures_are_those_of_all_images_at_once(
    digits_bundle: Bundle, heldout: ImageSet, by_hand: dict[str, Any]
) -> None:
    evaluation = api.evaluate(digits_bundle.path, images=HELDOUT, threads=1, batch=7)
    assert evaluation.images == 360
    ranked = np.argsort(-by_hand["logits"], axis=1, kind="stable")
    hits = [int((ranked[:, :k] == heldout.labels[:, None]).any(axis=1).sum()) for k in (1, 5)]
    assert [one.value for one in evaluation.measures] == [hit / 360 for hit in hits]
    assert [(one.low, one.high) for one in evaluation.measures] == [
        wilson_interval(hit, 360) for hit in hits
    ]
    kept = by_hand["keep_mask"]
    for gate in evaluation.kept.gates:
        first = digits_bundle.config.first_gated(gate.gate)
        assert gate.block == digits_bundle.config.gate_blocks[gate.gate]
        assert gate.keep_ratio == pytest.approx(kept[:, gate.gate, first:].mean())
        assert gate.kept_tokens == pytest.approx(kept[:, gate.gate].sum(axis=1).mean())
    assert evaluation.kept.kept_tokens == pytest.approx(kept.sum(axis=2).mean())
    assert evaluation.kept.tokens == 65
    assert evaluation.told == "labels of the images' own file"
    assert not evaluation.notes and not evaluation.skipped and not evaluation.broken


def test_images_that_the_export_recorded_are_told_apart(
    digits_bundle: Bundle, heldout: ImageSet
) -> None:
    evaluation = api.evaluate(digits_bundle.path, images=heldout[4:20], threads=1)
    assert evaluation.recorded is not None
    count, judgement = evaluation.recorded
    assert count == 4  # of the first eight
    assert judgement.results["top1_accuracy"] == judgement.results["reference_top1_accuracy"] == 1
    assert api.evaluate(digits_bundle.path, images=heldout[8:20], threads=1).recorded is None


def test_class_folders_labels_and_names_agree(
    digits_bundle: Bundle, digit_pictures: Path, heldout: ImageSet, tmp_path: Path
) -> None:
    def accuracy(**settings: Any) -> tuple[float, str]:
        options = {"images": digit_pictures, "threads": 1, **settings}
        found = api.evaluate(digits_bundle.path, **options)
        assert found.images == 40
        return found.measures[0].value, found.told

    right = accuracy()
    assert right == (1.0, "folders in sorted order")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(map(str, range(10))))
    assert accuracy(class_names=names) == (1.0, "folders by the names of the classes")
    names.write_text("\n".join(map(str, [1, 0, *range(2, 10)])))
    wrong = sum(int(label) in (0, 1) for label in heldout.labels[:40])
    assert accuracy(class_names=names)[0] == pytest.approx(1 - wrong / 40)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"{i:02d}.png 7" for i in range(40)))
    sevens = float((heldout.labels[:40] == 7).mean())
    assert accuracy(labels=labels) == (pytest.approx(sevens), "labels of labels.txt")


def test_some_images_evenly_spread(digits_bundle: Bundle, digit_pictures: Path) -> None:
    found = api.evaluate(digits_bundle.path, images=digit_pictures, max_images=10, threads=1)
    assert found.images == 10
    assert found.notes == ["10 of 40 images, evenly spread"]
    assert api.evaluate(digits_bundle.path, images=digit_pictures, max_images=99).images == 40


def test_outputs_that_are_not_finite_count_as_wrong(
    digits_bundle: Bundle, heldout: ImageSet, after_run: Any
) -> None:
    def poison(feeds: Any, found: Any) -> None:
        if "logits" in found:  # else it is the graph that tries the provider
            found["logits"][0] = np.nan

    after_run(poison)
    found = api.evaluate(digits_bundle.path, images=heldout[:32], batch=16, threads=1)
    assert found.broken == 2
    assert found.measures[0].value == pytest.approx(30 / 32)


# --- the command --------------------------------------------------------------------------------


def test_every_form_of_the_result(cli: Any, digits_bundle: Bundle, tmp_path: Path) -> None:
    line = ("-q", "evaluate", digits_bundle.path, "--images", HELDOUT, "--threads", "1")
    some = (*line, "--max-images", "30")
    table = cli(*some)
    assert table.code == 0 and table.err == ""
    first, second, *_ = table.out.splitlines()
    assert first.split() == ["measure", "value", "95", "%", "interval"]
    assert second.split()[:3] == ["top-1", "accuracy", "100.00%"]
    assert "note: 30 of 360 images, evenly spread" in table.out

    markdown = cli(*some, "--format", "markdown").out.splitlines()
    assert markdown[:3] == [
        "| measure | value | 95 % interval |",
        "| --- | ---: | ---: |",
        "| top-1 accuracy | 100.00% | 88.65% to 100.00% |",
    ]

    rows = list(csv.DictReader(io.StringIO(cli(*some, "--format", "csv").out)))
    figures = {row["measure"]: row for row in rows}
    assert {row["bundle"] for row in rows} == {"dynamic"}
    assert float(figures["top-1 accuracy"]["low"]) == pytest.approx(0.8865, abs=1e-4)
    assert figures["images"]["value"] == "30" and figures["images"]["low"] == ""
    assert float(figures["keep ratio of gate 3, block 5"]["value"]) < 0.5

    record = json.loads(cli(*some, "--format", "json", "--json", tmp_path / "a.json").out)
    assert record == json.loads((tmp_path / "a.json").read_text())
    assert list(record)[:4] == ["schema_version", "tool", "created_utc", "command"]
    assert record["inputs"] == [{"name": "dynamic", "model_sha256": digits_bundle.model_sha256}]
    assert record["settings"]["batch"] == 16
    results = record["results"]
    assert results["measures"]["top1_accuracy"]["value"] == 1.0
    assert results["skipped"] == [] and results["images_per_s"] > 0
    assert len(results["gates"]) == 4 and results["overflowing_images"] is None

    alone = cli(*some, "--json", "-")
    assert json.loads(alone.out)["results"]["images"] == 30
    assert alone.err.startswith("measure")


def test_a_bad_picture_stops_or_is_skipped(
    cli: Any, digits_bundle: Bundle, digit_pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(digit_pictures, folder)
    bad = sorted(folder.rglob("*.png"))[20]
    bad.write_bytes(bad.read_bytes()[:60])
    line = ("-q", "evaluate", digits_bundle.path, "--images", folder, "--json", "-")
    stopped = cli(*line)
    assert (stopped.code, stopped.out) == (3, "")
    assert stopped.err.startswith(f"error: picture {bad} cannot be read")
    skipped = cli(*line, "--on-error", "skip")
    assert skipped.code == 0
    name = bad.relative_to(folder).as_posix()
    assert f"warning: {name} is skipped: picture {bad} cannot be read" in skipped.err
    results = json.loads(skipped.out)["results"]
    assert results["images"] == 39
    assert [one["name"] for one in results["skipped"]] == [name]
    for picture in folder.rglob("*.png"):
        picture.write_bytes(b"")
    none = cli(*line, "--on-error", "skip")
    assert none.code == 3
    assert none.err.endswith("none of the images could be read; give pictures that can be read.\n")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--annotations", "a.json"), 2, "--annotations has no meaning for dynamic"),
        (("--format", "xml"), 2, "use table, markdown, csv, json"),
        (("--batch", "0"), 2, "'--batch'"),
        (("--on-error", "ask"), 2, "use stop or skip"),
        (("--labels", "none.txt"), 3, "none.txt does not exist"),
        (("--class-names", "none.txt"), 3, "none.txt cannot be read"),
        (("--provider", "openvino"), 4, "has no OpenVINOExecutionProvider here"),
    ],
)
def test_what_cannot_work(
    cli: Any,
    digits_bundle: Bundle,
    digit_pictures: Path,
    options: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    result = cli("-q", "evaluate", digits_bundle.path, "--images", digit_pictures, *options)
    assert (result.code, result.out) == (code, "")
    assert words in result.err and result.err.count("\n") == 1


def test_images_without_labels(digits_bundle: Bundle, digit_pictures: Path) -> None:
    with pytest.raises(UsageError, match="nothing tells the classes of the images"):
        api.evaluate(digits_bundle.path, images=digit_pictures / "0")
    with pytest.raises(UsageError, match="tells which class a folder is, and the images have"):
        api.evaluate(digits_bundle.path, images=HELDOUT, class_names="names.txt")
    with pytest.raises(InputError, match="give the folder that"):
        api.evaluate(digits_bundle.model_path, images=digit_pictures)


# --- other bundles ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "note", "gates"),
    [
        ({"tokens": "dense"}, None, 0),
        ({"gate_outputs": False}, "exported without gate outputs", 0),
        ({"tokens": "budget", "budget": "0.4"}, None, 4),
        ({"tokens": "masked", "precision": "bf16"}, "bfloat16 is emulated on the CPU", 4),
        ({"batch": "1"}, None, 4),
    ],
)
def test_every_kind_of_graph(
    tmp_path: Path, options: dict[str, Any], note: str | None, gates: int
) -> None:
    arch = str(DIGITS / "arch.yaml")
    bundle = api.export(DIGITS / "svit_digits.pth", tmp_path / "out", arch=arch, **options)
    found = api.evaluate(bundle.path, images=HELDOUT, max_images=40, threads=1)
    assert found.measures[0].value > 0.9
    assert len(found.kept.gates) == gates
    assert [note in one for one in found.notes[1:]] == ([True] if note else [])
    results = found.to_dict()["results"]
    if "budget" in options:
        assert results["overflowing_images"] > 0
        assert max(gate["keep_ratio"] for gate in results["gates"]) <= 0.41
    assert found.batch == (1 if options == {"batch": "1"} else 16)
    json.dumps(results, allow_nan=False)
