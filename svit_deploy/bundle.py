"""The folder that an export writes: complete or absent, every file accounted for."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from svit_deploy.compare import budget_rows
from svit_deploy.config import BatchRange, ModelConfig, TokenMode
from svit_deploy.engines.base import Engine
from svit_deploy.errors import ExportError, InputError, SvitDeployError
from svit_deploy.export import names
from svit_deploy.files import hash_file, reading
from svit_deploy.folder import write_folder
from svit_deploy.manifest import (
    EXPORT_AGAIN,
    MANIFEST,
    SCHEMA_VERSION,
    read_manifest,
    write_manifest,
)
from svit_deploy.methods import Method, method_of
from svit_deploy.models import config_from_dict
from svit_deploy.npz import read_npz
from svit_deploy.onnx_file import load_onnx
from svit_deploy.profiles import Profile, batch_profile, check_profiles

__all__ = [
    "MANIFEST",
    "MODEL",
    "REFERENCE",
    "SCHEMA_VERSION",
    "Bundle",
    "open_bundle",
    "write_bundle",
    "write_manifest",
]

MODEL, REFERENCE = "model.onnx", "reference.npz"
PRECISIONS = ("fp32", "fp16", "bf16")
MAX_REFERENCE_BYTES = 2**30
GIVE_FOLDER = "give the folder that `svit-deploy export` wrote"


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
    def method(self) -> Method:
        return method_of(self.config)

    @property
    def mode(self) -> TokenMode:
        return TokenMode(self.manifest["tokens"]["mode"])

    @property
    def budgets(self) -> tuple[int, ...]:
        """Gated tokens each gate may keep; empty unless the mode is `budget`."""
        return tuple(self.manifest["tokens"].get("budgets") or ())

    @property
    def budget_rows(self) -> tuple[int, ...]:
        """Tokens let through per gate by a budget, or by a method that counts them.

        Always-kept ones included; empty where their number is free.
        """
        return budget_rows(self.config, self.budgets) or self.method.kept(self.config)

    def allows_budget(self, budget: float, gate: int) -> bool:
        """Whether a gate can have this budget."""
        return 1 <= budget <= self.config.gated_tokens(gate)

    @property
    def has_gate_outputs(self) -> bool:
        """Whether the graph ships `keep_mask` and `margin`."""
        return bool(self.manifest["tokens"]["gate_outputs"]) and self.config.num_gates > 0

    @property
    def stages(self) -> list[str]:
        """The graph's values that the reference knows as token rows, in order."""
        blocks = range(self.config.depth)
        return [names.EMBEDDING, *(names.block_name(block) for block in blocks)]

    @property
    def task_outputs(self) -> tuple[str, ...]:
        """Names of the outputs that the task is about."""
        return (names.LOGITS,)

    @property
    def features(self) -> list[str]:
        """The graph's values that are feature maps `[B, C, h, w]`, beside those."""
        return []

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @property
    def engine_path(self) -> Path | None:
        """The TensorRT engine built from the graph, if there is one; its sidecar lies beside it."""
        name = self.manifest["engine"]
        return None if name is None else self.path / name

    def profile(self, batch: BatchRange) -> Profile:
        """Shapes of these batch sizes, of every image size that the graph runs."""
        return batch_profile(batch, self.config.image_size)

    def check_profiles(self, profiles: Sequence[Profile]) -> None:
        """Raises UsageError for an image size that the graph does not run."""
        check_profiles(profiles, self.config.image_size)

    @property
    def is_parted(self) -> bool:
        """Whether an engine computes a part of the graph, and another file the rest."""
        return False

    def engine_graph(self, folder: Path) -> AbstractContextManager[Path]:
        """Lends the graph to build an engine of, for a copy of the bundle in `folder`."""
        return contextlib.nullcontext(folder / MODEL)

    def complete(self, engine: Engine) -> Engine:
        """What runs the whole model, given its engine."""
        return engine

    def load_engine(self, *, allow_foreign: bool = False) -> Engine:
        """The bundle's engine, for batches of any size.

        Raises:
            SvitDeployError: there is none, or it cannot run here (`TensorRTEngine`).
        """
        from svit_deploy.engines.batches import Batches
        from svit_deploy.engines.tensorrt.runner import TensorRTEngine

        if self.engine_path is None:
            raise InputError(f"{self.name} has no engine", "export it with --target tensorrt")
        engine = TensorRTEngine(self.engine_path, allow_foreign=allow_foreign)
        batch = self.manifest["batch"]
        return self.complete(Batches(engine, batch["min"], batch["max"]))

    @property
    def precision(self) -> str:
        """fp32, fp16 or bf16; gates compute in float32 in all of them."""
        return str(self.manifest["precision"])

    @property
    def model_sha256(self) -> str:
        return str(self.manifest["files"][MODEL]["sha256"])

    def load_model(self) -> onnx.ModelProto:
        return load_onnx(self.model_path)

    def load_reference(self) -> dict[str, np.ndarray]:
        """Sample inputs and the PyTorch reference's outputs for them.

        Returns:
            `images [n, 3, H, W]`, `logits [n, classes]`, `keep_mask` and `margin [n, G, S]`,
            `Method.values` where the method counts tokens, and `labels [n]` if they are known.

        Raises:
            InputError: damaged, or arrays of other shapes or types than the manifest tells.
        """
        path, config = self.path / REFERENCE, self.config
        count = self.manifest["reference"]["images"]
        gates = (config.num_gates, self.method.columns(config))
        wanted: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
            "images": (np.float32, (count, 3, *config.image_size)),
            "logits": (np.float32, (count, config.num_classes)),
            "keep_mask": (np.bool_, (count, *gates)),
            "margin": (np.float32, (count, *gates)),
            "labels": (np.int64, (count,)),
        }
        if self.method.counted:
            values = self.method.values(config) | self.method.hints(config)
            for name, (kind, shape) in values.items():
                wanted[name] = (kind, (count, *shape))
        arrays = read_npz(path, list(wanted), max_bytes=MAX_REFERENCE_BYTES)
        for name, (dtype, shape) in wanted.items():
            if name not in arrays and name != "labels":
                raise InputError(f"{path} has no array {name!r}", EXPORT_AGAIN)
            if name in arrays and (arrays[name].dtype, arrays[name].shape) != (dtype, shape):
                found = f"{arrays[name].dtype}{list(arrays[name].shape)}"
                raise InputError(
                    f"array {name!r} of {path} is {found}, not {np.dtype(dtype)}{list(shape)}",
                    EXPORT_AGAIN,
                )
        return arrays


def open_bundle(path: Path) -> Bundle:
    """Reads and checks a bundle.

    Args:
        path: its folder, or its manifest.json.

    Raises:
        InputError: not a bundle, written by a newer version, contradictory, a file is missing or
            changed, or the model is not one self-contained ONNX file.
    """
    path = Path(path)
    folder = path.parent if path.name == MANIFEST else path
    if not folder.exists():
        raise InputError(f"{path} does not exist", GIVE_FOLDER)
    manifest_path = folder / MANIFEST
    if not manifest_path.is_file():
        raise InputError(
            f"{folder} is not a bundle: it has no {MANIFEST}",
            f"{GIVE_FOLDER}, or run the export again",
        )
    manifest = read_manifest(manifest_path)
    try:
        bundle = _make_bundle(folder, manifest)
        _check_contents(bundle)
    except (ValueError, SvitDeployError) as error:
        reason = error.message if isinstance(error, SvitDeployError) else str(error)
        reason = "".join(c if c.isprintable() else "?" for c in reason[:300])
        raise InputError(f"{manifest_path} is damaged ({reason})", EXPORT_AGAIN) from None
    for name, entry in manifest["files"].items():
        _check_file(folder, name, entry["size_bytes"], entry["sha256"])
    bundle.load_model()  # a runtime would follow links out of the file that this refuses
    return bundle


def _make_bundle(folder: Path, manifest: dict[str, Any]) -> Bundle:
    """A bundle of the kind that the manifest describes."""
    config = config_from_dict(manifest["model"])
    if "task" not in manifest:
        return Bundle(folder, manifest, config)
    from svit_deploy.detection.bundle import DetectionBundle

    return DetectionBundle(folder, manifest, config)  # type: ignore[arg-type]  # it checks


def _check_contents(bundle: Bundle) -> None:
    """Raises ValueError where values that have the right types contradict each other."""
    manifest, config = bundle.manifest, bundle.config
    is_dense, is_budget = bundle.mode is TokenMode.DENSE, bundle.mode is TokenMode.BUDGET
    budgets, method = bundle.budgets, bundle.method
    if bundle.mode not in method.modes:
        raise ValueError(f"token mode {bundle.mode.value} of a {method.name}")
    if (config.num_gates and is_dense) or not (config.num_gates or is_dense or method.counted):
        raise ValueError(f"{config.num_gates} gates in token mode {bundle.mode.value}")
    if len(manifest["gates"]) != config.num_gates:
        raise ValueError(f"{len(manifest['gates'])} gates of {config.num_gates} are described")
    if len(budgets) != (config.num_gates if is_budget else 0) or not all(
        bundle.allows_budget(budget, gate) for gate, budget in enumerate(budgets)
    ):
        raise ValueError(f"the budgets {list(budgets)} do not fit the {config.num_gates} gates")
    batch = manifest["batch"]
    if not 1 <= batch["min"] <= batch["opt"] <= batch["max"]:
        raise ValueError(f"the batch range {batch} is out of order")
    if manifest["precision"] not in PRECISIONS:
        raise ValueError(f"precision {manifest['precision']!r:.80} is unknown")
    for name in (MODEL, REFERENCE, manifest["engine"]):
        if name is not None and name not in manifest["files"]:
            raise ValueError(f"{name} is not listed")


def _check_file(folder: Path, name: str, size_bytes: int, sha256: str) -> None:
    if not name or name != Path(name).name or name == ".." or not name.isprintable():
        raise InputError(
            f"{folder / MANIFEST} lists {name!r:.80}, which is no file of its folder",
            "do not use this bundle",
        )
    file = folder / name
    with reading(file):
        if file.is_symlink():
            raise InputError(f"{file} is a link", "copy the bundle with the files themselves")
        if not file.is_file():
            raise InputError(f"{file} is missing from the bundle", EXPORT_AGAIN)
        unchanged = file.stat().st_size == size_bytes and hash_file(file) == sha256
    if not unchanged:
        raise InputError(
            f"{file} is not the file that was exported (size or sha256 differs)",
            "run the export again, or copy the bundle again",
        )


def write_bundle(output: Path, *, force: bool = False) -> AbstractContextManager[Path]:
    """Gives a temporary folder that becomes `output`, whole, when the block ends well.

    Args:
        force: replace a bundle at `output`, with whatever else its folder holds.

    Raises:
        ExportError: `output` is in the way, or the disk is full or not writable.
    """
    return write_folder(output, lambda path: _refuse_to_overwrite(path, force))


def _refuse_to_overwrite(output: Path, force: bool) -> None:
    elsewhere = "give another folder with -o"
    if output.is_symlink():
        raise ExportError(f"{output} is a link", "give the folder itself with -o")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        read_manifest(output / MANIFEST)  # other programs have a manifest.json too
    except InputError:
        raise ExportError(f"{output} exists and is not a sound bundle", elsewhere) from None
    if not force:
        raise ExportError(f"{output} holds a bundle already", f"{elsewhere}, or --force")
