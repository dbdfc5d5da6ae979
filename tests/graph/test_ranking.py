"""Ranking in steps gives what one TopK gives, in the same order."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.graph import ranking
from svit_deploy.graph.builder import FLOAT, INT64, GraphBuilder
from svit_deploy.graph.ranking import MOST_OF_TOPK, top_k

DETECTOR = 84 * 84
"""Tokens of an image of 1344x1344 pixels, the largest of a detector by default."""


def build(count: int | None, most: int, largest: bool) -> onnx.ModelProto:
    """Ranks `scores`; without a count, as many as the input `count` says."""
    graph = GraphBuilder("ranking", 20)
    scores = graph.input("scores", FLOAT, ("batch", "tokens"))
    wanted = graph.input("count", INT64, (1,)) if count is None else count
    for name, value in zip(
        ("best", "index"), top_k(graph, scores, wanted, most, largest=largest), strict=True
    ):
        graph.output(graph.rename(value, name), FLOAT if name == "best" else INT64, ("b", "k"))
    model = graph.model()
    onnx.checker.check_model(model, full_check=True)
    return model


def parts(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "TopK" for node in model.graph.node)


def check(scores: np.ndarray, count: int, most: int, *, free: bool, largest: bool = True) -> int:
    """Compares with a stable sort; returns in how many steps it was done."""
    model = build(None if free else count, most, largest)
    feeds = {"scores": scores} | ({"count": np.array([count])} if free else {})
    with OnnxRuntimeEngine(model.SerializeToString(), threads=1) as engine:
        found = engine.run(feeds)
    order = np.argsort(-scores if largest else scores, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(found["index"], order)
    np.testing.assert_array_equal(found["best"], np.take_along_axis(scores, order, axis=1))
    return parts(model)


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7, 10, 11])
def test_every_step_goes_on_where_the_last_one_ended(monkeypatch, count, largest, free):
    """Many equal values, both infinities, and at last all there are."""
    monkeypatch.setattr(ranking, "MOST_OF_TOPK", 3)
    random = np.random.default_rng(count)
    scores = random.integers(-2, 3, (5, 11)).astype(np.float32)
    scores[scores == 2], scores[scores == -2] = np.inf, -np.inf
    scores[0] = 1
    steps = check(scores, count, count, free=free, largest=largest)
    assert steps == -(-count // 3)


def test_fewer_than_there_are_steps(monkeypatch):
    """A graph for images of many sizes has the steps of the largest on all of them."""
    monkeypatch.setattr(ranking, "MOST_OF_TOPK", 3)
    scores = np.random.default_rng(0).standard_normal((2, 4), np.float32)
    for count in (1, 2, 4):
        assert check(scores, count, 11, free=True) == 4


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize(("count", "steps"), [(MOST_OF_TOPK, 1), (5292, 2), (DETECTOR, 2)])
def test_as_many_tokens_as_a_detector_has(count, steps, free):
    random = np.random.default_rng(1)
    scores = random.standard_normal((2, DETECTOR), np.float32)
    scores[1] = np.round(scores[1], 1)  # many ties
    scores[:, random.random(DETECTOR) < 0.4] = np.finfo(np.float32).min  # pruned
    assert check(scores, count, count, free=free) == steps
