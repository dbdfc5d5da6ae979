"""Safe reading of weight files, .safetensors and what `torch.save` writes, told apart by content.

A checkpoint is untrusted input: no code runs out of a file unless the caller says
`allow_pickle=True`, sizes are bounded before memory is asked for, every failure is one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.io.containers import SAVE_WEIGHTS
from svit_deploy.io.files import hash_file, reading
from svit_deploy.io.hub import Origin, fetch
from svit_deploy.io.pickles import pickle_globals
from svit_deploy.io.text import some
from svit_deploy.io.torch_file import (
    DOWNLOAD_AGAIN,
    MAX_BYTES,
    Weights,
    read_torch_file,
)

TORCH_LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
PREFIXES = ("module.", "_orig_mod.", "backbone.")
# bfloat16 is the upper half of a float32, so numpy is enough to read it.
SAFETENSORS_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one file.

    Attributes:
        path: the file.
        sha256: of the whole file, 64 hexadecimal digits.
        size_bytes: of the whole file.
        container: in plain words, where in the file the weights were.
        tensors: the file's own key names, less a common prefix, to C-contiguous arrays; floating
            ones are float32 and finite.
        notes: what was changed or passed over while reading.
        training_args: the plain values among the training script's arguments, if saved.
        origin: the hub's id that it was given by, if it was.
        settings: what that hub tells of the preprocessing, as typed after `--set`.
    """

    path: Path
    sha256: str
    size_bytes: int
    container: str
    tensors: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    training_args: dict[str, Any] = field(default_factory=dict)
    origin: Origin | None = None
    settings: dict[str, str] = field(default_factory=dict)


def read_checkpoint(
    path: Path, *, allow_pickle: bool = False, weights: str | None = None
) -> Checkpoint:
    """Reads .safetensors (without PyTorch) or .pth, .pt, .bin.

    Args:
        path: the file; its content, not its name, says what it is. Or the id of one on a hub
            (`io.hub`).
        allow_pickle: run the Python code that a .pth file names if it cannot be read without.
            Only for a file you trust; the log names that code first.
        weights: the entry that holds them, where a file holds several: `model`, `model_ema`.

    Raises:
        InputError: the file is missing, damaged, hostile, or holds no weights.
        CapabilityError: it is a .pth file and PyTorch is not installed, or an id of a hub that
            cannot be asked.
    """
    fetched = fetch(Path(path))
    path, origin = fetched.path, fetched.origin
    kind = _kind(path, _read_head(path))
    if kind != "safetensors":
        zipped = kind == "zip"
        found = read_torch_file(path, zipped=zipped, allow_pickle=allow_pickle, weights=weights)
    elif weights is None:
        found = _read_safetensors(path)
    else:
        raise InputError(f"{path} holds one set of weights alone", "leave --weights out")
    tensors, prefix = strip_prefixes(found.arrays)
    _check_finite(path, tensors)
    notes = list(found.notes)
    if origin is not None:
        notes.insert(0, f"weights of {origin.id}, revision {origin.revision}")
    if prefix:
        notes.append(f"prefix {prefix!r} removed")
    for dtype in sorted(found.stored_as - {"float32"}):
        verb = "rounded" if dtype == "float64" else "widened"
        notes.append(f"{dtype} weights {verb} to float32")
    return Checkpoint(
        path=path,
        sha256=hash_file(path),
        size_bytes=path.stat().st_size,
        container=found.container,
        tensors=tensors,
        notes=tuple(notes),
        training_args=found.training_args,
        origin=origin,
        settings=fetched.settings,
    )


def strip_prefixes(tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Removes wrappers' prefixes that every key has; returns what was removed beside the rest."""
    removed = ""
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        removed += prefix
    return tensors, removed


def _read_head(path: Path) -> bytes:
    """The first bytes of a readable, regular, non-empty file."""
    fix = "give the path of a .pth or .safetensors file"
    if not path.exists():
        raise InputError(f"{path} does not exist", fix)
    if not path.is_file():
        raise InputError(f"{path} is {'a directory' if path.is_dir() else 'not a file'}", fix)
    with reading(path), path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise InputError(f"{path} is empty", DOWNLOAD_AGAIN)
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES // 2**30} GiB", SAVE_WEIGHTS)
    return head


def _kind(path: Path, head: bytes) -> str:
    """`safetensors`, or `zip` or `legacy` for the two formats of torch.save."""
    fix = "give a .pth or .safetensors file"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise InputError(
            f"{path} is a web page, not a checkpoint",
            "the download led to a page: fetch the file itself and check its size",
        )
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a git-LFS pointer, not the checkpoint", "run git lfs pull")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and head[5:8] == bytes(3)):
        return "safetensors"
    if head[0] == 0x80:
        if TORCH_LEGACY_MAGIC in head[:32]:
            return "legacy"
        with path.open("rb") as file:
            code = some(pickle_globals(file, pickles=1)) or "no code"
        raise InputError(
            f"{path} is a pickle that torch.save did not write; it was not run, it names {code}",
            SAVE_WEIGHTS,
        )
    if all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        raise InputError(f"{path} is a text file, not a checkpoint", fix)
    raise InputError(f"{path} is neither safetensors nor a file that torch.save wrote", fix)


def _read_safetensors(path: Path) -> Weights:
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(path.read_bytes())  # checks the header, the offsets and the sizes
    except SafetensorError as error:
        raise InputError(
            f"{path} is a damaged safetensors file ({error})", DOWNLOAD_AGAIN
        ) from None
    arrays, stored_as = {}, set()
    for name, entry in entries:
        stored = entry["dtype"]
        if stored not in SAFETENSORS_DTYPES:
            raise InputError(
                f"tensor {some([name])} of {path} has type {stored}",
                "store the weights as float32, float16 or bfloat16",
            )
        array = np.frombuffer(entry["data"], SAFETENSORS_DTYPES[stored])
        if stored == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
            stored_as.add("bfloat16")
        else:
            stored_as.add(array.dtype.name)
        with np.errstate(over="ignore"):  # reported with the values that are not finite
            try:
                arrays[name] = array.astype(np.float32).reshape(entry["shape"])
            except ValueError:  # more dimensions, or larger ones, than an array can have
                raise InputError(
                    f"tensor {some([name])} of {path} has an impossible shape", DOWNLOAD_AGAIN
                ) from None
    if not arrays:
        raise InputError(f"{path} holds no tensors", "give a checkpoint with weights")
    return Weights("safetensors", arrays, stored_as, [], {})


def _check_finite(path: Path, tensors: dict[str, np.ndarray]) -> None:
    bad = [k for k, v in tensors.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
    if bad:
        raise InputError(
            f"{path} holds NaN or infinite values in {some(bad)}",
            "use a checkpoint from before the training diverged",
        )
