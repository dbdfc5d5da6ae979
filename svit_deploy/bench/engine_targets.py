"""Engines that were built ahead, TensorRT's, as something to bench."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from svit_deploy import names
from svit_deploy.bench.graph_modes import by_graph_mode, graph_note
from svit_deploy.bench.inputs import Inputs, bench_size
from svit_deploy.bench.settings import BenchSettings, BenchTarget
from svit_deploy.bench.whole import of_images_alone
from svit_deploy.bundle import MANIFEST, Bundle, open_bundle
from svit_deploy.engines.base import Engine
from svit_deploy.engines.runtimes import ONNXRUNTIME, TENSORRT
from svit_deploy.engines.settings import EngineChoice
from svit_deploy.engines.tensorrt.inspector import fusion_notes
from svit_deploy.engines.tensorrt.loading import read_head
from svit_deploy.engines.tensorrt.sidecar import read_sidecar, sidecar_path
from svit_deploy.errors import InputError, UsageError
from svit_deploy.io.files import hash_file
from svit_deploy.model.config import Preprocess, TokenMode
from svit_deploy.model.profiles import Profile, choose_profile
from svit_deploy.model.sizes import Size

log = logging.getLogger(__name__)


def require_engine(path: Path, bundle: Bundle | None, settings: BenchSettings) -> None:
    """Raises a SvitDeployError where an engine, alone or of a bundle, cannot run here."""
    TENSORRT.require(path, settings)
    if bundle is not None and bundle.split:
        ONNXRUNTIME.require(bundle.model_path, EngineChoice())


def engine_targets(
    path: Path, bundle: Bundle | None, label: str, inputs: Inputs, settings: BenchSettings
) -> list[BenchTarget]:
    """An engine, alone or of a bundle: one target, or one with CUDA graphs and one without.

    Raises:
        InputError: no engine, not the one its sidecar tells, or an image size that its bundle's
            graph does not run.
        UsageError: noise where content decides, no images, or a batch or an image size that no
            profile serves.
        CapabilityError: a foreign engine that cannot be opened here to see what it takes.
    """

    def load(asked: BenchSettings) -> Engine:
        engine = TENSORRT.load(path, asked)
        if bundle is None:
            return engine
        return of_images_alone(bundle.with_rest(engine), bundle.task)

    read_head(path)
    foreign = settings.allow_foreign and not sidecar_path(path).exists()
    sidecar = None if foreign else read_sidecar(path)
    if sidecar is None:
        with TENSORRT.load(path, replace(settings, cuda_graph="off")) as engine:
            profiles, input_name = engine.profiles, engine.inputs()[0].name
    else:
        profiles, input_name = sidecar.profiles, names.INPUT
    size = settings.image_size or (profiles[0].opt[-2], profiles[0].opt[-1])
    if bundle is not None:
        size = bench_size(bundle.name, bundle.sizes, settings)
    _check_shapes(settings.batches, size, profiles, label)
    dynamic = sidecar is not None and sidecar.tokens == TokenMode.DYNAMIC.value
    if dynamic:
        inputs.refuse_noise(label)
    if bundle is not None:
        arrays, provenance = inputs.of_bundle(bundle, size, path)
    else:
        inputs.need_some(path.name, dynamic)
        log.info("%s does not tell its preprocessing, ImageNet's is used", path.name)
        arrays = inputs.prepare(Preprocess(), size)
        provenance = inputs.provenance(path.name, hash_file(path), path.stat().st_size)
    outputs: tuple[str, ...] | None = None if sidecar is None else (names.LOGITS,)
    if bundle is not None:
        outputs = bundle.task.outputs()
    shows_gates = bundle is None or bundle.has_gate_outputs

    def make(asked: BenchSettings, suffix: str) -> BenchTarget:
        return BenchTarget(
            label=label + suffix,
            engine_factory=functools.partial(load, asked),
            content_dependent=dynamic,
            input_name=input_name,
            inputs=arrays,
            keep_output=names.KEEP_MASK if shows_gates else None,
            task_outputs=outputs,
            provenance=provenance,
            runtime=TENSORRT,
            runs_on=TENSORRT.describe(path, settings),
            notes=functools.partial(_notes, bundle, dynamic and settings.wants_variants),
        )

    return by_graph_mode(TENSORRT, settings, make)


def bundle_around(engine: Path) -> Bundle | None:
    """The bundle that an engine lies in and belongs to."""
    if not (engine.parent / MANIFEST).is_file():
        return None
    try:
        bundle = open_bundle(engine.parent)
    except InputError as error:
        log.info("%s is benched without its bundle: %s", engine.name, error.message)
        return None
    own = bundle.engine_path
    return bundle if own is not None and own.name == engine.name else None


def _check_shapes(
    batches: Sequence[int], size: Size, profiles: Sequence[Profile], label: str
) -> None:
    """Raises UsageError for an image size or a batch size that no profile serves."""
    built, row = ", ".join(map(str, profiles)), (*profiles[0].opt[1:-2], *size)
    if not any(profile.covers((profile.opt[0], *row)) for profile in profiles):
        raise UsageError(
            f"{label} was not built for images of {size[0]}x{size[1]} pixels, only for {built}",
            "bench another --image-size, or build the engine again with other shapes",
        )
    for batch in batches:
        if choose_profile(profiles, (batch, *row)) is None:
            raise UsageError(
                f"{label} was not built for batch {batch}, only for {built}",
                "bench another batch size, or build the engine again with a wider --batch",
            )


def _notes(bundle: Bundle | None, wants_variants: bool, engine: Engine) -> list[str]:
    """What a report should say of a loaded engine.

    Args:
        wants_variants: whether a worst case or a sweep would be timed if it were a graph.
    """
    found = graph_note(engine)
    about = engine.description
    layers = about["layers"]
    if through_host := about.get("maps_through_host"):
        found.append(
            "GPU times are of the engine alone, and its maps pass to the heads through the host: "
            f"{through_host}"
        )
    if wants_variants:
        found.append(
            "an engine cannot be edited, so neither its worst case nor a sweep is timed; bench the "
            "bundle's ONNX model for those, with --engine onnxruntime"
        )
    if bundle is not None:
        config = bundle.config
        found += fusion_notes(
            layers,
            config.depth,
            len(bundle.steps),
            precision=bundle.precision,
            head_dim=config.embed_dim // config.num_heads,
            tokens=bundle.mode.value,
        )
    return found
