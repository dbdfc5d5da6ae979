"""The verbs of the command line as Python functions.

Paths may be strings; options have the command line's names and meaning. Every failure that a
user can fix is a `SvitDeployError`.

    from svit_deploy import api

    bundle = api.export("svit_s.pth", "out", tokens="dynamic")
    assert api.verify(bundle.path, against="svit_s.pth").passed
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from svit_deploy.bench import BenchReport, BenchSettings, run_bench
from svit_deploy.bundle import MANIFEST, Bundle, open_bundle
from svit_deploy.config import BatchRange, TokenMode, parse_image_size, parse_ratios
from svit_deploy.detection.bundle import DetectionBundle
from svit_deploy.detection.coco import GroundTruth
from svit_deploy.detection.config import DEFAULT_SIZES, SizeRange, parse_task
from svit_deploy.detection.export import export_detection
from svit_deploy.detection.settings import DetectionSettings
from svit_deploy.detection.verify import (
    DetectionExpectations,
    RecomputedDetections,
    verify_detection,
)
from svit_deploy.engines.tensorrt.library import TARGETS
from svit_deploy.errors import InputError, UsageError
from svit_deploy.export.engine import profile_batches, rebuild
from svit_deploy.export.onnx import export_onnx
from svit_deploy.export.settings import ExportSettings, engine_options
from svit_deploy.images import ImageSet, load_images
from svit_deploy.inspection import Inspection, inspect_path
from svit_deploy.models.random import RandomCheckpoint, init_checkpoint
from svit_deploy.packages import require_torch
from svit_deploy.profiles import parse_batches, shape_profiles, whole_range
from svit_deploy.progress import SILENT, Progress
from svit_deploy.targets import Inputs, bench_targets, check_targets, relabel
from svit_deploy.verify import (
    Recomputed,
    Recorded,
    VerifyReport,
    VerifySettings,
    verify_bundle,
)

log = logging.getLogger(__name__)

PathLike = str | Path
MAX_IMAGES = 1000


def export(
    checkpoint: PathLike,
    output: PathLike,
    *,
    task: str = "classify",
    arch: str | None = None,
    overrides: Mapping[str, str] | None = None,
    tokens: str | None = None,
    precision: str = "fp32",
    plugins: bool = False,
    target: str = "onnx",
    batch: str | None = None,
    min_shapes: Sequence[str] = (),
    opt_shapes: Sequence[str] = (),
    max_shapes: Sequence[str] = (),
    image_size: str | None = None,
    budget: str | None = None,
    budget_percentile: float = 100.0,
    calibration: PathLike | None = None,
    calibrate_gates: PathLike | None = None,
    target_keep: str | None = None,
    max_images: int = MAX_IMAGES,
    gate_outputs: bool = True,
    opset: int = 20,
    optimization_level: int | None = None,
    workspace: str | None = None,
    timing_cache: str | None = None,
    plugin_library: str | None = None,
    allow_pickle: bool = False,
    force: bool = False,
    command: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Bundle:
    """Exports a checkpoint to a bundle; `svit-deploy export --help` explains the options.

    What was assumed or changed on the way is logged, and stands in the bundle's manifest.

    Args:
        checkpoint: or a bundle, to build an engine of its graph on this machine.
        command: the command line, kept in the manifest for the record.
    """
    detection = None if task == "classify" else parse_task(task)
    engine = engine_options(target, optimization_level, workspace, timing_cache, plugin_library)
    profiles = shape_profiles(min_shapes, opt_shapes, max_shapes)
    if profiles and batch is not None:
        raise UsageError("--batch and --min-shapes exclude each other", "leave one of them out")
    if Path(checkpoint).is_dir() or Path(checkpoint).name == MANIFEST:
        if engine is None:
            raise UsageError(
                f"{checkpoint} is a bundle already",
                f"give a checkpoint, or --target {' or '.join(TARGETS)} to build an engine of it",
            )
        graph_options = {
            "--task": detection,
            "--tokens": tokens,
            "--precision": precision != "fp32",
            "--plugins": plugins,
            "--image-size": image_size,
            "--budget": budget,
            "--calibration": calibration,
            "--calibrate-gates": calibrate_gates,
            "--arch or --set": arch or overrides,
        }
        if given := [name for name, value in graph_options.items() if value]:
            raise UsageError(
                f"{given[0]} cannot change the graph of a bundle",
                "leave it out, or give a checkpoint",
            )
        bundle = open_bundle(Path(checkpoint))
        buckets = _buckets(batch, large_images=isinstance(bundle, DetectionBundle))
        shapes = profiles or [bundle.profile(batch) for batch in buckets]
        return rebuild(
            bundle, Path(output), engine, shapes, force=force, command=command, progress=progress
        )
    buckets = _buckets(batch, large_images=detection is not None and engine is not None)
    options: dict[str, Any] = {
        "tokens": None if tokens is None else _token_mode(tokens),
        "batch": profile_batches(profiles) if profiles else whole_range(buckets),
        "profiles": profiles,
        "buckets": buckets,
        "precision": precision,
        "plugins": plugins,
        "engine": engine,
        "budget": budget,
        "budget_percentile": budget_percentile,
        "calibration": _images(calibration, None, max_images, progress),
        "calibrate_gates": _images(calibrate_gates, None, max_images, progress),
        "target_keep": () if target_keep is None else parse_ratios(target_keep, "--target-keep"),
        "gate_outputs": gate_outputs,
        "opset": opset,
    }
    if detection:
        sizes = DEFAULT_SIZES if image_size is None else SizeRange.parse(image_size)
        settings: ExportSettings = DetectionSettings(**options, task=detection, sizes=sizes)
    else:
        options["image_size"] = None if image_size is None else parse_image_size(image_size)
        settings = ExportSettings(**options)
    if settings.tokens is TokenMode.DENSE and calibrate_gates is not None:
        raise UsageError(
            "--calibrate-gates has no meaning with --tokens dense",
            "leave it out, or choose another token mode",
        )
    require_torch("export", "the reference outputs that a bundle is verified with")
    common: dict[str, Any] = {
        "arch": arch,
        "overrides": overrides,
        "allow_pickle": allow_pickle,
        "force": force,
        "command": command,
        "progress": progress,
    }
    if isinstance(settings, DetectionSettings):
        bundle = export_detection(Path(checkpoint), Path(output), settings, **common)
    else:
        bundle = export_onnx(Path(checkpoint), Path(output), settings, **common)
    for note in bundle.manifest["notes"]:
        log.info("%s", note)
    return bundle


def verify(
    bundle: PathLike,
    *,
    against: PathLike | None = None,
    images: PathLike | None = None,
    labels: PathLike | None = None,
    annotations: PathLike | None = None,
    arch: str | None = None,
    overrides: Mapping[str, str] | None = None,
    max_images: int = MAX_IMAGES,
    provider: str | None = None,
    threads: int = 0,
    repeats: int = 3,
    allow_foreign: bool = False,
    allow_pickle: bool = False,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Verifies a bundle against its checkpoint, or against what the export recorded of it.

    Args:
        against: the checkpoint; without it the bundle's reference.npz serves, and no PyTorch is
            needed.
        annotations: of the images, in COCO's format: tells the average precision of a detector.
        arch, overrides: what the checkpoint's weights cannot tell, independently of the bundle;
            by default the bundle's manifest is trusted for it.
        provider: of ONNX Runtime; by default the bundle's engine runs, if it has one, else cpu.
        allow_foreign: run an engine that no sidecar vouches for.
    """
    if against is None and (images is not None or labels is not None or arch or overrides):
        raise UsageError(
            "--images, --labels, --arch and --set need a checkpoint to compare with",
            "add --against CHECKPOINT, or leave them out to use the recorded samples",
        )
    opened = _open(bundle, "verify")
    settings = VerifySettings(
        provider=provider, threads=threads, repeats=repeats, allow_foreign=allow_foreign
    )
    whole = isinstance(opened, DetectionBundle) and opened.config.has_heads
    if annotations is not None and (images is None or not whole):
        raise UsageError(
            "--annotations needs a detector and the images that they are of",
            "add --images IMAGES, or leave it out",
        )
    if isinstance(opened, DetectionBundle):
        return _verify_detection(
            opened,
            against,
            _images(images, None, max_images, progress),
            annotations,
            settings,
            progress,
            arch=arch,
            overrides=overrides,
            allow_pickle=allow_pickle,
        )
    if against is None:
        return verify_bundle(opened, Recorded(opened), settings, progress)
    require_torch(
        "verify --against",
        "the reference forward pass",
        "leave --against out to compare with the recorded samples",
    )
    from svit_deploy.verify.checkpoint import load_reference_model

    model = load_reference_model(
        opened, Path(against), arch=arch, overrides=overrides, allow_pickle=allow_pickle
    )
    pictures = _images(images, labels, max_images, progress)
    return verify_bundle(opened, Recomputed(opened, model, pictures), settings, progress)


def _verify_detection(
    bundle: DetectionBundle,
    against: PathLike | None,
    images: ImageSet | None,
    annotations: PathLike | None,
    settings: VerifySettings,
    progress: Progress,
    **loading: Any,
) -> VerifyReport:
    """`verify` of a backbone or a detector."""
    if against is None:
        return verify_detection(bundle, DetectionExpectations(bundle), settings, progress)
    require_torch(
        "verify --against",
        "the reference forward pass",
        "leave --against out to compare with the recorded samples",
    )
    from svit_deploy.detection.verify.checkpoint import load_reference_detector

    truth = None if annotations is None else GroundTruth(Path(annotations), bundle.config)
    model = load_reference_detector(bundle, Path(against), **loading)
    expectations = RecomputedDetections(bundle, model, images)
    return verify_detection(bundle, expectations, settings, progress, truth=truth)


def bench(
    targets: Sequence[PathLike],
    *,
    images: PathLike | None = None,
    max_images: int = MAX_IMAGES,
    noise: bool = False,
    allow_noise: bool = False,
    settings: BenchSettings | None = None,
    progress: Progress = SILENT,
) -> BenchReport:
    """Measures targets against each other; the first is the baseline.

    Args:
        noise: random inputs instead of images, for models whose latency is the same for all.
        allow_noise: take noise for the others too.
    """
    settings = settings or BenchSettings()
    pictures = _images(images, None, max_images, progress)
    inputs = Inputs(pictures, noise, allow_noise, count=max(32, *settings.batches))
    prepared = [one for path in targets for one in bench_targets(Path(path), inputs, settings)]
    check_targets(prepared, settings)
    return run_bench(relabel(prepared), settings, progress)


def predict(
    bundle: PathLike,
    output: PathLike,
    *,
    images: PathLike,
    min_score: float = 0.3,
    max_images: int = MAX_IMAGES,
    provider: str | None = None,
    threads: int = 0,
    progress: Progress = SILENT,
) -> list[Path]:
    """Runs a detector on pictures; draws boxes, masks and the tokens computed.

    Args:
        provider: of ONNX Runtime; by default the bundle's engine runs, if it has one, else cpu.
    """
    from svit_deploy.detection.predict import predict_images

    opened = _open(bundle, "predict")
    if not isinstance(opened, DetectionBundle):
        raise InputError(
            f"{opened.name} is a classifier, which finds no objects",
            "use visualize for its token maps, or export with --task detect",
        )
    pictures = _images(images, None, max_images, progress)
    assert pictures is not None
    return predict_images(
        opened,
        pictures,
        Path(output),
        min_score=min_score,
        provider=provider,
        threads=threads,
        progress=progress,
    )


def inspect(path: PathLike) -> Inspection:
    """What is in a checkpoint, a bundle or an ONNX file; nothing is executed."""
    return inspect_path(Path(path))


def visualize(
    target: PathLike,
    output: PathLike,
    *,
    images: PathLike,
    max_images: int = MAX_IMAGES,
    provider: str = "cpu",
    threads: int = 0,
    progress: Progress = SILENT,
) -> list[Path]:
    """Draws which tokens the exported model keeps (the SViT paper's figures 4 and 6)."""
    from svit_deploy.tokenmaps import draw_token_maps

    bundle = _open(target, "visualize")
    if isinstance(bundle, DetectionBundle):
        raise InputError(
            f"{bundle.name} runs images of several sizes, which have no common token map",
            "use predict, which draws each image's own",
        )
    pictures = _images(images, None, max_images, progress)
    assert pictures is not None
    return draw_token_maps(bundle, pictures, Path(output), provider, threads, progress)


def init(
    arch: str,
    output: PathLike,
    *,
    keep_ratio: str | None = None,
    seed: int = 0,
    force: bool = False,
) -> RandomCheckpoint:
    """Writes a random-weight checkpoint whose gates keep the given shares of tokens."""
    ratios = () if keep_ratio is None else parse_ratios(keep_ratio, "--keep-ratio")
    return init_checkpoint(arch, Path(output), keep_ratio=ratios, seed=seed, force=force)


def _buckets(text: str | None, *, large_images: bool) -> tuple[BatchRange, ...]:
    """Ranges of batch sizes; by default 1 to 32, or 1 for engines whose images fill the memory."""
    return parse_batches(("1" if large_images else "1:1:32") if text is None else text)


def _token_mode(name: str) -> TokenMode:
    try:
        return TokenMode(name)
    except ValueError:
        known = ", ".join(mode.value for mode in TokenMode)
        raise UsageError(f"--tokens {name!r} is unknown", f"use one of {known}") from None


def _open(path: PathLike, command: str) -> Bundle:
    """Opens a bundle; a single file gets a better sentence than that it is no folder."""
    path = Path(path)
    if path.is_file() and path.name != MANIFEST:
        raise InputError(
            f"{path} is a single file, and {command} needs the bundle it came in: only that says "
            "which gates there are and what the model should compute",
            "give the folder that `svit-deploy export` wrote",
        )
    return open_bundle(path)


def _images(
    path: PathLike | None, labels: PathLike | None, limit: int, progress: Progress
) -> ImageSet | None:
    if path is None:
        if labels is not None:
            raise UsageError("--labels needs images", "add --images IMAGES")
        return None
    progress.update(f"reading {Path(path).name}", 0)
    return load_images(Path(path), labels=None if labels is None else Path(labels), limit=limit)
