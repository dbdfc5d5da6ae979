"""What the dynamic graph pays beyond the kept tokens' own arithmetic.

Four graphs, interleaved, at batch 1: the dense twin; the dynamic graph as exported; the same with
its decisions fed in and the gates removed; the same with constant decisions, so that ONNX Runtime
folds the whole selection away. The last is the speed-up that skipping rows can reach at all.

    python benchmarks/svit_s.py --output /tmp/svit_s
    python benchmarks/selection_cost.py --bundles /tmp/svit_s --threads 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from rich.console import Console

from svit_deploy import names
from svit_deploy.bench.printing import render
from svit_deploy.bench.run import run_bench
from svit_deploy.bench.settings import BenchSettings, BenchTarget
from svit_deploy.bench.variants import ForcedKeep
from svit_deploy.bundle import open_bundle
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.graph.edit import copy_model, force_values
from svit_deploy.model.config import ModelConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundles", type=Path, required=True, help="output of svit_s.py")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    dense, dynamic = (open_bundle(options.bundles / name) for name in ("dense", "dynamic"))
    config = dynamic.config
    shape = ("batch", config.num_tokens)
    decisions = {names.decision_name(gate): shape for gate in range(config.num_gates)}
    forced = without_gate_outputs(force_values(dynamic.load_model(), decisions))
    constant = copy_model(forced)
    del constant.graph.input[1:]
    for gate, name in enumerate(decisions):
        constant.graph.initializer.append(numpy_helper.from_array(spread(config, gate), name))
    samples = [image for part in dynamic.load_samples() for image in part.images]
    images = np.stack([image.pixels for image in samples])

    def target(label: str, model: onnx.ModelProto) -> BenchTarget:
        content = model.SerializeToString()
        return BenchTarget(
            label=label,
            engine_factory=lambda: OnnxRuntimeEngine(content, threads=options.threads),
            content_dependent=False,
            input_name=names.INPUT,
            inputs=images,
            task_outputs=(names.LOGITS,),
        )

    def fed() -> ForcedDecisions:
        engine = OnnxRuntimeEngine(forced.SerializeToString(), threads=options.threads)
        return ForcedDecisions(engine, config)

    targets = [
        target("dense", dense.load_model()),
        target("as exported", dynamic.load_model()),
        BenchTarget("decisions fed", fed, False, names.INPUT, images),
        target("decisions constant", constant),
    ]
    settings = BenchSettings(
        batches=(1,), duration_s=options.seconds, threads=options.threads, worst_case=False
    )
    render(run_bench(targets, settings), Console(width=120))


def spread(config: ModelConfig, gate: int) -> np.ndarray:
    """Keep mask `[1, S]` with the target share of tokens, evenly spread."""
    kept = round(config.target_keep[gate] * config.num_tokens)
    mask = np.zeros((1, config.num_tokens), bool)
    mask[0, np.linspace(0, config.num_tokens - 1, kept).round().astype(int)] = True
    return mask


class ForcedDecisions(ForcedKeep):
    """Feeds every gate its own mask, for one image at a time."""

    def __init__(self, engine: OnnxRuntimeEngine, config: ModelConfig) -> None:
        self.engine = engine  # not ForcedKeep's own: each gate has its own share
        self.masks = {names.decision_name(g): spread(config, g) for g in range(config.num_gates)}
        self.decisions = tuple(self.masks)

    def run(self, feeds, outputs=None):  # type: ignore[no-untyped-def]
        return self.engine.run({**feeds, **self.masks}, outputs)


def without_gate_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Only the logits as output, so that nothing keeps the gates alive."""
    edited = copy_model(model)
    logits = [output for output in edited.graph.output if output.name == names.LOGITS]
    del edited.graph.output[:]
    edited.graph.output.extend(logits)
    return edited


if __name__ == "__main__":
    main()
