"""Predictions of classes as files: forms, sources, names, and a run that is taken up again."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from svit_deploy import api
from svit_deploy.bundle import Bundle, open_bundle
from svit_deploy.cli import main
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import CapabilityError, ExportError, InputError, UsageError
from svit_deploy.images import ImageSet
from svit_deploy.images.sets import load_images

pytestmark = pytest.mark.slow

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
HELDOUT = DIGITS / "heldout.npz"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("\n".join(WORDS))
    return path


def test_classes_probabilities_and_kept_tokens(
    digits_bundle: Bundle, heldout: ImageSet, names: Path, tmp_path: Path
) -> None:
    options = {"images": HELDOUT, "max_images": 25, "class_names": names, "threads": 1}
    (file,) = api.predict(digits_bundle.path, tmp_path / "a.jsonl", top_k=3, **options)
    rows = read_lines(file)
    config = digits_bundle.config
    pixels = heldout[:25].inputs(config.preprocess, config.image_size)
    with OnnxRuntimeEngine(digits_bundle.model_path, threads=1) as engine:
        outputs = engine.run({"images": pixels})
    powers = np.exp(outputs["logits"].astype(float))
    shares = powers / powers.sum(axis=1, keepdims=True)
    assert [row["image"] for row in rows] == list(heldout.names[:25])
    for row, share, mask in zip(rows, shares, outputs["keep_mask"], strict=True):
        first = np.argsort(-share)[:3]
        assert [one["label"] for one in row["classes"]] == first.tolist()
        assert [one["name"] for one in row["classes"]] == [WORDS[i] for i in first]
        told = [one["probability"] for one in row["classes"]]
        assert told == pytest.approx(share[first], abs=1e-5)
        assert row["kept_tokens"] == mask.sum(axis=1).tolist()


def test_forms_hold_the_same(digits_bundle: Bundle, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for suffix in ("jsonl", "csv", "parquet"):
        options = {"images": HELDOUT, "max_images": 20, "top_k": 2}
        (file,) = api.predict(digits_bundle.path, tmp_path / f"a.{suffix}", **options)
        assert file == tmp_path / f"a.{suffix}"
    rows = read_lines(tmp_path / "a.jsonl")
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == rows
    table = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert list(table[0]) == [
        *("image", "label_1", "name_1", "probability_1", "label_2", "name_2", "probability_2"),
        *(f"kept_tokens_{gate}" for gate in range(4)),
    ]
    for line, row in zip(table, rows, strict=True):
        assert int(line["label_2"]) == row["classes"][1]["label"]
        assert line["name_1"] == f"class {line['label_1']}"
        assert float(line["probability_1"]) == row["classes"][0]["probability"]
        assert [int(line[f"kept_tokens_{gate}"]) for gate in range(4)] == row["kept_tokens"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.csv", "a.jsonl", "a.parquet"]


def test_parquet_in_several_parts(
    digits_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("svit_deploy.predict.tables.ROW_GROUP", 7)
    (file,) = api.predict(digits_bundle.path, tmp_path / "a.parquet", images=HELDOUT, max_images=20)
    found = parquet.ParquetFile(file)
    assert (found.num_row_groups, found.metadata.num_rows) == (3, 20)
    assert parquet.read_table(file)["image"].to_pylist()[19] == "heldout-00019"


def test_folder_list_and_standard_input(
    digits_bundle: Bundle, digit_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def labels(images: Any) -> dict[str, int]:
        output = tmp_path / "a.jsonl"
        api.predict(digits_bundle.path, output, images=images, threads=1)
        return {row["image"]: row["classes"][0]["label"] for row in read_lines(output)}

    of_folder = labels(digit_pictures)
    assert all(int(name.split("/")[0]) == label for name, label in of_folder.items())
    assert len(of_folder) == 40
    some = list(of_folder)[::7]
    (digit_pictures.parent / "some.txt").write_text(
        "\n".join(f"{digit_pictures.name}/{name}" for name in some)
    )
    of_list = labels(digit_pictures.parent / "some.txt")
    assert list(of_list) == [f"{digit_pictures.name}/{name}" for name in some]
    lines = "\n".join(str(digit_pictures / name) for name in some).encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    of_input = labels("-")
    assert list(of_input.values()) == list(of_list.values()) == [of_folder[n] for n in some]
    one = labels(digit_pictures / some[0])
    assert list(one.values()) == [of_folder[some[0]]]


def test_names_of_the_bundle(tmp_path: Path, names: Path, digits: Any) -> None:
    from svit_deploy.export.pipeline import export_model
    from svit_deploy.export.settings import ExportSettings

    bundle = export_model(digits, tmp_path / "out", ExportSettings(class_names=names))
    assert open_bundle(bundle.path).manifest["class_names"] == list(WORDS)
    assert bundle.class_names.title(7) == "seven"
    assert api.inspect(bundle.path).facts["class_names"] == list(WORDS)
    (file,) = api.predict(bundle.path, tmp_path / "a.jsonl", images=HELDOUT, max_images=3)
    assert [row["classes"][0]["name"] for row in read_lines(file)] == ["seven", "six", "three"]
    folder = tmp_path / "pictures"  # folders may be called as the bundle's classes
    for word, picture in zip(("seven", "six", "three"), load_images(HELDOUT).arrays, strict=False):
        (folder / word).mkdir(parents=True)
        from PIL import Image

        Image.fromarray(picture).save(folder / word / "1.png")
    found = api.evaluate(bundle.path, images=folder)
    assert (found.measures[0].value, found.told) == (1.0, "folders by the names of the classes")
    names.write_text("just one\n")
    with pytest.raises(InputError, match="names 1 classes, and the model has 10"):
        export_model(digits, tmp_path / "other", ExportSettings(class_names=names))
    assert not (tmp_path / "other").exists()


# --- taking up ----------------------------------------------------------------------------------


class Interrupted(OnnxRuntimeEngine):
    """Ends in its third run, and counts the images of all."""

    left = 2
    images = 0

    def run(self, feeds: Any, outputs: Any = None) -> Any:
        if not Interrupted.left:
            raise KeyboardInterrupt
        Interrupted.left -= 1
        Interrupted.images += len(feeds["images"])
        return super().run(feeds, outputs)


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> type[Interrupted]:
    monkeypatch.setattr("svit_deploy.engines.runtimes.OnnxRuntimeEngine", Interrupted)
    Interrupted.left, Interrupted.images = 2, 0
    return Interrupted


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_an_interrupted_run_goes_on(
    digits_bundle: Bundle, tmp_path: Path, interrupting: Any, capsys: Any, suffix: str
) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / f"out.{suffix}"
    line = ["--no-progress", "predict", str(digits_bundle.path), str(HELDOUT), "-o", str(output)]
    line += ["--max-images", "20", "--batch", "4"]
    assert main(line) == 130
    told = capsys.readouterr()
    assert "warning: 8 images are done: the same command goes on from there\n" in told.err
    assert [file.name for file in tmp_path.iterdir()] == [f"out.{suffix}.partial"]
    assert main(line) == 130  # nothing more is done
    interrupting.left = 99
    assert main(line) == 0
    assert "8 images are done" in capsys.readouterr().err
    assert interrupting.images == 20  # none twice
    assert [file.name for file in tmp_path.iterdir()] == [f"out.{suffix}"]
    whole = tmp_path / f"whole.{suffix}"
    interrupting.left = 99
    assert main([*line[:5], str(whole), *line[6:]]) == 0
    assert whole.read_bytes() == output.read_bytes()


def test_another_run_is_not_taken_up(
    digits_bundle: Bundle, tmp_path: Path, interrupting: Any
) -> None:
    output, options = tmp_path / "out.csv", {"images": HELDOUT, "max_images": 20, "batch": 4}
    with pytest.raises(KeyboardInterrupt):
        api.predict(digits_bundle.path, output, **options)
    interrupting.left = 99
    for changed in ({"top_k": 2}, {"max_images": 19}, {"images": DIGITS / "calibration.npz"}):
        with pytest.raises(ExportError, match="another run"):
            api.predict(digits_bundle.path, output, **options | changed)
    assert api.predict(digits_bundle.path, output, **options | {"batch": 16}) == [output]


def test_a_bad_picture_stops_and_what_is_done_remains(
    digits_bundle: Bundle, digit_pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(digit_pictures, folder)
    bad = sorted(folder.rglob("*.png"))[20]
    good = bad.read_bytes()
    bad.write_bytes(b"damaged")
    line = ["-q", "predict", str(digits_bundle.path), str(folder), "-o", str(tmp_path / "a.jsonl")]
    assert main(line) == 3
    assert f"error: picture {bad} cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "a.jsonl").exists()
    assert len(read_lines(tmp_path / "a.jsonl.partial")) == 1 + 20
    bad.write_bytes(good)
    assert main(line) == 0
    assert len(read_lines(tmp_path / "a.jsonl")) == 40
    bad.write_bytes(b"damaged")
    assert main([*line, "--on-error", "skip"]) == 0
    err = capsys.readouterr().err
    assert "is skipped: picture" in err and "warning: 1 of 40 pictures were skipped\n" in err
    assert len(read_lines(tmp_path / "a.jsonl")) == 39


def test_outputs_that_are_not_finite_are_told(
    digits_bundle: Bundle, tmp_path: Path, after_run: Any
) -> None:
    def poison(feeds: Any, found: Any) -> None:
        if "logits" in found:
            found["logits"][3] = np.nan

    after_run(poison)
    with pytest.raises(InputError, match="the logits of heldout-00003 are not finite; run svit"):
        api.predict(digits_bundle.path, tmp_path / "a.csv", images=HELDOUT, max_images=8)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "options", "words"),
    [
        ("found", {}, "of which predict writes no pictures; use --format csv or jsonl or parquet"),
        ("a.json", {}, "writes no coco"),
        ("a.csv", {"format": "pictures"}, "visualize draws its token maps"),
        ("a.csv", {"format": "xml"}, "--format 'xml' is unknown"),
        ("a.csv", {"min_score": 0.5}, "--min-score has no meaning"),
        ("a.csv", {"annotations": "x.json"}, "--annotations has no meaning for csv"),
    ],
)
def test_forms_and_options_without_a_meaning(
    digits_bundle: Bundle, tmp_path: Path, output: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        api.predict(digits_bundle.path, tmp_path / output, images=HELDOUT, **options)
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_place_of_a_file(digits_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        api.predict(digits_bundle.path, tmp_path / "a.csv", images=HELDOUT)


def test_parquet_without_its_package(
    digits_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CapabilityError, match=r"pip install 'svit-deploy\[parquet\]', or use .csv"):
        api.predict(digits_bundle.path, tmp_path / "a.parquet", images=HELDOUT)
    assert not list(tmp_path.iterdir())
