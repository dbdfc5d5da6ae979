"""Reading what `torch.save` wrote, without running code out of it.

The restricted unpickler of torch (`weights_only=True`) does the loading. This module bounds what
a file may declare before that, names the code a file asks for when it is refused, and finds the
weights in what was loaded. It never falls back to full unpickling by itself.

A hostile file can make an unpickler raise anything: hence the `except Exception` here.
"""

from __future__ import annotations

import argparse
import io
import logging
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from svit_deploy.errors import CapabilityError, InputError
from svit_deploy.io.containers import SAVE_WEIGHTS, find_weights
from svit_deploy.io.pickles import is_pickle_bomb, pickle_globals
from svit_deploy.io.text import some

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 2**30
DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int32", "int64", "bool")
DOWNLOAD_AGAIN = "download or copy it again and compare its size with the source's"

# What honest checkpoints name and the restricted unpickler allows; anything else is reported.
ROUTINE_GLOBAL = re.compile(
    r"torch\.(\w*Storage|storage\.(Un)?[Tt]ypedStorage|_utils\._rebuild_\w+|Size|device|b?float\d+"
    r"|nn\.parameter\.Parameter)|collections\.(OrderedDict|Counter)|_codecs\.encode"
    r"|argparse\.Namespace|yacs\.config\.CfgNode|(__builtin__|builtins)\.set"
    r"|pathlib\.(_local\.)?(Posix|Windows)Path"
)


class Weights(NamedTuple):
    """`stored_as` holds the floating types in the file; `arrays` are float32 by now."""

    container: str
    arrays: dict[str, np.ndarray]
    stored_as: set[str]
    notes: list[str]
    training_args: dict[str, Any]


def read_torch_file(
    path: Path, *, zipped: bool, allow_pickle: bool, weights: str | None = None
) -> Weights:
    """Reads a file written by torch.save, in its zip format or the one before torch 1.6.

    Args:
        weights: the entry of a dictionary that holds them; see `find_weights`.

    Raises:
        InputError: damaged, hostile, in need of code and not allowed to run it, or no weights.
        CapabilityError: PyTorch is not installed.
    """
    data_pkl = _check_zip(path) if zipped else None
    with _pickles(path, data_pkl) as (file, count):
        if is_pickle_bomb(file, count):
            raise InputError(
                f"{path} holds values within values beyond any measure",
                "do not use this file",
            )
    try:
        import torch  # noqa: F401
    except ImportError:
        raise CapabilityError(
            f"reading {path} needs PyTorch, which is not installed",
            "run pip install 'svit-deploy[torch]', or convert the weights to .safetensors",
        ) from None
    loaded = _load(path, data_pkl, allow_pickle)
    container, state, notes, training_args = find_weights(path, loaded, weights)
    arrays, stored_as = _to_numpy(path, state)
    return Weights(container, arrays, stored_as, notes, training_args)


def _check_zip(path: Path) -> bytes:
    """Refuses archives that are cut short, foreign, or declare more than they hold.

    Returns:
        The pickle of the saved object, without its tensors' data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(path, archive.infolist())
            return archive.read(next(e for e in archive.infolist() if _record(e) == "data.pkl"))
    except InputError:
        raise
    except Exception:
        raise InputError(f"{path} is a truncated or damaged zip archive", DOWNLOAD_AGAIN) from None


def _record(entry: zipfile.ZipInfo) -> str:
    """An entry's name inside the one folder that torch.save puts everything in."""
    return entry.filename.partition("/")[2]


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = {_record(entry) for entry in entries}
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise InputError(
            f"{path} is a TorchScript archive, which holds a program",
            "save its weights: torch.save(torch.jit.load(PATH).state_dict(), 'weights.pth')",
        )
    if "data.pkl" not in names:
        raise InputError(
            f"{path} is a zip archive that torch.save did not write", "give the checkpoint itself"
        )
    declared, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if declared > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputError(
            f"{path} is a compressed archive: {size} bytes that declare {declared}, "
            "while torch.save never compresses",
            "do not use this file",
        )


def _load(path: Path, data_pkl: bytes | None, allow_pickle: bool) -> Any:
    """The saved object; out of a zip file (`data_pkl` given) its tensors view the mapped file."""
    import torch

    def load(weights_only: bool) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the errors are ours
            return torch.load(
                path, map_location="cpu", weights_only=weights_only, mmap=data_pkl is not None
            )

    try:
        with torch.serialization.safe_globals([argparse.Namespace, *_stand_ins()]):
            return load(weights_only=True)
    except pickle.UnpicklingError:
        code = _blocked_globals(path, data_pkl)
        if not allow_pickle:
            reason = f"it asks to run {some(code)}" if code else "its pickle is damaged or unusual"
            raise InputError(
                f"{path} was not loaded: {reason}",
                f"{SAVE_WEIGHTS}, or, only for a file you trust, give --allow-pickle",
            ) from None
    except Exception as error:
        raise InputError(f"{path} is damaged ({_first_line(error)})", DOWNLOAD_AGAIN) from None
    log.warning("--allow-pickle: %s runs %s", path, some(code, len(code)) or "an unusual pickle")
    try:
        return load(weights_only=False)
    except Exception as error:
        raise InputError(
            f"{path} cannot be unpickled ({type(error).__name__}: {_first_line(error)})",
            SAVE_WEIGHTS,
        ) from None


def _stand_ins() -> list[Callable[..., Any]]:
    """What passes for classes that training arguments hold: pathlib's, as strings, and yacs's.

    Swin's training script saves a yacs configuration, a dictionary that brings an empty set.
    """

    def stand_in(module: str, name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def construct(*parts: Any) -> Any:
            return make(*parts)

        construct.__module__, construct.__name__, construct.__qualname__ = module, name, name
        return construct

    def join(*parts: str) -> str:
        return str(PurePosixPath(*parts))

    paths = [
        stand_in(module, name, join)
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath")
    ]
    sets = [stand_in(module, "set", list) for module in ("builtins", "__builtin__")]
    # The restricted unpickler fills no dictionary of any other class than this one.
    config = type(
        "CfgNode", (), {"__new__": lambda cls: OrderedDict(), "__module__": "yacs.config"}
    )
    return [*paths, *sets, config]


def _blocked_globals(path: Path, data_pkl: bytes | None) -> list[str]:
    with _pickles(path, data_pkl) as (file, count):
        named = pickle_globals(file, count)
    return [name for name in named if not ROUTINE_GLOBAL.fullmatch(name)]


@contextmanager
def _pickles(path: Path, data_pkl: bytes | None) -> Iterator[tuple[IO[bytes], int]]:
    """Where a file's pickles are, and how many."""
    if data_pkl is not None:
        yield io.BytesIO(data_pkl), 1
    else:  # magic number, protocol, system, the object, storage keys
        with path.open("rb") as file:
            yield file, 5


def _to_numpy(path: Path, state: dict[str, Any]) -> tuple[dict[str, np.ndarray], set[str]]:
    """Copies of the tensors, floating ones as float32, and the floating types they had."""
    import torch

    size_bytes = path.stat().st_size
    storages: set[int] = set()
    stored_bytes = copied_bytes = 0
    arrays, stored_as = {}, set()
    for name, tensor in state.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if (
            dtype not in DTYPES
            or tensor.layout is not torch.strided
            or tensor.is_nested
            or tensor.device.type != "cpu"
        ):
            raise InputError(
                f"tensor {some([name])} of {path} is {dtype}, sparse, nested or without data",
                "store the weights as dense float32, float16 or bfloat16 tensors",
            )
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            storages.add(storage.data_ptr())
            stored_bytes += storage.nbytes()
        copied_bytes += tensor.numel() * max(tensor.element_size(), 4)
        # In the format before torch 1.6 a tensor can ask for a storage that the file lacks.
        if (
            tensor.nbytes > storage.nbytes()
            or stored_bytes > size_bytes
            or copied_bytes > MAX_BYTES
        ):
            raise InputError(
                f"tensor {some([name])} of {path} declares more data than the file holds",
                "do not use this file",
            )
        if tensor.is_floating_point():
            stored_as.add(dtype)
            tensor = tensor.float()
        arrays[name] = np.array(tensor.numpy(force=True), order="C")
    return arrays, stored_as


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
