"""Runs of exported classifiers and of their reference, as plain arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx

from svit_deploy import names
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.model import Model
from svit_deploy.model.result import stack
from svit_deploy.tasks import TASKS

LOGITS, MARGIN = 2e-5, 5e-5
"""How far from the official code's."""
PRUNING = ("dynamic", "budget", "masked")


def run(model: Any, inputs: np.ndarray, *, alone: bool = False) -> dict[str, np.ndarray]:
    """All outputs of a bundle, or of a graph; with `alone` image by image."""
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model.model_path
    with OnnxRuntimeEngine(content, threads=1) as engine:
        if not alone:
            return engine.run({names.INPUT: inputs})
        parts = [engine.run({names.INPUT: image[None]}) for image in inputs]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def reference(
    model: Model, inputs: Iterable[np.ndarray], rule: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """The reference's logits and keep masks."""
    from svit_deploy.tasks.reference import Reference

    images = [Prepared.whole(pixels) for pixels in inputs]
    result = Reference(model, TASKS["classify"]).run(images, rule)
    return stack(result.outputs, names.LOGITS), result.selected.keep_mask


def assert_as_recorded(found: Any, outputs: dict[str, Any], images: Any = slice(None)) -> None:
    """Logits, keep masks and margins are those of the official code."""
    np.testing.assert_allclose(outputs["logits"], found.logits[images], rtol=0, atol=LOGITS)
    if names.KEEP_MASK in outputs:
        np.testing.assert_array_equal(outputs["keep_mask"], found.keep_mask[images])
        finite = np.isfinite(found.margin[images])
        np.testing.assert_array_equal(np.isfinite(outputs["margin"]), finite)
        np.testing.assert_allclose(
            outputs["margin"][finite], found.margin[images][finite], rtol=0, atol=MARGIN
        )
