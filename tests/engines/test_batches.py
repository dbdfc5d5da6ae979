"""Any batch size on an engine that takes few."""

from __future__ import annotations

import numpy as np
import pytest

from svit_deploy.engines.arrays import OnDevice
from svit_deploy.engines.base import Engine, TensorSpec
from svit_deploy.engines.batches import Batches


class Doubles(Engine):
    """Takes batches of 2 to 4, and remembers their sizes."""

    def __init__(self):
        self.sizes, self.closed = [], False

    def inputs(self):
        return (TensorSpec("x", np.dtype("float32"), ("batch", 3)),)

    def outputs(self):
        return (TensorSpec("y", np.dtype("float32"), ("batch", 3)),)

    def run(self, feeds, outputs=None):
        self.sizes.append(len(feeds["x"]))
        assert 2 <= self.sizes[-1] <= 4
        return dict.fromkeys(outputs or ("y",), feeds["x"] * 2)

    def close(self):
        self.closed = True

    @property
    def description(self):
        return {"runtime": "doubles"}


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [2]), (2, [2]), (4, [4]), (5, [4, 2]), (9, [4, 4, 2]), (11, [4, 4, 3])]
)
def test_batches_are_split_and_filled_up(count, sizes):
    inner = Doubles()
    x = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    with Batches(inner, 2, 4) as engine:
        found = engine.run({"x": x})
        assert engine.run({"x": x}, ["y"]).keys() == {"y"}
        assert engine.description == {"runtime": "doubles"}
        assert (engine.inputs(), engine.outputs()) == (inner.inputs(), inner.outputs())
    assert np.array_equal(found["y"], x * 2)
    assert inner.sizes == sizes * 2
    assert inner.closed


@pytest.mark.parametrize(("count", "kept"), [(1, True), (3, True), (5, False)])
def test_what_is_kept_on_the_device_is_the_rows_that_were_fed(count, kept):
    """A batch that has to be split comes back in host memory: its parts lie in one place."""

    class Keeps(Doubles):
        def run_kept(self, feeds, outputs=None, kept=()):
            shape = self.run(feeds)["y"].shape
            return {"y": OnDevice(64, shape, np.dtype("float32"))} if kept else self.run(feeds)

    with Batches(Keeps(), 2, 4) as engine:
        found = engine.run_kept({"x": np.ones((count, 3), np.float32)}, ["y"], ["y"])["y"]
    assert isinstance(found, OnDevice) == kept
    assert found.shape == (count, 3)
