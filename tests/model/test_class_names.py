"""Names of classes: files of them, what they are for the eye, which class a folder is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from svit_deploy.errors import InputError
from svit_deploy.model.class_names import ClassNames, read_class_names

IMAGENET = ("n01440764 tench, Tinca tinca", "n01443537 goldfish", "n02012849 crane")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "\ufefftench\n\ngold fish \ncrane\n"),
        ("names.json", '["tench", "gold fish", "crane"]'),
        ("names.json", '{"0": "tench", "1": "gold fish", "2": "crane"}'),
        ("names.json", '{"gold fish": 1, "crane": 2, "tench": 0}'),
    ],
)
def test_forms_of_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = read_class_names(tmp_path / name, 3)
    assert found.names == ("tench", "gold fish", "crane")
    assert [found.title(i) for i in (-1, 0, 2, 3)] == ["class -1", "tench", "crane", "class 3"]
    numbers = {n: found.number(n) for n in ("tench", "gold_fish", "gold fish", "Tench")}
    assert list(numbers.values()) == [0, 1, 1, None]


def test_imagenets_names_have_numbers_of_wordnet(tmp_path: Path) -> None:
    path = tmp_path / "synsets.txt"
    path.write_text("\n".join(IMAGENET))
    found = read_class_names(path, 3)
    keras = tmp_path / "imagenet_class_index.json"
    keras.write_text(json.dumps({str(i): n.split(" ", 1) for i, n in enumerate(IMAGENET)}))
    assert read_class_names(keras, 3) == found
    assert found.title(0) == "tench, Tinca tinca"
    for spelling in ("n01443537", "goldfish", "n01443537 goldfish"):
        assert found.number(spelling) == 1
    assert ClassNames(("n01440764",)).title(0) == "n01440764"


def test_a_name_of_two_classes_is_that_of_none() -> None:
    twice = ClassNames(("n02012849 crane", "n03126707 crane"))
    assert twice.number("crane") is None
    assert twice.number("n03126707") == 1
    assert not len(ClassNames()) and ClassNames().number("x") is None


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "", "names 0 classes, and the model has 3"),
        ("a.txt", "x\ny\n", "names 2 classes"),
        ("a.txt", "x\ny\nx\n", "several classes 'x'"),
        ("a.txt", b"\xff\xfe", "cannot be read"),
        ("a.json", "[1, 2", "cannot be read"),
        ("a.json", "[1, 2, 3]", "does not name every class"),
        ("a.json", '["x", "y", ""]', "several classes '', or none"),
        ("a.json", '{"1": "x", "2": "y", "3": "z"}', "does not name every class"),
        ("a.json", '{"x": 0, "y": 1, "z": 3}', "does not name every class"),
        ("a.json", '{"0": ["n1", 2], "1": "y", "2": "z"}', "does not name every class"),
        ("a.json", '"names"', "holds no names"),
        ("a.json", "[" * 100_000, "cannot be read"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: Any, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_class_names(path, 3)
    assert words in str(caught.value) and name in str(caught.value)
    assert caught.value.fix and "\n" not in str(caught.value)


def test_a_missing_or_endless_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_class_names(tmp_path / "none.txt", 3)
    monkeypatch.setattr("svit_deploy.model.class_names.MAX_BYTES", 10)
    (tmp_path / "long.txt").write_text("x\n" * 9)
    with pytest.raises(InputError, match="too large"):
        read_class_names(tmp_path / "long.txt", 9)


def test_names_are_made_printable(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(["a\x1b[31m", "b" * 300, "c"]))
    names = read_class_names(tmp_path / "a.json", 3).names
    assert names == ("a?[31m", "b" * 200, "c")
