"""The graph on given decisions: what it computes where a coin toss fell another way.

A turned decision changes all that is computed from there on, and no limit could tell that from a
fault. So such images run on the reference's decisions, and an engine is held to its own graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx.helper import np_dtype_to_tensor_dtype

from svit_deploy.compare import logits_error
from svit_deploy.engines.base import Engine
from svit_deploy.export import names
from svit_deploy.graph_edit import force_values
from svit_deploy.methods.method import Values
from svit_deploy.verify.expected import Expected
from svit_deploy.verify.subject import Observed, Subject


def decided(subject: Subject) -> Values:
    """Of the graph's values those that say what was selected."""
    values = subject.values.items()
    return {name: value for name, value in values if value[0] is not np.float32}


def forced(subject: Subject) -> onnx.ModelProto:
    """The graph with these for inputs."""
    values = decided(subject).items()
    return force_values(
        subject.model,
        {name: ("batch", *shape) for name, (_, shape) in values},
        {name: np_dtype_to_tensor_dtype(np.dtype(kind)) for name, (kind, _) in values},
    )


def guided_logits(
    subject: Subject, actual: Observed, expected: Observed, parts: Sequence[Expected]
) -> np.ndarray:
    """Logits `[n, classes]` as they are; of images that turned a decision, without that turn.

    Adds a check that an engine computes of its own decisions what its graph does.

    Args:
        parts: the images, with the reference's values of `decided`.
    """
    turned = (actual.decisions != expected.decisions).any(axis=(1, 2))
    logits = actual.logits.copy()
    if not turned.any():
        return logits
    subject.report.notes.append(
        f"{turned.sum()} of {len(turned)} images turned a decision; their logits are those of the "
        "graph on the reference's decisions"
    )
    values = {
        n: np.concatenate([part.values[n] for part in parts])[turned] for n in decided(subject)
    }
    images = np.concatenate([part.inputs for part in parts])[turned]
    with subject.engine(forced(subject)) as engine:
        logits[turned] = _logits(engine, images, values)
        if subject.runs_engine and not subject.method.counted:
            masks = actual.keep_mask[turned].transpose(1, 0, 2)
            own = _logits(engine, images, dict(zip(values, masks, strict=True)))
            error, limit = logits_error(actual.logits[turned], own), subject.limits.logits
            detail = f"logits within {error:.2g}, limit {limit:.2g}, in {turned.sum()} images"
            subject.report.check("engine follows its graph", error <= limit, detail)
    return logits


def _logits(
    engine: Engine, images: np.ndarray, decisions: Mapping[str, np.ndarray], size: int = 32
) -> np.ndarray:
    """A few images at a time."""
    feeds = {names.INPUT: images, **decisions}
    parts = [
        {name: np.ascontiguousarray(array[start : start + size]) for name, array in feeds.items()}
        for start in range(0, len(images), size)
    ]
    return np.concatenate([engine.run(part, [names.LOGITS])[names.LOGITS] for part in parts])
