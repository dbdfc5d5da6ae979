"""NumPy archives: images that are none, a bundle's samples, Python objects, lying headers."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.kinds.archives import odd_archive, zipped
from tests.fuzz.kinds.manifests import command, pick
from tests.fuzz.sound import QUICK, Sound, accept_changes
from tests.fuzz.values import odd_bytes

DTYPES = ["|u1", "<f4", ">f4", "<f8", "<f2", "<i8", "<u8", "|b1", "<c8", "|S3", "<U3", "<M8[s]",
          "|V7", "|O", "[('a', '<f4')]", "[" + "('f', '<f4')," * 300 + "]", "x", "",
          "|u0"]  # fmt: skip
SHAPES = ["()", "(0,)", "(3,)", "(3, 56, 56, 3)", "(3, 3, 56, 56)", "(10**9,)",
          "(999999999, 9, 9, 3)", "(-1, 8, 8, 3)", "(2**63, 2)", "(1, 1, 1, 3)",
          "(1, 100000, 1, 3)", "(3, 0, 56, 3)", "3", "('a',)", "(1,) * 99", "(" + "1," * 80 + ")",
          "(True, 8, 8, 3)", "(4.0, 8, 8, 3)"]  # fmt: skip


def make(rng: random.Random, folder: Path, sound: Sound) -> Sequence[Any]:
    if rng.random() < 0.4:
        family, task, mode = pick(rng)
        bundle = sound.copy(sound.bundle(family, task, mode), folder)
        with np.load(bundle / "reference.npz") as archive:
            arrays = {name: archive[name] for name in archive.files}
        (bundle / "reference.npz").write_bytes(odd_npz(rng, arrays))
        accept_changes(bundle)
        return command(rng, sound, bundle.name, family, task)
    with np.load(sound.images()) as archive:
        arrays = {name: archive[name] for name in archive.files}
    (folder / "i.npz").write_bytes(odd_npz(rng, arrays))
    bundle, checkpoint = sound.bundle(), sound.checkpoint()
    against = ["--against", checkpoint, *sound.options()]
    export = ["export", checkpoint, *sound.options(), "-o", "out"]
    commands: list[Sequence[Any]] = [
        ["visualize", bundle, "--images", "i.npz", "-o", "out"],
        ["verify", bundle, *against, "--images", "i.npz"],
        [*export, "--calibration", "i.npz"],
        [*export, "--calibrate-gates", "i.npz", "--target-keep", "0.5"],
        ["bench", bundle, "--images", "i.npz", *QUICK],
    ]
    return rng.choices(commands, [3, 2, 1, 1, 1])[0]


def odd_npz(rng: random.Random, arrays: dict[str, np.ndarray]) -> bytes:
    members = {f"{name}.npy": _saved(array) for name, array in arrays.items()}
    change = rng.random()
    name = rng.choice(list(arrays))
    if change < 0.35:
        odd = _odd_array(rng, arrays[name])
        members[f"{name}.npy"] = _saved(odd)
    elif change < 0.6:
        members[f"{name}.npy"] = _lying(rng, members[f"{name}.npy"])
    elif change < 0.7:
        del members[f"{name}.npy"]
        members[
            rng.choice(["x.npy", "images", "../secret.npy", "labels.npy", f"{name}.npy.npy"])
        ] = b"x"
    else:
        return odd_archive(rng, members)
    return zipped(members)


def _saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _odd_array(rng: random.Random, array: np.ndarray) -> np.ndarray:
    choices = [
        lambda: array.astype(
            rng.choice(["f2", "f4", "f8", "i1", "i8", "u8", "bool", "c8", "S4", "U4"])
        ),
        lambda: array.astype(object),
        lambda: np.array([Evil()], object),
        lambda: array[:0],
        lambda: array[:1],
        lambda: np.concatenate([array, array]) if array.ndim else array,
        lambda: array[None],
        lambda: array[..., None],
        lambda: array.reshape(-1),
        lambda: array.T,
        lambda: array[..., :-1] if array.ndim else array,
        lambda: array.astype("f4") * np.float32(rng.choice([np.nan, np.inf, 1e30, -1, 0])),
        lambda: np.full_like(array, rng.choice([0, 1, 255]) if array.dtype.kind == "u" else 1),
        lambda: np.array(7),
        lambda: np.zeros((2, 1, 500, 3), np.uint8),
        lambda: np.zeros((1, 3000, 3000, 3), np.uint8),
        lambda: np.array([2**64 - 1] * len(array), np.uint64) if array.ndim else array,
        lambda: array.astype(array.dtype.newbyteorder()),
        lambda: np.asfortranarray(array),
    ]
    with np.errstate(all="ignore"):
        try:
            return rng.choice(choices)()
        except (ValueError, TypeError, OverflowError):  # there is no such array
            return array[:0] if array.ndim else np.array(7)


class Evil:
    """Runs a program when it is unpickled."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch stolen",)


def _lying(rng: random.Random, member: bytes) -> bytes:
    """A header that declares another array than follows it."""
    if rng.random() < 0.3:
        return odd_bytes(rng, member[:130]) + member[130:]
    text = "{{'descr': {}, 'fortran_order': {}, 'shape': {}}}".format(
        rng.choice(DTYPES) if rng.random() < 0.2 else repr(rng.choice(DTYPES[:8])),
        rng.choice(["True", "False", "1", "None"]),
        rng.choice(SHAPES),
    )
    version, size = rng.choice(
        [(b"\x01\x00", 2), (b"\x02\x00", 4), (b"\x03\x00", 4), (b"\x09\x00", 2)]
    )
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + len(header).to_bytes(size, "little") + header + member[128:]
