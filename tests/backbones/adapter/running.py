"""Graphs of backbones and their reference, as plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from svit_deploy.backbones.adapter.sizes import STEP
from svit_deploy.engines.base import Engine
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.export.pipeline import build_graph
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.budget import budgets_of
from svit_deploy.model.config import TokenMode
from svit_deploy.model.model import Model
from svit_deploy.model.result import Result
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks import TASKS

STRIDES = ("stride_4", "stride_8", "stride_16", "stride_32")


def sizes_of(text: str) -> SizeRange:
    return SizeRange.parse(text, STEP)


FREE = sizes_of("64x64:96x128:256x256")


def engine_of(
    model: Model, mode: str, sizes: SizeRange = FREE, shares: Sequence[float] = (), **options: Any
) -> Engine:
    """A graph of the model; in `budget` mode one that lets everything through by default."""
    settings = ExportSettings(**{"task": "backbone", "tokens": TokenMode(mode), **options})
    config = model.config.at(sizes.opt)
    if mode == "budget" and not shares:
        shares = (1.0,) * config.num_gates
    model = Model(config, model.weights, model.arch)
    graph = build_graph(model, settings, budgets_of(config, shares), sizes, {})
    return OnnxRuntimeEngine(graph.SerializeToString(), threads=1)


def run(model: Model, mode: str, images: np.ndarray, *more: Any) -> dict[str, np.ndarray]:
    with engine_of(model, mode, *more) as engine:
        return engine.run({"images": images})


def reference(model: Model, images: np.ndarray, rule: Any = None) -> Result:
    """With the whole feature maps among its stages."""
    from svit_deploy.tasks.reference import Reference

    prepared = [Prepared.whole(pixels) for pixels in images]
    return Reference(model, TASKS["backbone"]).run(prepared, rule, stages=True)


def assert_same_maps(actual: Any, expected: Any, atol: float = 2e-5) -> None:
    """Feature maps of two runs, by name."""
    for name in expected.keys() & set(STRIDES):
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=atol)
