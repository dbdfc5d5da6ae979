"""Folders of results: what may be replaced, and what files are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svit_deploy.errors import InputError
from svit_deploy.predict.folder import check_result_folder, picture_file, safe_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat/001.jpg", "cat_001"),
        ("../../etc/passwd", "etc_passwd"),
        ("C:\\x\\y.png", "C_x_y"),
        ("v1.2", "v1.2"),
        ("猫 и кот.PNG", "猫_и_кот"),
        ("e\u0301te\u0301.png", "été"),
        ("\udcff\x00\n.png", "image"),
        ("", "image"),
        ("a" * 300, "a" * 50),
    ],
)
def test_names_are_made_safe(name: str, expected: str) -> None:
    assert safe_name(name) == expected


@given(st.text())
def test_a_safe_name_is_one_short_path_component(name: str) -> None:
    safe = safe_name(name)
    assert Path(safe).name == safe
    assert len(safe.encode()) <= 200


def test_pictures_are_called_by_their_number_and_name() -> None:
    assert picture_file(7, "cat/001.jpg") == "00007_cat_001.png"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "maps").write_text("mine")
    with pytest.raises(InputError, match=r"is a file.*give a folder for the token maps"):
        check_result_folder(tmp_path / "maps", "token_usage.json", "token maps")
    check_result_folder(tmp_path / "elsewhere", "token_usage.json", "token maps")
