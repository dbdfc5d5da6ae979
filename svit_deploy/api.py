"""The verbs of the command line as Python functions.

Paths may be strings. Options are keywords: the fields of a command's settings, as values or as
text that is read as on the command line. They win over `settings`, in which they may be given
together. Every failure that a user can fix is a `SvitDeployError`. For example::

    from svit_deploy import api

    bundle = api.export("svit_s.pth", "out", tokens="dynamic")
    assert api.verify(bundle.path, against="svit_s.pth").passed

What runs long or writes takes a `plan`. Given a `DryRun` it ends before its work begins, and the
plan tells what would be done, which files would be written and what is missing::

    with api.DryRun() as plan:
        api.export("svit_s.pth", "out", target="tensorrt", plan=plan)
    print(plan.exit_code, plan.lines, plan.files, plan.missing)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svit_deploy.bench.plots import check_plot, plot_sweep
from svit_deploy.bench.report import BenchReport
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bench.targets import bench_paths
from svit_deploy.bundle import MANIFEST, Bundle, open_bundle
from svit_deploy.debug.readme import Contents
from svit_deploy.debug.run import debug_bundle
from svit_deploy.debug.settings import DebugSettings
from svit_deploy.errors import InputError
from svit_deploy.evaluate.report import Evaluation
from svit_deploy.evaluate.run import evaluate_bundle
from svit_deploy.evaluate.settings import EvaluateSettings
from svit_deploy.export.pipeline import export_source
from svit_deploy.export.settings import ExportSettings
from svit_deploy.inference.engine import require_run, tell_run
from svit_deploy.inference.places import needs_place
from svit_deploy.inspection import Inspection, inspect_path
from svit_deploy.inspection.catalogue import Catalogue, make_catalogue
from svit_deploy.loading.random import RandomCheckpoint, init_checkpoint
from svit_deploy.model.config import parse_ratios
from svit_deploy.options import read_options
from svit_deploy.package.run import package_bundle
from svit_deploy.package.settings import PackageSettings
from svit_deploy.plan import RUN, DryRun, Plan
from svit_deploy.predict.predictions import predict_images
from svit_deploy.predict.settings import PredictSettings, VisualizeSettings
from svit_deploy.predict.token_maps import draw_token_maps
from svit_deploy.progress import SILENT, Progress
from svit_deploy.serve.settings import ServeSettings
from svit_deploy.serve.start import (
    choose_batch,
    import_kserve,
    named_bundles,
    require_kserve,
    tell_addresses,
)
from svit_deploy.tune.report import TuneReport
from svit_deploy.tune.run import tune_checkpoint
from svit_deploy.tune.settings import TuneSettings
from svit_deploy.verify.report import VerifyReport
from svit_deploy.verify.run import verify_bundle
from svit_deploy.verify.settings import VerifySettings

__all__ = [
    "DryRun",
    "bench",
    "catalogue",
    "debug",
    "evaluate",
    "export",
    "init",
    "inspect",
    "package",
    "predict",
    "serve",
    "tune",
    "verify",
    "visualize",
]  # fmt: skip

PathLike = str | Path


def export(
    source: PathLike,
    output: PathLike,
    settings: ExportSettings | None = None,
    *,
    force: bool = False,
    command: Sequence[str] = (),
    progress: Progress = SILENT,
    plan: Plan = RUN,
    **options: Any,
) -> Bundle:
    """Exports a checkpoint to a bundle.

    What was assumed or changed on the way is logged, and stands in the bundle's manifest.

    Args:
        source: a checkpoint; or a bundle, to build an engine of its graph on this machine.
        force: replace a bundle that is there.
        command: the command line, kept in the manifest for the record.
        options: fields of `ExportSettings`; `svit-deploy export --help` explains them.
    """
    chosen = read_options(ExportSettings, settings, options)
    return export_source(
        Path(source),
        Path(output),
        chosen,
        force=force,
        command=command,
        progress=progress,
        plan=plan,
    )


def verify(
    bundle: PathLike,
    settings: VerifySettings | None = None,
    *,
    progress: Progress = SILENT,
    plan: Plan = RUN,
    **options: Any,
) -> VerifyReport:
    """Verifies a bundle against its checkpoint, or against what the export recorded of it.

    Args:
        options: fields of `VerifySettings`; `svit-deploy verify --help` explains them.
    """
    chosen = read_options(VerifySettings, settings, options)
    return verify_bundle(_open(bundle, "verify"), chosen, progress, plan)


def debug(
    bundle: PathLike,
    output: PathLike,
    settings: DebugSettings | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
    plan: Plan = RUN,
    **options: Any,
) -> Contents:
    """Writes a folder with which NVIDIA's Polygraphy finds the node of a graph that goes wrong.

    Args:
        force: replace such a folder that is there.
        options: fields of `DebugSettings`; `svit-deploy debug --help` explains them.
    """
    chosen = read_options(DebugSettings, settings, options)
    opened = _open(bundle, "debug")
    return debug_bundle(opened, Path(output), chosen, force=force, progress=progress, plan=plan)


def bench(
    targets: Sequence[PathLike],
    settings: BenchSettings | None = None,
    *,
    progress: Progress = SILENT,
    plan: Plan = RUN,
    **options: Any,
) -> BenchReport:
    """Measures bundles, ONNX files or engines against each other; the first is the baseline.

    Args:
        options: fields of `BenchSettings`; `svit-deploy bench --help` explains them.
    """
    chosen = read_options(BenchSettings, settings, options)
    if chosen.sweep_tokens is not None:
        plan.needs(check_plot, chosen.sweep_tokens)
        plan.writes(chosen.sweep_tokens)
    report = bench_paths([Path(target) for target in targets], chosen, progress, plan)
    if chosen.sweep_tokens is not None:
        plot_sweep(report, chosen.sweep_tokens)
    return report


def tune(
    source: PathLike,
    output: PathLike,
    settings: TuneSettings | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
    plan: Plan = RUN,
    **options: Any,
) -> TuneReport:
    """Exports, verifies and measures what makes sense on this machine, and keeps the best.

    Args:
        source: a checkpoint.
        force: replace a bundle at `output`, and begin anew beside what another run left there.
        options: fields of `TuneSettings`; `svit-deploy tune --help` explains them.
    """
    chosen = read_options(TuneSettings, settings, options)
    return tune_checkpoint(
        Path(source), Path(output), chosen, force=force, progress=progress, plan=plan
    )


def evaluate(
    bundle: PathLike,
    settings: EvaluateSettings | None = None,
    *,
    progress: Progress = SILENT,
    plan: Plan = RUN,
    **options: Any,
) -> Evaluation:
    """Says how good a bundle is on labelled images, and how many tokens it computes.

    Args:
        options: fields of `EvaluateSettings`; `svit-deploy evaluate --help` explains them.
    """
    chosen = read_options(EvaluateSettings, settings, options)
    return evaluate_bundle(_open(bundle, "evaluate"), chosen, progress, plan)


def predict(
    bundle: PathLike,
    output: PathLike,
    settings: PredictSettings | None = None,
    *,
    progress: Progress = SILENT,
    plan: Plan = RUN,
    **options: Any,
) -> list[Path]:
    """Runs a bundle on images; writes its classes or detections, or draws them.

    Args:
        output: a file or a folder; its name tells the form, if `format` does not.
        options: fields of `PredictSettings`; `svit-deploy predict --help` explains them.

    Returns:
        The files written.
    """
    chosen = read_options(PredictSettings, settings, options)
    return predict_images(_open(bundle, "predict"), Path(output), chosen, progress, plan)


def visualize(
    bundle: PathLike,
    output: PathLike,
    settings: VisualizeSettings | None = None,
    *,
    progress: Progress = SILENT,
    plan: Plan = RUN,
    **options: Any,
) -> list[Path]:
    """Draws which tokens the exported model keeps (the SViT paper's figures 4 and 6).

    Args:
        options: fields of `VisualizeSettings`; `svit-deploy visualize --help` explains them.

    Returns:
        The files written.
    """
    chosen = read_options(VisualizeSettings, settings, options)
    return draw_token_maps(_open(bundle, "visualize"), Path(output), chosen, progress, plan)


def serve(
    bundles: Sequence[PathLike],
    settings: ServeSettings | None = None,
    *,
    plan: Plan = RUN,
    **options: Any,
) -> None:
    """Serves bundles over REST and gRPC until the process gets SIGTERM or SIGINT.

    Args:
        bundles: folders, or NAME=FOLDER; the name of the model is that of the folder otherwise.
        options: fields of `ServeSettings`; `svit-deploy serve --help` explains them.
    """
    chosen = read_options(ServeSettings, settings, options)
    plan.needs(require_kserve)
    needs_place(plan, chosen.ray, "serve", "ray.serve")
    paths = named_bundles(bundles)
    for name, path in paths.items():
        bundle = _open(path, "serve")
        plan.needs(require_run, bundle, chosen)
        plan.needs(choose_batch, bundle, chosen)
        plan.tell("model", f"{name}, --task {bundle.task.name}")
        tell_run(plan, bundle, chosen)
    tell_addresses(plan, chosen)
    plan.begin()
    import_kserve()
    from svit_deploy.serve.server import serve_bundles

    serve_bundles(paths, chosen)


def package(
    bundle: PathLike,
    output: PathLike,
    settings: PackageSettings | None = None,
    *,
    force: bool = False,
    plan: Plan = RUN,
    **options: Any,
) -> Path:
    """Writes a folder to deploy a bundle with: for Triton, KServe or a container.

    Args:
        force: replace a package that is there.
        options: fields of `PackageSettings`; `svit-deploy package --help` explains them.
    """
    chosen = read_options(PackageSettings, settings, options)
    return package_bundle(_open(bundle, "package"), Path(output), chosen, force=force, plan=plan)


def inspect(path: PathLike) -> Inspection:
    """What is in a checkpoint, a bundle or an ONNX file; nothing is executed."""
    return inspect_path(Path(path))


def catalogue(kind: str | None = None) -> Catalogue:
    """Presets, methods, backbones and tasks, or those of one kind, and what each must be told."""
    return make_catalogue(kind)


def init(
    arch: str,
    output: PathLike,
    *,
    keep_ratio: str | None = None,
    seed: int = 0,
    force: bool = False,
    plan: Plan = RUN,
) -> RandomCheckpoint:
    """Writes a random-weight checkpoint whose gates keep the given shares of tokens."""
    ratios = () if keep_ratio is None else parse_ratios(keep_ratio, "--keep-ratio")
    return init_checkpoint(arch, Path(output), keep_ratio=ratios, seed=seed, force=force, plan=plan)


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
