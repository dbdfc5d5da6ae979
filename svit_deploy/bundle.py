"""The folder that an export writes: complete or absent, every file accounted for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from svit_deploy.compare import first_gated
from svit_deploy.config import ModelConfig, TokenMode
from svit_deploy.errors import ExportError, InputError
from svit_deploy.models import config_from_dict
from svit_deploy.onnx_file import load_onnx

SCHEMA_VERSION = 1
MANIFEST, MODEL, REFERENCE = "manifest.json", "model.onnx", "reference.npz"


@dataclass(frozen=True)
class Bundle:
    """An exported model on disk, its manifest read and its files' hashes checked."""

    path: Path
    manifest: dict[str, Any]
    config: ModelConfig

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def mode(self) -> TokenMode:
        return TokenMode(self.manifest["tokens"]["mode"])

    @property
    def budgets(self) -> tuple[int, ...]:
        """Gated tokens each gate may keep; empty unless the mode is `budget`."""
        return tuple(self.manifest["tokens"].get("budgets") or ())

    @property
    def budget_rows(self) -> tuple[int, ...]:
        """Tokens a budget lets through per gate, always-kept ones included; empty without one."""
        return tuple(
            budget + first_gated(self.config, gate) for gate, budget in enumerate(self.budgets)
        )

    @property
    def has_gate_outputs(self) -> bool:
        """Whether the graph ships `keep_mask` and `margin`."""
        return bool(self.manifest["tokens"]["gate_outputs"]) and self.config.num_gates > 0

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @property
    def model_sha256(self) -> str:
        return str(self.manifest["files"][MODEL]["sha256"])

    def load_model(self) -> onnx.ModelProto:
        return load_onnx(self.model_path)

    def load_reference(self) -> dict[str, np.ndarray]:
        """Sample inputs and the PyTorch reference's outputs for them."""
        with np.load(self.path / REFERENCE, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def open_bundle(path: Path) -> Bundle:
    """Reads and checks a bundle.

    Raises:
        InputError: not a bundle, written by a newer version, or a file is missing or changed.
    """
    path = Path(path)
    if path.name == MANIFEST:
        path = path.parent
    if not path.exists():
        raise InputError(
            f"{path} does not exist", "give the folder that `svit-deploy export` wrote"
        )
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise InputError(
            f"{path} is not a bundle: it has no {MANIFEST}",
            "give the folder that `svit-deploy export` wrote, or run the export again",
        )
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        version, files = int(manifest["schema_version"]), dict(manifest["files"])
        if version > SCHEMA_VERSION:
            raise InputError(
                f"{path} has manifest schema {version}, this version reads {SCHEMA_VERSION}",
                "upgrade svit-deploy",
            )
        config = config_from_dict(manifest["model"])
        TokenMode(manifest["tokens"]["mode"])
        for name, entry in files.items():
            _check_file(path, name, int(entry["size_bytes"]), str(entry["sha256"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{manifest_path} is damaged ({type(error).__name__}: {error})", "run the export again"
        ) from error
    for name in (MODEL, REFERENCE):
        if name not in files:
            raise InputError(f"{manifest_path} does not list {name}", "run the export again")
    return Bundle(path, manifest, config)


def _check_file(folder: Path, name: str, size_bytes: int, sha256: str) -> None:
    if name != Path(name).name or name in ("", ".", ".."):
        raise InputError(
            f"the manifest names a file outside its folder ({name!r})", "do not use it"
        )
    file = folder / name
    if not file.is_file():
        raise InputError(f"{file} is missing from the bundle", "run the export again")
    if file.stat().st_size != size_bytes or hash_file(file) != sha256:
        raise InputError(
            f"{file} is not the file that was exported (size or sha256 differs)",
            "run the export again, or copy the bundle again",
        )


def hash_file(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def write_bundle(output: Path, *, force: bool = False) -> Iterator[Path]:
    """Gives a temporary folder that becomes `output`, whole, when the block ends well.

    The folder stands beside `output`; it is removed when the block fails, and when the process
    was killed the next export to the same place removes it.

    Raises:
        ExportError: `output` is in the way, or the disk is full or not writable.
    """
    output = Path(output).absolute()
    _refuse_to_overwrite(output, force)
    prefix = f".{output.name}.partial-"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(output.parent, prefix)
        folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=output.parent))
        try:
            yield folder
            folder.chmod(0o755)
            for file in folder.iterdir():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            replaced = None
            if output.exists():
                replaced = folder.with_name(f"{folder.name}-replaced")
                output.rename(replaced)
            folder.rename(output)
            if replaced:
                shutil.rmtree(replaced)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise ExportError(
            f"cannot write {output} ({error.strerror or error})",
            "give a folder you may write to, on a disk with room, with -o",
        ) from error


def _refuse_to_overwrite(output: Path, force: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MANIFEST).is_file():
        raise ExportError(f"{output} exists and is not a bundle", "give another folder with -o")
    if not force:
        raise ExportError(
            f"{output} holds a bundle already", "give another folder with -o, or --force"
        )


def _remove_leftovers(parent: Path, prefix: str) -> None:
    """Removes temporary folders of exports that no longer run."""
    for folder in parent.glob(f"{prefix}*"):
        pid = folder.name.removeprefix(prefix).split("-")[0]
        if not pid.isdigit() or not _is_running(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    if os.name == "nt":  # there os.kill ends the process instead of asking
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Writes manifest.json, last, with size and sha256 of every file in the folder."""
    files = {
        file.name: {"size_bytes": file.stat().st_size, "sha256": hash_file(file)}
        for file in sorted(folder.iterdir())
    }
    manifest = {"schema_version": SCHEMA_VERSION, **content, "files": files}
    text = json.dumps(manifest, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
