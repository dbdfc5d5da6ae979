"""What a command line names as something to bench: a bundle or a single ONNX file."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from svit_deploy.bench.settings import (
    KEEP,
    WORST_CASE,
    BenchSettings,
    BenchTarget,
    Provenance,
)
from svit_deploy.bundle import MANIFEST, MODEL, Bundle, open_bundle
from svit_deploy.config import Preprocess, TokenMode
from svit_deploy.detection.bench import detection_target
from svit_deploy.detection.bundle import DetectionBundle
from svit_deploy.engines.base import Engine, TensorSpec
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import InputError, SvitDeployError, UsageError
from svit_deploy.export import names
from svit_deploy.files import hash_file
from svit_deploy.graph_edit import add_outputs, force_values, set_scalars
from svit_deploy.images import ImageSet
from svit_deploy.inspection.graph import DATA_DEPENDENT
from svit_deploy.models import config_from_dict
from svit_deploy.onnx_file import all_nodes, load_onnx, random_operators, read_metadata

log = logging.getLogger(__name__)

SWEEP = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)


@dataclass(frozen=True)
class Inputs:
    """Where a benchmark's images come from: pictures, noise, or each bundle's own samples.

    Attributes:
        count: images of noise.
    """

    images: ImageSet | None = None
    noise: bool = False
    allow_noise: bool = False
    count: int = 32
    _made: dict[Any, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.noise and self.images is not None:
            raise UsageError("--random and --images exclude each other", "leave one out")

    def prepare(self, preprocess: Preprocess, image_size: tuple[int, int]) -> np.ndarray:
        """The pictures or noise `[n, 3, H, W]`, in memory once for models that want the same."""
        key = (preprocess, image_size)
        if key not in self._made:
            if self.images is not None:
                self._made[key] = self.images.inputs(preprocess, image_size)
            else:
                shape = (self.count, 3, *image_size)
                self._made[key] = np.random.default_rng(0).standard_normal(shape, np.float32)
        return self._made[key]

    def refuse_noise(self, name: str) -> None:
        """Raises UsageError if there is noise for a model whose latency depends on content."""
        if self.noise and not self.allow_noise:
            raise UsageError(
                f"the latency of {name} depends on the content of the images, so noise would "
                "measure something else",
                "give real pictures with --images, or add --allow-noise if noise is what you want",
            )

    def provenance(self, model: str, sha256: str, size_bytes: int) -> Provenance:
        """What the report says about a model that is run on these."""
        if self.images is None:
            return Provenance(model, sha256, size_bytes, "noise", None)
        return Provenance(model, sha256, size_bytes, self.images.source, self.images.sha256)


def bench_target(path: Path, inputs: Inputs, settings: BenchSettings) -> BenchTarget:
    """Prepares a bundle or an ONNX file for `run_bench`.

    Raises:
        InputError: neither, damaged, or not a model on images.
        UsageError: noise for a graph whose latency depends on content, or a batch size that the
            bundle was not exported for.
    """
    if path.is_dir() or path.name == MANIFEST:
        return _bundle_target(open_bundle(path), inputs, settings)
    return _onnx_target(path, inputs, settings)


def check_targets(targets: Sequence[BenchTarget], settings: BenchSettings) -> None:
    """Refuses a comparison on different images, and a sweep that no target can do.

    Raises:
        UsageError: either, before anything is measured.
    """
    samples = {target.provenance.images_sha256 for target in targets if target.provenance}
    if len(samples) > 1:
        raise UsageError(
            "the bundles were exported with different sample images, on which their latencies "
            "cannot be compared",
            "add --images IMAGES",
        )
    variants = (name for target in targets for name in target.variants)
    if settings.sweep and not any(name.startswith(KEEP) for name in variants):
        raise UsageError(
            "the latency of none of the targets depends on the tokens kept, there is no sweep",
            "bench a bundle in token mode dynamic, or leave --sweep-tokens out",
        )


def _bundle_target(bundle: Bundle, inputs: Inputs, settings: BenchSettings) -> BenchTarget:
    config, batch = bundle.config, bundle.manifest["batch"]
    for size in settings.batches:
        if not batch["min"] <= size <= batch["max"]:
            raise UsageError(
                f"batch {size} is outside {bundle.name}'s range {batch['min']} to {batch['max']}",
                "bench another batch size, or export with a wider --batch MIN:OPT:MAX",
            )
    load = _loader(settings)
    if isinstance(bundle, DetectionBundle):
        return detection_target(bundle, inputs, settings, load, _variants)
    dynamic = bundle.mode is TokenMode.DYNAMIC
    if dynamic:
        inputs.refuse_noise(bundle.name)
    file = bundle.manifest["files"][MODEL]
    provenance = inputs.provenance(bundle.name, file["sha256"], file["size_bytes"])
    if inputs.images is not None or inputs.noise:
        arrays = inputs.prepare(config.preprocess, config.image_size)
    else:
        arrays, samples = bundle.load_reference()["images"], bundle.manifest["reference"]
        provenance = dataclasses.replace(
            provenance, images=f"recorded ({samples['source']})", images_sha256=samples["sha256"]
        )
    return BenchTarget(
        label=bundle.name,
        engine_factory=lambda: load(bundle.model_path),
        content_dependent=dynamic,
        input_name=names.INPUT,
        inputs=arrays,
        keep_output=names.KEEP_MASK if bundle.has_gate_outputs else None,
        variants=_variants(bundle, load, config.num_tokens) if dynamic else {},
        task_outputs=(names.LOGITS,),
        provenance=provenance,
    )


def _variants(
    bundle: Bundle, load: Callable[[Path | bytes], Engine], tokens: int
) -> Mapping[str, Callable[[], Engine]]:
    """The same graph with all tokens kept, and with forced shares of them."""
    gates = range(bundle.config.num_gates)

    def worst_case() -> Engine:
        lowest = float(np.finfo(np.float32).min)
        thresholds = {names.threshold_name(gate): lowest for gate in gates}
        return load(set_scalars(bundle.load_model(), thresholds).SerializeToString())

    def kept(share: float) -> Callable[[], Engine]:
        def make() -> Engine:
            decisions = [names.decision_name(gate) for gate in gates]
            shape: tuple[int | str, ...] = ("batch", tokens)
            model = force_values(bundle.load_model(), dict.fromkeys(decisions, shape))
            # The margins as outputs, so that the gates are still computed and timed.
            model = add_outputs(model, [names.margin_name(gate) for gate in gates])
            return ForcedKeep(load(model.SerializeToString()), decisions, tokens, share)

        return make

    return {WORST_CASE: worst_case} | {f"{KEEP}{share}": kept(share) for share in SWEEP}


class ForcedKeep(Engine):
    """An engine whose gates keep a given share of tokens, evenly spread, in every image."""

    def __init__(self, engine: Engine, decisions: Sequence[str], tokens: int, share: float) -> None:
        self.engine, self.decisions = engine, tuple(decisions)
        kept = np.linspace(0, tokens - 1, max(1, round(share * tokens))).round().astype(int)
        self.mask = np.zeros(tokens, bool)
        self.mask[kept] = True

    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec in self.engine.inputs() if spec.name not in self.decisions)

    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.engine.outputs()

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        batch = len(next(iter(feeds.values())))
        mask = np.tile(self.mask, (batch, 1))
        return self.engine.run({**feeds, **dict.fromkeys(self.decisions, mask)}, outputs)

    def close(self) -> None:
        self.engine.close()

    @property
    def description(self) -> dict[str, Any]:
        return self.engine.description


def _onnx_target(path: Path, inputs: Inputs, settings: BenchSettings) -> BenchTarget:
    model = load_onnx(path)
    name, image_size = image_input(model, path)
    dynamic = any(node.op_type in DATA_DEPENDENT for node in all_nodes(model))
    if random := random_operators(model):
        raise InputError(
            f"{path} draws random numbers in {random[0]}, so two runs are not comparable",
            "export it with deterministic gates",
        )
    if dynamic:
        inputs.refuse_noise(path.name)
    if inputs.images is None and not inputs.noise:
        fix = "add --images IMAGES" if dynamic else "add --images IMAGES, or --random"
        raise UsageError(f"{path.name} brings no sample inputs", fix)
    load = _loader(settings)
    outputs = {output.name for output in model.graph.output}
    return BenchTarget(
        label=path.stem,
        engine_factory=lambda: load(path),
        content_dependent=dynamic,
        input_name=name,
        inputs=inputs.prepare(_preprocess(model, path), image_size),
        keep_output=names.KEEP_MASK if names.KEEP_MASK in outputs else None,
        task_outputs=(names.LOGITS,) if names.LOGITS in outputs else None,
        provenance=inputs.provenance(path.name, hash_file(path), path.stat().st_size),
    )


def _preprocess(model: onnx.ModelProto, path: Path) -> Preprocess:
    """What the file says of it; ImageNet's for a foreign one."""
    text = read_metadata(model).get("model")
    if text is None:
        log.info("%s does not tell its preprocessing, ImageNet's is used", path.name)
        return Preprocess()
    try:
        return config_from_dict(json.loads(text)).preprocess
    except (ValueError, RecursionError, SvitDeployError) as error:
        raise InputError(
            f"the metadata of {path} is damaged ({str(error).splitlines()[0][:200]})",
            "export the model again",
        ) from None


def image_input(model: onnx.ModelProto, path: Path) -> tuple[str, tuple[int, int]]:
    """Name and (height, width) of the only input, float32 `[B, 3, H, W]`.

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
    if tensor.elem_type != onnx.TensorProto.FLOAT or len(sizes) != 4 or sizes[1] != 3:
        raise InputError(f"{path}'s input {inputs[0].name!r} is not an image batch", fix)
    if not (sizes[2] and sizes[3]):
        raise InputError(f"{path} leaves its image size open", "export it with a fixed size")
    return inputs[0].name, (sizes[2], sizes[3])


def _loader(settings: BenchSettings) -> Callable[[Path | bytes], Engine]:
    return lambda model: OnnxRuntimeEngine(
        model, provider=settings.provider, threads=settings.threads
    )


def relabel(targets: Sequence[BenchTarget]) -> list[BenchTarget]:
    """Numbers targets that share a label."""
    labels = [target.label for target in targets]
    return [
        dataclasses.replace(target, label=f"{target.label}#{i + 1}")
        if labels.count(target.label) > 1
        else target
        for i, target in enumerate(targets)
    ]
