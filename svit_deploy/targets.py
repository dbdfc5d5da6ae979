"""What a command line names as something to run: a bundle or a single ONNX file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from svit_deploy.bench.settings import KEEP, WORST_CASE, BenchSettings, BenchTarget
from svit_deploy.bundle import MANIFEST, Bundle, open_bundle
from svit_deploy.config import Preprocess, TokenMode
from svit_deploy.engines.base import Engine, TensorSpec
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import InputError, UsageError
from svit_deploy.export import names
from svit_deploy.graph_edit import add_outputs, force_values, set_scalars
from svit_deploy.images import ImageSet
from svit_deploy.onnx_file import load_onnx, random_operators

SWEEP = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)


@dataclass(frozen=True)
class Inputs:
    """Where a benchmark's images come from: pictures, noise, or each bundle's own samples."""

    images: ImageSet | None = None
    noise: bool = False
    allow_noise: bool = False
    count: int = 32

    def __post_init__(self) -> None:
        if self.noise and self.images is not None:
            raise UsageError("--random and --images exclude each other", "leave one out")


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


def _bundle_target(bundle: Bundle, inputs: Inputs, settings: BenchSettings) -> BenchTarget:
    config, batch = bundle.config, bundle.manifest["batch"]
    for size in settings.batches:
        if not batch["min"] <= size <= batch["max"]:
            raise UsageError(
                f"batch {size} is outside {bundle.name}'s range {batch['min']} to {batch['max']}",
                "bench another batch size, or export with a wider --batch MIN:OPT:MAX",
            )
    dynamic = bundle.mode is TokenMode.DYNAMIC
    if inputs.images is not None:
        arrays = inputs.images.inputs(config.preprocess, config.image_size)
    elif inputs.noise:
        arrays = _noise(bundle.name, dynamic, inputs, config.image_size)
    else:
        arrays = bundle.load_reference()["images"]
    load = _loader(settings)
    return BenchTarget(
        label=bundle.name,
        engine_factory=lambda: load(bundle.model_path),
        content_dependent=dynamic,
        input_name=names.INPUT,
        inputs=arrays,
        keep_output=names.KEEP_MASK if bundle.has_gate_outputs else None,
        variants=_variants(bundle, load) if dynamic else {},
        task_outputs=(names.LOGITS,),
    )


def _variants(
    bundle: Bundle, load: Callable[[Path | bytes], Engine]
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
            shape = ("batch", bundle.config.num_tokens)
            model = force_values(bundle.load_model(), dict.fromkeys(decisions, shape))
            # The margins as outputs, so that the gates are still computed and timed.
            model = add_outputs(model, [names.margin_name(gate) for gate in gates])
            return ForcedKeep(load(model.SerializeToString()), decisions, shape[1], share)

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
    dynamic = any(node.op_type == "NonZero" for node in model.graph.node)
    if random := random_operators(model):
        raise InputError(
            f"{path} draws random numbers in {random[0]}, so two runs are not comparable",
            "export it with deterministic gates",
        )
    if inputs.images is not None:
        arrays = inputs.images.inputs(Preprocess(), image_size)
    elif inputs.noise:
        arrays = _noise(path.name, dynamic, inputs, image_size)
    else:
        raise UsageError(f"{path.name} brings no sample inputs", "add --images IMAGES")
    load = _loader(settings)
    outputs = {output.name for output in model.graph.output}
    return BenchTarget(
        label=path.stem,
        engine_factory=lambda: load(path),
        content_dependent=dynamic,
        input_name=name,
        inputs=arrays,
        keep_output=names.KEEP_MASK if names.KEEP_MASK in outputs else None,
        task_outputs=(names.LOGITS,) if names.LOGITS in outputs else None,
    )


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


def _noise(
    name: str, content_dependent: bool, inputs: Inputs, image_size: tuple[int, int]
) -> np.ndarray:
    if content_dependent and not inputs.allow_noise:
        raise UsageError(
            f"the latency of {name} depends on the content of the images, so noise would measure "
            "something else",
            "give real pictures with --images, or add --allow-noise if noise is what you want",
        )
    rng = np.random.default_rng(0)
    return rng.standard_normal((inputs.count, 3, *image_size), dtype=np.float32)


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
