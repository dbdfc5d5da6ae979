"""Random-weight checkpoints whose gates keep a wanted share of tokens, for planning latency."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svit_deploy.errors import ExportError, UsageError
from svit_deploy.images import synthetic_images
from svit_deploy.images.prepared import Prepared
from svit_deploy.io.files import check_writable, write_file
from svit_deploy.io.onnx_file import MAX_BYTES
from svit_deploy.loading.arch import find_arch
from svit_deploy.loading.layout import expected_shapes, to_official
from svit_deploy.loading.load import build_model
from svit_deploy.machine.packages import require_torch
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import MOST, spread_over_gates
from svit_deploy.model.model import Model
from svit_deploy.plan import RUN, Plan
from svit_deploy.tasks import Task, task_named


@dataclass(frozen=True)
class RandomCheckpoint:
    """A checkpoint that was written, and the keep ratios its gates have on synthetic images."""

    path: Path
    arch: str
    keep_ratios: tuple[float, ...]


def init_checkpoint(
    arch: str,
    output: Path,
    *,
    keep_ratio: Sequence[float] = (),
    seed: int = 0,
    force: bool = False,
    plan: Plan = RUN,
) -> RandomCheckpoint:
    """Writes a random-weight checkpoint in the official layout.

    The gates' biases are set so that, on synthetic images, each gate keeps the wanted share of
    its tokens; which ones depends on the image.

    Args:
        arch: preset name or architecture file that names the sizes.
        output: `.pth` (PyTorch's format, the weights under `model`) or `.safetensors`.
        keep_ratio: per gate, or a number of values that divides the number of gates; the
            architecture's targets by default.

    Raises:
        UsageError: a ratio outside (0, 1], a wrong number of them, an architecture file without
            sizes or with impossible ones, or an output that cannot be written.
        ExportError: the file exists, or the disk is full.
        CapabilityError: gates, or a .pth file, and PyTorch is not installed.
    """
    name, settings = find_arch(arch)
    if output.suffix not in (".pth", ".pt", ".safetensors"):
        raise UsageError(f"-o {output} has no known suffix", "name it *.pth or *.safetensors")
    plan.needs(_check_place, output, force)
    family = FAMILIES[settings.family]
    task = task_named(family.backbone.tasks[-1])  # that of the whole model
    dims, gated = _dims(name, settings, task), family.method.trained_gates
    if keep_ratio and not gated:
        raise UsageError(f"{name} has no gates to calibrate", "leave --keep-ratio out")
    targets = keep_ratio or settings.target_keep
    if gated:
        if not targets:
            raise UsageError(
                f"{name} does not say which share its gates keep", "add --keep-ratio 0.7,0.49,0.343"
            )
        spread_over_gates(tuple(targets), dims.num_gates, "--keep-ratio")
        otherwise = "init a preset without gates"
        plan.needs(require_torch, "setting gates", "the reference forward pass", otherwise)
    elif output.suffix != ".safetensors":
        otherwise = "name the file *.safetensors"
        plan.needs(require_torch, f"writing {output.suffix}", "its file format", otherwise)
    count = sum(math.prod(shape) for shape in expected_shapes(dims, task).values())
    plan.tell("model", f"{name} ({family.name}), {count} random weights")
    if targets:
        plan.tell("gates", f"set to keep {', '.join(map(str, targets))} of synthetic images")
    plan.tell("size", f"about {4 * count / 2**20:.1f} MiB")
    plan.writes(output)
    plan.begin()
    overrides = {"target_keep": ",".join(map(str, targets))} if targets else {}
    weights = random_weights(dims, task, np.random.default_rng(seed))
    family.method.random(weights, settings.settings)
    official = to_official(weights, dims.family, task)
    model = build_model(official, task=task.name, arch=arch, overrides=overrides)
    ratios = _calibrate(model, task) if gated else ()
    _save(to_official(model.weights, dims.family, task), output)
    return RandomCheckpoint(output, name, ratios)


def _check_place(output: Path, force: bool) -> None:
    """Raises ExportError or UsageError for a file that is in the way or cannot be written."""
    if output.exists() and not force:
        raise ExportError(f"{output} exists", "give another file with -o, or --force")
    check_writable(output, "-o")


def _dims(name: str, arch: Arch, task: Task) -> Any:
    family = FAMILIES[arch.family]
    needed = ["embed_dim", "depth", "patch_size", "image_size"]
    missing = [field for field in needed if getattr(arch, field) is None]
    required = (*family.backbone.required, *family.method.required)
    missing += [setting for setting in required if setting not in arch.settings]
    if task.many_sizes:  # and the patches of a ViT-Adapter are of 16 pixels
        missing = [field for field in missing if field not in ("image_size", "patch_size")]
    if missing:
        raise UsageError(
            f"{name} does not say {', '.join(missing)}", "add these fields to the file"
        )
    dims = task.heads_from_arch(family.dims_from_arch(arch), arch)
    if dims.depth > MOST["depth"]:
        raise UsageError(f"{name} has {dims.depth} blocks", f"give at most {MOST['depth']}")
    shapes = expected_shapes(dims, task)
    size_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
    if size_bytes > MAX_BYTES:
        raise UsageError(
            f"by {name} the weights take {size_bytes / 2**30:.0f} GiB, more than an ONNX file may "
            "have",
            "give smaller sizes",
        )
    for weight, shape in shapes.items():
        if min(shape) < 1:
            raise UsageError(
                f"by {name}, {weight} has the shape {list(shape)}", "correct the sizes in the file"
            )
    return dims


def random_weights(dims: Any, task: Task, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Canonical weights of unit gain: activations, and so margins, neither vanish nor explode.

    What a block adds is scaled down with the depth, so that tokens stay themselves and a gate
    tells tokens apart, not only images. Patch filters see no brightness, as most trained ones
    do not, for the same reason. Biases are small but not zero: an optimiser would drop zeros.
    """
    own = FAMILIES[dims.family].backbone.random
    weights = {}
    for name, shape in expected_shapes(dims, task).items():
        fan_in = int(np.prod(shape[1:]))
        array = own(name, shape, rng)
        if array is not None:
            pass
        elif "norm" in name or ".bn" in name:
            array = np.full(shape, float(name.endswith(("weight", "running_var"))))
        elif name.endswith("bias"):
            array = 0.02 * rng.standard_normal(shape)
        elif name in ("cls_token", "dist_token", "pos_embed", "semantic_tokens"):
            array = 0.2 * rng.standard_normal(shape)
        else:
            array = rng.standard_normal(shape) / np.sqrt(fan_in)
        if "blocks." in name and name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            array = array / np.sqrt(2 * dims.depth)
        if name.startswith("patch_embed.") and array.ndim > 2:
            places = tuple(range(2, array.ndim))
            array = 3 * (array - array.mean(axis=places, keepdims=True))
        weights[name] = array.astype(np.float32)
    return weights


def _calibrate(model: Model, task: Task) -> tuple[float, ...]:
    """Moves the keep bias of each gate so that threshold 0 keeps the target share."""
    from svit_deploy.loading.calibrate import calibrate_gates
    from svit_deploy.tasks.reference import Reference

    config, size = model.config, task.random_size or model.config.image_size
    pictures = synthetic_images(task.random_images, size).inputs(config.preprocess, size)
    images = [Prepared.whole(pixels) for pixels in pictures]
    found = calibrate_gates(Reference(model, task), images, config.target_keep)
    for gate, threshold in enumerate(found.thresholds):
        model.weights[f"gates.{gate}.mlp.fc2.bias"][0] -= np.float32(threshold)
    return found.measured_keep


def _save(tensors: dict[str, np.ndarray], output: Path) -> None:
    """Writes the file whole or not at all."""
    # Made in memory: at a full disk the libraries' own errors would not say so.
    if output.suffix == ".safetensors":
        from safetensors.numpy import save

        content = save(tensors)
    else:
        import torch

        buffer = io.BytesIO()
        torch.save({"model": {k: torch.from_numpy(v) for k, v in tensors.items()}}, buffer)
        content = buffer.getvalue()
    with write_file(output, "-o") as part:
        part.write_bytes(content)
