"""Label files that fit; those that do not are in tests/hostile/test_images.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from svit_deploy.images.labels import read_labels

NAMES = ("cat/1.png", "cat/two words.png", "dog/3.png")


@pytest.mark.parametrize(
    "text",
    [
        "7\n0\n3\n",
        "\ufeff7\r\n0\r\n\r\n3",
        "cat/1.png 7\ncat/two words.png 0\ndog/3.png 3\n",
        "dog/3.png,3\ncat/1.png, 7\ncat/two words.png ,0\n",
        "3.png\t3\n1.png\t7\ntwo words.png\t0\n",
    ],
)
def test_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(text, encoding="utf-8")
    labels = read_labels(path, NAMES)
    assert labels.dtype == np.int64
    assert labels.tolist() == [7, 0, 3]


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_arrays(tmp_path: Path, dtype: str) -> None:
    values = np.array([7, 0, 3]).astype(dtype)
    np.save(tmp_path / "labels.npy", values)
    np.savez(tmp_path / "labels.npz", labels=values, other=np.zeros(9))
    for name in ("labels.npy", "labels.npz"):
        labels = read_labels(tmp_path / name, NAMES)
        assert labels.dtype == np.int64
        assert labels.tolist() == [7, 0, 3]


def test_a_full_path_wins_over_an_equal_file_name(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("1.png,5\nsub/1.png,6\n", encoding="utf-8")
    assert read_labels(path, ("1.png", "sub/1.png")).tolist() == [5, 6]
