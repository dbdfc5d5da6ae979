"""Classes of pictures by the folders that they lie in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svit_deploy.errors import InputError
from svit_deploy.images import open_images
from svit_deploy.images.class_folders import folder_labels
from svit_deploy.model.class_names import ClassNames

WNIDS = ClassNames(("n00000003 gnu", "n00000001 ant", "n00000002 bee"))
NONE = ClassNames()


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / name)
    return folder


def labels(
    folder: Path, num_classes: int, names: ClassNames = NONE, by_name: bool = False
) -> tuple[list[int], str] | None:
    found = folder_labels(open_images(folder), num_classes, names, by_name=by_name)
    return found and (found[0].tolist(), found[1])


def test_folders_in_sorted_order(tmp_path: Path) -> None:
    folder = pictures(tmp_path, "b/1.png", "a/deep/1.png", "a/2.png", "c/1.png")
    (folder / "d").mkdir()  # a class without pictures counts, as with ImageFolder
    (folder / ".cache").mkdir()
    assert labels(folder, 4) == ([0, 0, 1, 2], "folders in sorted order")


def test_folders_by_name(tmp_path: Path) -> None:
    told = "folders by the names of the classes"
    folder = pictures(tmp_path / "wnids", "n00000001/1.png", "n00000003/1.png")
    assert labels(folder, 3, WNIDS) == ([1, 0], told)
    folder = pictures(tmp_path / "titles", "ant/1.png", "gnu/1.png", "bee/1.png")
    assert labels(folder, 3, WNIDS) == ([1, 2, 0], told)


def test_names_of_another_kind_leave_the_order(tmp_path: Path) -> None:
    folder = pictures(tmp_path, "x/1.png", "y/1.png", "z/1.png")
    assert labels(folder, 3, WNIDS) == ([0, 1, 2], "folders in sorted order")
    with pytest.raises(InputError, match=r"class folder x of .* names no class; give --class-n"):
        labels(folder, 3, WNIDS, by_name=True)


def test_no_folders(tmp_path: Path) -> None:
    folder = pictures(tmp_path, "1.png", "2.png")
    assert labels(folder, 3) is None
    assert labels(folder / "1.png", 3) is None
    (tmp_path / "list.txt").write_text("a/1.png\n")
    assert labels(tmp_path / "list.txt", 3) is None


@pytest.mark.parametrize(
    ("names", "num_classes", "words"),
    [
        (("a/1.png", "2.png"), 1, "2.png lies in no class folder as others do"),
        (("a/1.png", "b/1.png"), 3, "has 2 class folders, and the model 3 classes"),
        (("ant/1.png", "wasp/1.png"), 3, "class folder wasp of"),
        (tuple(f"{i}/1.png" for i in range(11)), 11, r"sorted order \(0, 1, 10, \.\.\.\) is not"),
    ],
)
def test_what_is_ambiguous_is_refused(
    tmp_path: Path, names: tuple[str, ...], num_classes: int, words: str
) -> None:
    folder = pictures(tmp_path, *names)
    with pytest.raises(InputError, match=words) as caught:
        labels(folder, num_classes, WNIDS)
    assert caught.value.fix


def test_numbers_whose_order_is_their_value(tmp_path: Path) -> None:
    folder = pictures(tmp_path, *(f"{i}/1.png" for i in range(10)))
    assert labels(folder, 10) == (list(range(10)), "folders in sorted order")
