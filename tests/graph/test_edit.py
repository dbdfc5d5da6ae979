"""Copies of a graph that run a part of it on given values."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import InputError
from svit_deploy.graph.edit import FED, feed_values
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.reference import Reference


def test_a_fed_value_cuts_the_graph(golden, export):
    found = golden("svit_cls")
    model = export("svit_cls", "masked").load_model()
    reference = Reference(found.model, TASKS["classify"])
    expected = reference.run(found.prepared, stages=True).stages["block_1.out"]
    fed = feed_values(model, {"block_1.out": ("rows", 48)})
    other = expected[::-1].reshape(-1, 48)
    with OnnxRuntimeEngine(fed.SerializeToString(), threads=1) as engine:
        feeds = {"images": found.inputs, f"block_1.out{FED}": np.ascontiguousarray(other)}
        outputs = engine.run(feeds)
    actual = outputs["block_1.out"].reshape(3, 197, 48)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(outputs["keep_mask"], found.keep_mask[::-1])
    with pytest.raises(InputError, match="no value named 'block_99"):
        feed_values(model, {"block_99.out": ("rows", 48)})
