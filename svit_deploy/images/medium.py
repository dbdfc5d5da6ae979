"""What images are read from: pictures, or what a task reads instead of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.images.pictures import PICTURE_SUFFIXES, check_picture, read_picture


class Medium:
    """Pictures; a medium of another kind overrides all of it.

    Attributes:
        noun: what one of them is.
        array: of an .npz, the array that holds them.
        suffixes: what the names of files end in.
        forms: what the array may hold.
        enough: so many are enough for a benchmark, where more are too large to be in memory.
    """

    noun = "picture"
    array = "images"
    suffixes: tuple[str, ...] = PICTURE_SUFFIXES
    forms = "uint8 [n, H, W, 3] RGB pictures, or preprocessed float32 [n, 3, H, W]"
    enough: int | None = None

    def is_one(self, path: Path) -> bool:
        """Whether a path by itself is one of them."""
        return path.is_file() and path.suffix.lower() in self.suffixes

    def below(self, folder: Path) -> list[str]:
        """The names of all below a folder, sorted; hidden ones are left out."""
        found = {
            file.relative_to(folder).as_posix()
            for file in folder.rglob("*")
            if file.suffix.lower() in self.suffixes and shows(file, folder) and file.is_file()
        }
        return sorted(found)

    def require(self, path: Path) -> None:
        """Raises CapabilityError for what a package is missing to read."""

    def read(self, path: Path, name: str) -> np.ndarray:
        """Reads one; raises InputError."""
        return check_picture(read_picture(path), name)

    def row_reader(self, shape: tuple[int, ...], dtype: np.dtype) -> RowReader | None:
        """What makes one of a row of an .npz, of an array like this; None if it holds none."""
        ready = dtype == np.float32 and len(shape) == 4 and shape[1] == 3
        if not ready and not (dtype == np.uint8 and len(shape) == 4 and shape[3] == 3):
            return None
        return check_picture


RowReader = Callable[[np.ndarray, str], np.ndarray]
"""An array's row and its name, to what `Medium.read` gives."""

PICTURES = Medium()


def shows(file: Path, folder: Path) -> bool:
    """Whether neither a file nor a folder between is hidden."""
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def refuse_empty(folder: Path, names: list[str], medium: Medium) -> list[str]:
    """The names; raises InputError where there are none."""
    if not names:
        raise InputError(
            f"folder {folder} holds no {medium.noun}s",
            f"give a folder with files that end in {', '.join(medium.suffixes)}",
        )
    return names
