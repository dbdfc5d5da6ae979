"""What a file is and what it says of itself; nothing in it is executed or unpickled."""

from __future__ import annotations

from pathlib import Path

from svit_deploy.errors import InputError
from svit_deploy.inspection.report import Inspection
from svit_deploy.io.files import reading
from svit_deploy.io.hub import is_id

__all__ = ["Inspection", "inspect_path"]

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def inspect_path(path: Path) -> Inspection:
    """Describes a checkpoint, a bundle (its folder or its manifest.json) or an ONNX file.

    Files are told apart by their content.

    Raises:
        InputError: none of these, damaged or hostile.
        CapabilityError: a .pth file, and PyTorch is not installed.
    """
    # Only now: `doctor` is in this folder, and must not fail where these cannot be imported.
    from svit_deploy.bundle import MANIFEST
    from svit_deploy.inspection.bundle import inspect_bundle
    from svit_deploy.inspection.checkpoint import inspect_checkpoint
    from svit_deploy.inspection.graph import inspect_onnx

    path = Path(path)
    if is_id(path):
        return inspect_checkpoint(path)
    if path.is_dir() or path.name == MANIFEST:
        return inspect_bundle(path)
    head = _head(path)
    if _is_checkpoint(head) or path.suffix in CHECKPOINT_SUFFIXES:
        return inspect_checkpoint(path)
    if head.startswith(b"\x08") or path.suffix == ".onnx":  # field 1 of ONNX: ir_version
        return inspect_onnx(path)
    raise InputError(
        f"{path} is neither a checkpoint, nor a bundle, nor an ONNX file",
        "give a .pth or .safetensors file, the folder of an export, or an .onnx file",
    )


def _head(path: Path) -> bytes:
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}", "give a checkpoint, a bundle or an ONNX file")
    with reading(path), path.open("rb") as file:
        return file.read(64)


def _is_checkpoint(head: bytes) -> bool:
    """A zip archive, a pickle, or safetensors: an 8-byte length and a JSON object."""
    return head.startswith((b"PK\x03\x04", b"\x80")) or (
        head[8:9] == b"{" and head[5:8] == bytes(3)
    )
