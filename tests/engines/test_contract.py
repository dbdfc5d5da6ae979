"""The runner contract: every engine that runs graphs does what all must."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from svit_deploy.engines.base import Engine
from svit_deploy.engines.runtimes import RUNTIMES
from svit_deploy.engines.settings import EngineChoice
from svit_deploy.errors import CapabilityError, InputError
from svit_deploy.graph.parts import BETWEEN
from tests.conftest import skip_without
from tests.engines.graphs import best, dynamic, linear, scaled


@pytest.fixture(params=[row.name for row in RUNTIMES.values() if row.runs_graphs])
def open_engine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Path | bytes], Engine]:
    """Opens a graph, or a file with one."""
    skip_without(request.param)
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "cache"))
    return lambda model: RUNTIMES[request.param].load(model, EngineChoice(threads=1), "fp32")


@pytest.fixture
def images() -> np.ndarray:
    return np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)


@pytest.mark.parametrize("from_file", [True, False])
def test_it_tells_what_it_takes_and_gives(open_engine, images, tmp_path, from_file):
    path = tmp_path / "a model.onnx"
    path.write_bytes(linear())
    with open_engine(path if from_file else linear()) as engine:
        (taken,), (total, positive) = engine.inputs(), engine.outputs()
        assert (taken.name, taken.dtype, taken.shape[1:]) == ("x", np.float32, (3, 2, 2))
        assert (total.name, total.dtype, total.shape[1:]) == ("sum", np.float32, (1,))
        assert (positive.name, positive.dtype) == ("positive", np.bool_)
        assert isinstance(taken.shape[0], str)
        for batch in (2, 1):
            found = engine.run({"x": images[:batch]})
            assert found["sum"].ravel().tolist() == [66, 210][:batch]
            assert found["positive"].dtype == np.bool_
            assert found["positive"].sum() == 12 * batch - 1


def test_a_result_outlives_the_next_run(open_engine, images):
    with open_engine(linear()) as engine:
        first = engine.run({"x": images})["sum"]
        engine.run({"x": -images})
    assert first.ravel().tolist() == [66, 210]


def test_it_does_not_change_what_it_is_fed(open_engine, images):
    given = images.copy()
    with open_engine(linear()) as engine:
        engine.run({"x": given})
    np.testing.assert_array_equal(given, images)


def test_only_the_outputs_asked_for_come_back(open_engine, images):
    with open_engine(linear()) as engine:
        assert list(engine.run({"x": images}, ["positive"])) == ["positive"]
        assert engine.run({"x": images}, []) == {}


@pytest.mark.parametrize("kept", [0, 3])
def test_content_dependent_shapes_even_empty_ones(open_engine, kept):
    with open_engine(dynamic()) as engine:
        assert engine.outputs()[0].shape == (1, "?")
        x = np.zeros(5, np.float32)
        x[:kept] = 1
        assert engine.run({"x": x})["rows"].shape == (1, kept)


def test_strided_arrays_are_fine(open_engine, images):
    with open_engine(linear()) as engine:
        flipped = engine.run({"x": images[:, ::-1]})["sum"]
    assert flipped.ravel().tolist() == [66, 210]


def test_a_number_is_no_list_of_one(open_engine, images):
    with open_engine(scaled()) as engine:
        assert engine.inputs()[1].shape == ()
        found = engine.run({"x": images, "scale": np.array(2, np.float32)})
    np.testing.assert_array_equal(found["y"], 2 * images)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "no array was fed for 'x'"),
        ({"y": np.zeros((1, 3, 2, 2), np.float32)}, "the model has no input 'y'; feed 'x'"),
        ({"x": np.zeros((1, 3, 2, 2), np.float16)}, "'x' is float16, the model takes float32"),
        ({"x": np.zeros((3, 2, 2), np.float32)}, r"shape \[3, 2, 2\], .*takes \[(B|\?), 3, 2, 2\]"),
        ({"x": np.zeros((1, 3, 2, 4), np.float32)}, r"shape \[1, 3, 2, 4\]"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_in_words(open_engine, feeds, message):
    with open_engine(linear()) as engine, pytest.raises(InputError, match=message):
        engine.run(feeds)


def test_an_extra_feed_and_an_unknown_output_are_refused(open_engine, images):
    with open_engine(linear()) as engine:
        with pytest.raises(InputError, match="no input 'mask'"):
            engine.run({"x": images, "mask": images})
        with pytest.raises(InputError, match="no output 'logits'; ask for 'sum', 'positive'"):
            engine.run({"x": images}, ["logits"])


def test_a_closed_engine_does_not_run(open_engine, images):
    engine = open_engine(linear())
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.run({"x": images})


@pytest.mark.parametrize("name", ["absent.onnx", "."])
def test_no_such_file(open_engine, tmp_path, name):
    with pytest.raises(InputError, match="is not a file"):
        open_engine(tmp_path / name)


def test_a_broken_file_is_one_sentence(open_engine, tmp_path, capfd):
    for content in (b"", b"<!DOCTYPE html><title>404</title>", linear()[:-40]):
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        for model in (content, path):
            with pytest.raises(InputError) as caught:
                open_engine(model)
            assert "\n" not in str(caught.value)
            assert ".cpp" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_missing_library_names_what_installs_it(monkeypatch, tmp_path):
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path))
    for row in RUNTIMES.values():
        if row.runs_graphs:
            monkeypatch.setitem(sys.modules, row.name, None)
            with pytest.raises(CapabilityError, match="pip install"):
                row.load(linear(), EngineChoice(), "fp32")


@pytest.mark.parametrize("largest", [0, 1])
def test_the_lower_index_wins_among_equal_values(open_engine, largest):
    """As ONNX asks of TopK: which token stays must not depend on the engine."""
    for count, kept in ((16, 5), (197, 138), (1000, 200)):
        x = np.random.default_rng(0).integers(0, 7, (3, count)).astype(np.float32)
        order = np.argsort(-x if largest else x, axis=1, kind="stable")[:, :kept]
        with open_engine(best(kept, largest)) as engine:
            found = engine.run({"x": x})
        np.testing.assert_array_equal(found["places"], order)
        np.testing.assert_array_equal(found["values"], np.take_along_axis(x, order, axis=1))


def test_a_profile_adds_up_and_leaves_the_engine_alone(open_engine, images, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(linear())
    with open_engine(path) as engine:
        before = engine.run({"x": images})["sum"]
        times = engine.profile([{"x": images}, {"x": images[:1]}], ("sum",))
        assert {one.operator for one in times} > {BETWEEN}
        assert sum(one.operator == BETWEEN for one in times) == 1
        assert all(one.seconds >= 0 for one in times if one.operator != BETWEEN)
        assert 0 < math.fsum(one.seconds for one in times) < 10
        assert any(one.nodes for one in times)
        assert np.array_equal(engine.run({"x": images})["sum"], before)
    with open_engine(linear()) as engine:  # of bytes nothing is kept to load it again
        assert engine.profile([{"x": images}], None) is None
