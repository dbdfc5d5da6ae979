"""What is done of a long run is kept, whatever ends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from svit_deploy.errors import ExportError
from svit_deploy.io.journal import Journal

RUN = {"model": "a", "images": 5}


def journal_of(output: Path) -> Journal[int]:
    return Journal(output.with_name(f"{output.name}.partial"), RUN)


def interrupted(output: Path, *numbers: int) -> None:
    with pytest.raises(KeyboardInterrupt), journal_of(output) as journal:
        for number in numbers:
            journal.add(number, {"row": number})
        raise KeyboardInterrupt


def test_rows_are_taken_up_in_order(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out.csv"
    interrupted(output, 3, 0)
    assert [file.name for file in output.parent.iterdir()] == ["out.csv.partial"]
    interrupted(output, 4)
    with journal_of(output) as journal:
        assert journal.done == {0, 3, 4}
        journal.add(1, {"row": "größe"})
        assert [row["row"] for row in journal.rows()] == [0, "größe", 3, 4]
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_line_that_was_cut_short_is_dropped(tmp_path: Path, cut: int) -> None:
    output = tmp_path / "out.csv"
    interrupted(output, 0, 1)
    path = tmp_path / "out.csv.partial"
    path.write_bytes(path.read_bytes()[:-cut])
    with journal_of(output) as journal:
        assert journal.done == {0}
        journal.add(1, {"row": "again"})
        assert [row["row"] for row in journal.rows()] == [0, "again"]


@pytest.mark.parametrize("content", [b"", b'{"model": "a"', b'{"model": "b"}\n', b"{}\n[0, "])
def test_a_head_without_rows_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out.csv.partial").write_bytes(content)
    with journal_of(tmp_path / "out.csv") as journal:
        assert journal.done == set()
        journal.add(0, {})
        lines = journal.path.read_text().splitlines()
        assert lines == [json.dumps(RUN), "[0, {}]"]


def test_another_run_is_refused_and_kept(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    interrupted(output, 0)
    before = (tmp_path / "out.csv.partial").read_bytes()
    with pytest.raises(ExportError, match="of another run"):
        Journal(journal_of(output).path, RUN | {"images": 6}).__enter__()
    assert (tmp_path / "out.csv.partial").read_bytes() == before


def test_a_run_that_has_done_nothing_leaves_nothing(tmp_path: Path) -> None:
    interrupted(tmp_path / "out.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="cannot write"):
        journal_of(tmp_path / "file" / "out.csv").__enter__()


def test_rows_by_name_stay_where_they_are_asked_to(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    for name in ("b", "a"):
        with Journal[str](path, RUN, "steps", stays=True) as journal:
            journal.add(name, {"of": name})
    with Journal[str](path, RUN, "steps", stays=True) as journal:
        assert journal.done == {"a", "b"}
        assert journal["a"] == {"of": "a"}
        assert list(journal.rows()) == [{"of": "a"}, {"of": "b"}]
