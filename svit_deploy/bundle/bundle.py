"""A bundle on disk: what its manifest says, and its files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from svit_deploy.bundle.manifest import (
    EXPORT_AGAIN,
    check_twice_told,
    read_manifest,
    sizes_of,
    task_of,
)
from svit_deploy.engines.base import Engine
from svit_deploy.errors import ExportError, InputError, SvitDeployError
from svit_deploy.io.files import hash_file, reading
from svit_deploy.io.folder import check_folder, write_folder
from svit_deploy.io.npz import read_npz
from svit_deploy.io.onnx_file import load_onnx
from svit_deploy.io.text import shown
from svit_deploy.loading.serialise import config_from_dict
from svit_deploy.methods.families import Family, family_of
from svit_deploy.model.budget import Budget, budgets_of, rows_within
from svit_deploy.model.class_names import ClassNames, printable_names
from svit_deploy.model.config import BatchRange, ModelConfig, TokenMode
from svit_deploy.model.precision import FORMATS
from svit_deploy.model.profiles import Profile
from svit_deploy.model.sizes import SizeRange
from svit_deploy.names import MANIFEST
from svit_deploy.tasks import Part, Task

MODEL, REFERENCE = "model.onnx", "reference.npz"
MAX_REFERENCE_BYTES = 2**30
GIVE_FOLDER = "give the folder that `svit-deploy export` wrote"


@dataclass(frozen=True)
class Bundle:
    """An exported model on disk, its manifest read and its files' hashes checked.

    Attributes:
        task: what the graph computes.
    """

    path: Path
    manifest: dict[str, Any]
    config: ModelConfig
    task: Task

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens it anew, and it must be the same."""
        return _open_same, (self.path, self.manifest)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def family(self) -> Family:
        return family_of(self.config)

    @property
    def mode(self) -> TokenMode:
        return TokenMode(self.manifest["tokens"]["mode"])

    @cached_property
    def sizes(self) -> SizeRange:
        """Image sizes that the graph runs."""
        return sizes_of(self.manifest, self.config, self.task)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """What each gate may keep; empty unless the mode is `budget`."""
        return budgets_of(self.config, self.manifest["tokens"]["budgets"])

    def rows(self, size: tuple[int, int]) -> np.ndarray | None:
        """Tokens `[G]` let through of an image of a size by budgets, or by a method that counts.

        Always-kept ones included; None where their number is free.
        """
        config = self.config.at(size)
        kept = self.family.method.kept(config)
        return np.array(kept) if kept else rows_within(self.budgets, config.num_tokens)

    @property
    def has_gate_outputs(self) -> bool:
        """Whether the graph ships `keep_mask` and `margin`."""
        return bool(self.manifest["tokens"]["gate_outputs"]) and self.config.num_gates > 0

    @property
    def assumed(self) -> dict[str, str]:
        """Settings that were assumed at export, and their values as typed after `--set`.

        Empty for bundles of 0.1, which do not tell.
        """
        return dict(self.manifest.get("assumed", {}))

    @cached_property
    def class_names(self) -> ClassNames:
        """Given at export, else told by a detector's checkpoint; none where nothing tells."""
        given = self.manifest.get("class_names", getattr(self.config.task, "class_names", ()))
        return ClassNames(printable_names(given))

    @property
    def stages(self) -> list[str]:
        """The graph's values that the reference knows, in order, before the task's own."""
        return self.family.backbone.stages(self.config)

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @property
    def engine_path(self) -> Path | None:
        """The TensorRT engine built from the graph, if there is one; its sidecar lies beside it."""
        name = self.manifest["engine"]
        return None if name is None else self.path / name

    @property
    def split(self) -> bool:
        """Whether the engine computes a part of the graph, and other files the rest."""
        return self.engine_path is not None and bool(self.task.engine_files)

    def with_rest(self, engine: Engine) -> Engine:
        """What runs the whole model, given its engine."""
        return self.task.with_rest(engine, self.path)

    def engine_graph(self, folder: Path) -> AbstractContextManager[Path]:
        """Lends the graph to build an engine of, for a copy of the bundle in `folder`."""
        return self.task.engine_graph(folder, MODEL)

    @property
    def together(self) -> int:
        """Images that run at once, if nobody says: as many as its task says and its graph takes."""
        return min(self.task.together, self.manifest["batch"]["max"])

    def profile(self, batch: BatchRange) -> Profile:
        """Shapes of these batch sizes, of every image size that the graph runs."""
        return self.sizes.profile(batch)

    def check_profiles(self, profiles: Sequence[Profile]) -> None:
        """Raises UsageError for an image size that the graph does not run."""
        self.sizes.check_profiles(profiles)

    @property
    def runnable(self) -> tuple[Path, ...]:
        """The files of the model that an engine may run, one built of the graph first."""
        return tuple(path for path in (self.engine_path, self.model_path) if path is not None)

    @property
    def precision(self) -> str:
        """One of `builder.PRECISIONS`; gates compute in float32 in all of them."""
        return str(self.manifest["precision"])

    @property
    def steps(self) -> Mapping[str, float]:
        """Of a quantised graph, the step of the inputs of each such layer."""
        return self.manifest["quantised"]["steps"] if self.precision in FORMATS else {}

    @property
    def model_sha256(self) -> str:
        return str(self.manifest["files"][MODEL]["sha256"])

    def load_model(self) -> onnx.ModelProto:
        return load_onnx(self.model_path)

    def load_samples(self) -> list[Part]:
        """Sample images and what the PyTorch reference computed of them at export.

        Raises:
            InputError: damaged, or arrays of other shapes or types than the manifest tells.
        """
        path = self.path / REFERENCE

        def load(names: Sequence[str]) -> dict[str, np.ndarray]:
            return read_npz(path, names, max_bytes=MAX_REFERENCE_BYTES)

        count = self.manifest["reference"]["images"]
        try:
            return self.task.restore(load, count, self.config, self.sizes, self.together)
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}", EXPORT_AGAIN) from None


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
        reason = shown(error.message if isinstance(error, SvitDeployError) else error, 300)
        raise InputError(f"{manifest_path} is damaged ({reason})", EXPORT_AGAIN) from None
    for name, entry in manifest["files"].items():
        _check_file(folder, name, entry["size_bytes"], entry["sha256"])
    bundle.load_model()  # a runtime would follow links out of the file that this refuses
    return bundle


def _open_same(path: Path, manifest: dict[str, Any]) -> Bundle:
    """Raises InputError where there is another bundle than elsewhere."""
    bundle = open_bundle(path)
    if bundle.manifest != manifest:
        raise InputError(f"{path} is not the same bundle on every machine", "copy it to all again")
    return bundle


def _make_bundle(folder: Path, manifest: dict[str, Any]) -> Bundle:
    task = task_of(manifest)
    return Bundle(folder, manifest, config_from_dict(manifest["model"], task), task)


def _check_contents(bundle: Bundle) -> None:
    """Raises ValueError where values that have the right types contradict each other."""
    manifest, config = bundle.manifest, bundle.config
    is_dense, is_budget = bundle.mode is TokenMode.DENSE, bundle.mode is TokenMode.BUDGET
    budgets, family = manifest["tokens"]["budgets"], bundle.family
    if bundle.mode not in family.modes:
        raise ValueError(f"token mode {bundle.mode.value} of a {family.name}")
    counted = family.method.counted
    if (config.num_gates and is_dense) or not (config.num_gates or is_dense or counted):
        raise ValueError(f"{config.num_gates} gates in token mode {bundle.mode.value}")
    if len(manifest["gates"]) != config.num_gates:
        raise ValueError(f"{len(manifest['gates'])} gates of {config.num_gates} are described")
    if len(budgets) != (config.num_gates if is_budget else 0) or not all(
        budget.fits(config.gated_tokens(gate)) for gate, budget in enumerate(bundle.budgets)
    ):
        raise ValueError(f"the budgets {budgets} do not fit the {config.num_gates} gates")
    check_twice_told(manifest, config)
    if bundle.sizes.opt != config.image_size:
        raise ValueError("two image sizes are named")
    if len(bundle.class_names) not in (0, config.num_classes):
        raise ValueError(f"{len(bundle.class_names)} of {config.num_classes} classes are named")
    batch = manifest["batch"]
    if not 1 <= batch["min"] <= batch["opt"] <= batch["max"]:
        raise ValueError(f"the batch range {batch} is out of order")
    if manifest["precision"] not in bundle.task.limits:
        raise ValueError(f"precision {manifest['precision']!r:.80} of --task {bundle.task.name}")
    if (manifest["precision"] in FORMATS) != ("quantised" in manifest):
        raise ValueError(f"precision {manifest['precision']}, and layers that say otherwise")
    if not all(0 < step < math.inf for step in bundle.steps.values()):
        raise ValueError("a layer's step is no positive number")
    rest = bundle.task.engine_files if bundle.split else ()
    for name in (MODEL, REFERENCE, manifest["engine"], *rest):
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


def check_output(output: Path, *, force: bool = False) -> None:
    """Raises what `write_bundle` would raise at its start; call it before a long run."""
    check_folder(output, lambda path: _refuse_to_overwrite(path, force))


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
