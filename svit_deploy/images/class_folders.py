"""Labels of pictures that lie in one folder per class, as ImageNet's do."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.images.source import ImageSource
from svit_deploy.model.class_names import ClassNames

NAME_THEM = "give --class-names FILE with the folders' names in the order of the classes"


def folder_labels(
    source: ImageSource, num_classes: int, names: ClassNames, *, by_name: bool = False
) -> tuple[np.ndarray, str] | None:
    """The class of each picture, int64 `[n]`, by the folder that it lies in, and how it is known.

    Folders are classes by their names, if these are names of classes; else by their places among
    the sorted folders, as torchvision's ImageFolder has it. None where pictures lie in no folders.

    Args:
        by_name: refuse folders that no class is named after.

    Raises:
        InputError: pictures beside the folders, or folders that do not tell their class.
    """
    if source.folder is None:
        return None
    parts = [PurePosixPath(name).parts for name in source.names]
    if not any(len(part) > 1 for part in parts):
        return None
    if alone := next((part[0] for part in parts if len(part) == 1), None):
        raise InputError(
            f"picture {alone} lies in no class folder as others do", "move it, or give --labels"
        )
    folders = sorted(
        entry.name
        for entry in source.folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )
    numbers = {name: number for name in folders if (number := names.number(name)) is not None}
    told = "folders by the names of the classes"
    if len(numbers) < len(folders):
        if by_name or numbers:
            other = next(name for name in folders if name not in numbers)
            raise InputError(f"class folder {other} of {source.folder} names no class", NAME_THEM)
        _check_order(source.folder, folders, num_classes)
        numbers = {name: number for number, name in enumerate(folders)}
        told = "folders in sorted order"
    return np.array([numbers[part[0]] for part in parts], np.int64), told


def _check_order(folder: Path, folders: list[str], num_classes: int) -> None:
    """Refuses folders whose sorted order may not be that of the classes."""
    if len(folders) != num_classes:
        raise InputError(
            f"{folder} has {len(folders)} class folders, and the model {num_classes} classes",
            NAME_THEM,
        )
    if all(name.isdecimal() for name in folders) and folders != sorted(folders, key=int):
        raise InputError(
            f"the class folders of {folder} are numbers, whose sorted order "
            f"({', '.join(folders[:3])}, ...) is not that of their values",
            NAME_THEM,
        )
