"""Makes targets of bundles, ONNX files and engines: what runs, on which images."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from svit_deploy import names
from svit_deploy.bench.engine_targets import bundle_around, engine_targets, require_engine
from svit_deploy.bench.estimate import outline
from svit_deploy.bench.graph_modes import by_graph_mode, graph_note
from svit_deploy.bench.inputs import Inputs, bench_size
from svit_deploy.bench.labels import relabel, split_target
from svit_deploy.bench.report import BenchReport
from svit_deploy.bench.run import run_bench
from svit_deploy.bench.settings import KEEP, BenchSettings, BenchTarget
from svit_deploy.bench.variants import variants
from svit_deploy.bench.whole import of_images_alone
from svit_deploy.bundle import MANIFEST, Bundle, open_bundle
from svit_deploy.bundle.manifest import UNNAMED
from svit_deploy.engines.base import Engine
from svit_deploy.engines.runtimes import TENSORRT, Runtime, check_options, runtime_for
from svit_deploy.errors import InputError, SvitDeployError, UsageError
from svit_deploy.graph.builder import ELEMENTS, PRECISIONS
from svit_deploy.images import check_images
from svit_deploy.images.medium import PICTURES, Medium
from svit_deploy.inference.engine import require_among_others
from svit_deploy.io.files import hash_file
from svit_deploy.io.onnx_file import (
    DATA_DEPENDENT,
    all_nodes,
    load_onnx,
    random_operators,
    read_metadata,
)
from svit_deploy.loading.serialise import config_from_dict
from svit_deploy.model.config import ModelConfig, Preprocess, TokenMode
from svit_deploy.model.sizes import Size, SizeRange
from svit_deploy.plan import RUN, Plan
from svit_deploy.progress import SILENT, Progress
from svit_deploy.tasks import Task, task_named

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """Something to bench, found and not prepared.

    Attributes:
        require: raises a SvitDeployError where it cannot run here, before images are read.
        prepare: makes targets of it for `run_bench`; see `find_candidate`.
    """

    require: Callable[[], object]
    prepare: Callable[[Inputs], list[BenchTarget]]
    medium: Medium = PICTURES


def bench_paths(
    paths: Sequence[Path],
    settings: BenchSettings,
    progress: Progress = SILENT,
    plan: Plan = RUN,
) -> BenchReport:
    """Measures bundles, ONNX files or engines against the first of them, the baseline.

    Args:
        paths: each as `PATH[@ENGINE[:PRECISION]]`.

    Raises:
        SvitDeployError: see `find_candidate`, `check_targets` and `run_bench`.
    """
    candidates = [find_candidate(path, settings) for path in paths]
    return bench_candidates(candidates, settings, progress, plan)


def bench_candidates(
    candidates: Sequence[Candidate],
    settings: BenchSettings,
    progress: Progress = SILENT,
    plan: Plan = RUN,
) -> BenchReport:
    """The same of what was found, which may have been found with settings of its own."""
    for candidate in candidates:
        plan.needs(candidate.require)
    medium = candidates[0].medium if candidates else PICTURES
    if settings.images is not None and any(found.medium != medium for found in candidates):
        raise UsageError(
            "the targets do not read images in the same way", "bench them by themselves"
        )
    plan.needs(check_images, settings.images, medium)
    inputs = Inputs.load(settings, progress, medium)
    targets = relabel([target for found in candidates for target in found.prepare(inputs)])
    check_targets(targets, settings)
    for line in outline(targets, settings):
        plan.tell(*line)
    plan.begin()
    return run_bench(targets, settings, progress)


def find_candidate(path: Path, settings: BenchSettings) -> Candidate:
    """Finds out what a path is: a bundle, an ONNX file or an engine; and what runs it.

    `--cuda-graph both` gives two targets of what can use CUDA graphs: with and without.

    Args:
        path: as `PATH[@ENGINE[:PRECISION]]`.

    Raises:
        InputError: nothing of these, damaged, not a model on images, an image size that it cannot
            run, or no recorded sample of that size.
        UsageError: noise for a graph whose latency depends on content, a batch size that it was
            not exported or built for, or an engine that does not run it.
        CapabilityError: a foreign engine that cannot be opened here to see what it takes.
    """
    path, asked, settings = split_target(path, settings)
    if path.is_dir() or path.name == MANIFEST:
        bundle = open_bundle(path)
        runtime, file = runtime_for(bundle.runnable, settings)
        label = bundle.name + asked
        if not runtime.runs_graphs:
            return _engine(file, label, bundle, settings)
        return Candidate(
            partial(require_among_others, bundle, settings),
            lambda inputs: _bundle_targets(bundle, runtime, label, inputs, settings),
            bundle.task.reader(bundle.config),
        )
    runtime, _ = runtime_for([path], settings)
    label = path.stem + asked
    if not runtime.runs_graphs:
        return _engine(path, label, bundle_around(path), settings)
    return Candidate(
        partial(runtime.require, path, settings),
        lambda inputs: _onnx_targets(path, runtime, label, inputs, settings),
    )


def _engine(path: Path, label: str, bundle: Bundle | None, settings: BenchSettings) -> Candidate:
    return Candidate(
        partial(require_engine, path, bundle, settings),
        lambda inputs: engine_targets(path, bundle, label, inputs, settings),
        PICTURES if bundle is None else bundle.task.reader(bundle.config),
    )


def check_targets(targets: Sequence[BenchTarget], settings: BenchSettings) -> None:
    """Refuses a comparison on different images, and options that mean nothing to any target.

    Raises:
        UsageError: before anything is measured.
    """
    samples = {target.provenance.images_sha256 for target in targets if target.provenance}
    if len(samples) > 1:
        raise UsageError(
            "the bundles were exported with different sample images, on which their latencies "
            "cannot be compared",
            "add --images IMAGES",
        )
    check_options([target.runtime for target in targets if target.runtime], settings)
    swept = (name for target in targets for name in target.variants)
    if settings.sweep and not any(name.startswith(KEEP) for name in swept):
        if any(t.content_dependent and t.runtime is TENSORRT for t in targets):
            raise UsageError(
                "an engine cannot be edited to keep given shares of the tokens",
                "sweep the bundle's ONNX model: add --engine onnxruntime, or @onnxruntime",
            )
        raise UsageError(
            "the latency of none of the targets depends on the tokens kept, there is no sweep",
            "bench a bundle in token mode dynamic, or leave --sweep-tokens out",
        )


def _bundle_targets(
    bundle: Bundle, runtime: Runtime, label: str, inputs: Inputs, settings: BenchSettings
) -> list[BenchTarget]:
    batch, task = bundle.manifest["batch"], bundle.task
    for count in settings.batches:
        if not batch["min"] <= count <= batch["max"]:
            raise UsageError(
                f"batch {count} is outside {bundle.name}'s range {batch['min']} to {batch['max']}",
                "bench another batch size, or export with a wider --batch MIN:OPT:MAX",
            )
    size = bench_size(bundle.name, bundle.sizes, settings)
    dynamic = bundle.mode is TokenMode.DYNAMIC
    if dynamic:
        inputs.refuse_noise(bundle.name)
    arrays, provenance = inputs.of_bundle(bundle, size, bundle.model_path)

    tokens = bundle.config.at(size).num_tokens

    def make(asked: BenchSettings, suffix: str) -> BenchTarget:
        def load(model: Path | bytes) -> Engine:
            return of_images_alone(runtime.load(model, asked, bundle.precision), task)

        return BenchTarget(
            label=label + suffix,
            engine_factory=lambda: load(bundle.model_path),
            content_dependent=dynamic,
            input_name=names.INPUT,
            inputs=arrays,
            keep_output=names.KEEP_MASK if bundle.has_gate_outputs else None,
            variants=variants(bundle, load, tokens) if dynamic else {},
            task_outputs=task.outputs(),
            provenance=provenance,
            runtime=runtime,
            runs_on=runtime.describe(bundle.model_path, settings, bundle.precision),
            notes=graph_note,
        )

    return by_graph_mode(runtime, settings, make)


def _onnx_targets(
    path: Path, runtime: Runtime, label: str, inputs: Inputs, settings: BenchSettings
) -> list[BenchTarget]:
    model = load_onnx(path)
    precision = _precision(model)
    name, size = image_input(model, path)
    sizes = SizeRange.single(size)
    size = bench_size(path.name, sizes, settings)
    dynamic = any(node.op_type in DATA_DEPENDENT for node in all_nodes(model))
    if random := random_operators(model):
        raise InputError(
            f"{path} draws random numbers in {random[0]}, so two runs are not comparable",
            "export it with deterministic gates",
        )
    if dynamic:
        inputs.refuse_noise(path.name)
    inputs.need_some(path.name, dynamic)
    task, config = _told(model, path)
    if config is None:
        arrays = inputs.prepare(Preprocess(), size)
    else:
        arrays = inputs.prepare_for(task, config, sizes)
    shown = {output.name for output in model.graph.output}
    provenance = inputs.provenance(path.name, hash_file(path), path.stat().st_size)

    def make(asked: BenchSettings, suffix: str) -> BenchTarget:
        return BenchTarget(
            label=label + suffix,
            engine_factory=lambda: runtime.load(path, asked, precision),
            content_dependent=dynamic,
            input_name=name,
            inputs=arrays,
            keep_output=names.KEEP_MASK if names.KEEP_MASK in shown else None,
            task_outputs=task.outputs() if shown.issuperset(task.outputs()) else None,
            provenance=provenance,
            runtime=runtime,
            runs_on=runtime.describe(path, settings, precision),
            notes=graph_note,
        )

    return by_graph_mode(runtime, settings, make)


def _told(model: onnx.ModelProto, path: Path) -> tuple[Task, ModelConfig | None]:
    """The task and the configuration that the file names; a foreign one has no configuration."""
    told = read_metadata(model)
    if "model" not in told:
        log.info("%s does not tell its preprocessing, ImageNet's is used", path.name)
        return task_named(UNNAMED), None
    try:
        task = task_named(str(json.loads(told["task"])) if "task" in told else UNNAMED)
        return task, config_from_dict(json.loads(told["model"]), task)
    except (ValueError, RecursionError, SvitDeployError) as error:
        raise InputError(
            f"the metadata of {path} is damaged ({str(error).splitlines()[0][:200]})",
            "export the model again",
        ) from None


def _precision(model: onnx.ModelProto) -> str:
    """The precision of a graph's weights; gates may be finer."""
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    quantised = [form.name for form, kind in ELEMENTS.items() if kind in kinds]
    halves = [name for name, kind in PRECISIONS.items() if kind in kinds and name != "fp32"]
    return [*quantised, *halves, "fp32"][0]


def image_input(model: onnx.ModelProto, path: Path) -> tuple[str, Size]:
    """Name and (height, width) of the only input, float32 `[B, 3, H, W]` or `[B, 3, T, H, W]`.

    Raises:
        InputError: other inputs than that.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    fix = "give a model with one float32 input [batch, 3, height, width]"
    if len(inputs) != 1:
        raise InputError(f"{path} has {len(inputs)} inputs", fix)
    tensor = inputs[0].type.tensor_type
    sizes = [dim.dim_value for dim in tensor.shape.dim]
    pictures = len(sizes) in (4, 5) and sizes[1] == 3
    if tensor.elem_type != onnx.TensorProto.FLOAT or not pictures:
        raise InputError(f"{path}'s input {inputs[0].name!r} is not an image batch", fix)
    if not all(sizes[2:]):
        raise InputError(f"{path} leaves its image size open", "export it with a fixed size")
    return inputs[0].name, (sizes[-2], sizes[-1])
