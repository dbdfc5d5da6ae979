"""Reads class labels for a set of images: in file order, or matched by picture name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.io.npz import read_npy, read_npz, reason


def read_labels(path: Path, names: Sequence[str]) -> np.ndarray:
    """Reads one class number per image, int64 `[n]`, in the order of `names`.

    The file is an .npz with `labels`, an .npy, or UTF-8 text with one integer per line in the
    order of `names`, or `name label` / `name,label` lines in any order, where the name is the
    picture's path below its folder or, where that is unique, its file name.

    Raises:
        InputError: missing or damaged file, another count than `len(names)`, not integers,
            negative, a name given twice or unknown.
    """
    if not path.is_file():
        raise InputError(f"labels file {path} does not exist", "check the path given to --labels")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return check_labels(read_npy(path), len(names), str(path))
    if suffix == ".npz":
        arrays = read_npz(path, ["labels"])
        if "labels" not in arrays:
            raise InputError(f"{path} has no array `labels`", "save it with that name")
        return check_labels(arrays["labels"], len(names), str(path))
    return check_labels(_read_text(path, names), len(names), str(path))


def check_labels(labels: np.ndarray, count: int, where: str) -> np.ndarray:
    """Returns `labels` as int64 `[count]`.

    Raises:
        InputError: another shape or count, not integers, or negative.
    """
    if labels.shape != (count,):
        found = f"{len(labels)} labels" if labels.ndim == 1 else f"labels of shape {labels.shape}"
        raise InputError(f"{where} holds {found} for {count} images", "give one label per image")
    if labels.dtype.kind not in "iu":
        raise InputError(
            f"the labels in {where} are not integers ({labels.dtype})",
            "give class numbers from 0 as whole numbers",
        )
    labels = labels.astype(np.int64)
    if labels.min() < 0:
        raise InputError(
            f"{where} holds the negative label {labels.min()}", "give class numbers from 0"
        )
    return labels


def _read_text(path: Path, names: Sequence[str]) -> np.ndarray:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"labels file {path} cannot be read ({reason(error)})",
            "give a UTF-8 text file, an .npy or an .npz",
        ) from error
    rows = [(number, _split(line)) for number, line in enumerate(lines, 1) if line.strip()]
    values = [_parse(text, f"{path} line {number}") for number, (_, text) in rows]
    keys = [key for _, (key, _) in rows]
    if not any(keys):
        return np.array(values)
    return np.array(_match(keys, values, names, path))


def _split(line: str) -> tuple[str, str]:
    """`name,label` or `name label` into its two parts; the name of a lone label is empty."""
    *_, name, label = "", *line.rsplit("," if "," in line else None, maxsplit=1)
    return name.strip(), label.strip()


def _parse(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(
            f"the label {text[:40]!r} in {where} is not an integer",
            "write one class number per line, or `name,label` lines",
        ) from None


def _match(
    keys: Sequence[str], values: Sequence[int], names: Sequence[str], path: Path
) -> list[int]:
    """Orders `values`, given for `keys`, by `names`."""
    file_names = [PurePosixPath(name).name for name in names]
    uses = Counter(file_names)
    index = {name: i for i, name in enumerate(file_names) if uses[name] == 1}
    index |= {name: i for i, name in enumerate(names)}
    labels: dict[int, int] = {}
    for key, value in zip(keys, values, strict=True):
        if key not in index:
            raise InputError(
                f"{path} labels {key!r}, the name of no picture or of several",
                "write each picture's path below the image folder, for example cat/001.png",
            )
        if index[key] in labels:
            raise InputError(f"{path} labels {key!r} twice", "remove one of the two lines")
        labels[index[key]] = value
    unlabelled = [name for i, name in enumerate(names) if i not in labels]
    if unlabelled:
        raise InputError(
            f"{path} holds {len(labels)} labels for {len(names)} images, none for {unlabelled[0]}",
            "give one label per image",
        )
    return [labels[i] for i in range(len(names))]
