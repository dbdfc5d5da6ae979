"""The core by itself: each way to select tokens against plain NumPy, on random masks."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.graph.builder import BOOL, FLOAT, GraphBuilder
from svit_deploy.graph.packed import TokenGrid
from svit_deploy.graph.tokens import (
    Selection,
    select_budget,
    select_dynamic,
    select_masked,
)

TOKENS, HEADS, DIM = 5, 2, 4
WIDTH = HEADS * DIM
MODES = ["masked", "dynamic", "budget"]
MASK = st.lists(st.booleans(), min_size=TOKENS, max_size=TOKENS)


def build(mode: str, budget: int = TOKENS) -> bytes:
    """A block that is attention alone, `y = attention(x, x, x)`, on the selected tokens."""
    graph, grid = GraphBuilder(mode, 20), TokenGrid(TOKENS, HEADS, DIM, single=mode == "single")
    x = graph.input("x", FLOAT, ("rows", WIDTH))
    decision = graph.input("decision", BOOL, ("batch", TOKENS))
    margin = graph.input("margin", FLOAT, ("batch", TOKENS))
    selection: Selection
    if mode == "masked":
        selection = select_masked(graph, grid, decision)
    elif mode in ("dynamic", "single"):
        selection = select_dynamic(graph, grid, decision)
    else:
        selection = select_budget(graph, grid, decision, margin, budget, most=budget)
    taken = selection.take(x)
    result = selection.put(x, taken, selection.attend((taken, taken, taken)))
    graph.output(graph.rename(result, "y"), FLOAT, ("rows", WIDTH))
    keep = graph.rename(graph.op("Identity", selection.keep), "keep")
    graph.output(keep, BOOL, ("batch", TOKENS))
    model = graph.model()
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def expected(x: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Attention inside each image's kept tokens; the others as they were."""
    y = x.copy()
    for image, kept in enumerate(keep):
        rows = x[image * TOKENS : (image + 1) * TOKENS][kept]
        heads = rows.reshape(-1, HEADS, DIM).transpose(1, 0, 2).astype(np.float64)
        scores = heads @ heads.transpose(0, 2, 1) / np.sqrt(DIM)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = (weights @ heads).transpose(1, 0, 2).reshape(-1, WIDTH)
        y[image * TOKENS + np.flatnonzero(kept)] = mixed
    return y


@pytest.fixture(scope="module")
def engines():
    opened = {mode: OnnxRuntimeEngine(build(mode)) for mode in (*MODES, "single")}
    yield opened
    for engine in opened.values():
        engine.close()


def run(engine: OnnxRuntimeEngine, x: np.ndarray, decision: np.ndarray, margin: np.ndarray):
    feeds = {"x": x, "decision": decision, "margin": margin}
    wanted = {spec.name for spec in engine.inputs()}
    outputs = engine.run({name: array for name, array in feeds.items() if name in wanted})
    return outputs["y"], outputs["keep"]


@settings(deadline=None, max_examples=60)
@given(masks=st.lists(MASK, min_size=1, max_size=4), seed=st.integers(0, 2**16))
@pytest.mark.parametrize("mode", MODES)
def test_only_kept_tokens_attend_and_change(engines, mode, masks, seed):
    check(engines[mode], masks, seed)


@settings(deadline=None, max_examples=60)
@given(mask=MASK, seed=st.integers(0, 2**16))
def test_so_do_those_of_a_graph_of_one_image(engines, mask, seed):
    check(engines["single"], [mask], seed)


def test_slots_are_what_a_graph_of_one_image_is_spared():
    operators = {
        mode: [node.op_type for node in onnx.load_from_string(build(mode)).graph.node]
        for mode in ("dynamic", "single")
    }
    assert "CumSum" in operators["dynamic"]
    assert "CumSum" not in operators["single"]
    assert len(operators["single"]) < len(operators["dynamic"]) - 15


def check(engine: OnnxRuntimeEngine, masks: list[list[bool]], seed: int) -> None:
    """Runs random rows, and compares them with what NumPy makes of them."""
    decision = np.array(masks)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((decision.size, WIDTH)).astype(np.float32)
    margin = np.where(decision, 1, -1) * rng.random(decision.shape).astype(np.float32)
    y, keep = run(engine, x, decision, margin.astype(np.float32))
    assert np.array_equal(keep, decision)
    np.testing.assert_allclose(y, expected(x, decision), atol=2e-6)
    pruned = ~decision.reshape(-1)
    assert np.array_equal(y[pruned], x[pruned])  # to the last bit


@pytest.mark.parametrize(("mode", "images"), [*((mode, 2) for mode in MODES), ("single", 1)])
def test_nothing_kept_is_the_identity(engines, mode, images):
    x = np.arange(images * TOKENS * WIDTH, dtype=np.float32).reshape(-1, WIDTH)
    nothing = np.zeros((images, TOKENS), bool)
    y, keep = run(engines[mode], x, nothing, np.full((images, TOKENS), -1, np.float32))
    assert np.array_equal(y, x)
    assert not keep.any()


def test_a_budget_prunes_the_lowest_margins_of_the_kept():
    margin = np.array([[0.5, 3.0, -1.0, 2.0, 1.0], [-1.0, -1.0, 0.1, -1.0, -1.0]], np.float32)
    decision = margin > 0
    x = np.random.default_rng(0).standard_normal((2 * TOKENS, WIDTH)).astype(np.float32)
    with OnnxRuntimeEngine(build("budget", budget=2)) as engine:
        y, keep = run(engine, x, decision, margin)
    assert keep.tolist() == [
        [False, True, False, True, False],
        [False, False, True, False, False],
    ]
    np.testing.assert_allclose(y, expected(x, keep), atol=2e-6)


def test_an_image_does_not_depend_on_its_batch(engines):
    rng = np.random.default_rng(3)
    decision = np.array([[True] * 5, [True, False, False, True, False], [False] * 5])
    x = rng.standard_normal((3 * TOKENS, WIDTH)).astype(np.float32)
    margin = np.where(decision, 1, -1).astype(np.float32)
    for mode in MODES:
        whole, _ = run(engines[mode], x, decision, margin)
        for image in range(3):
            rows = slice(image * TOKENS, (image + 1) * TOKENS)
            alone, _ = run(engines[mode], x[rows], decision[[image]], margin[[image]])
            np.testing.assert_allclose(alone, whole[rows], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_nan_leaves_the_others_alone(engines, mode):
    """Slots that a fuller image leaves empty in another repeat a token, which is its own."""
    rng = np.random.default_rng(4)
    decision = np.array([[True] * 5, [False, True, False, True, False], [True] * 5])
    x = rng.standard_normal((3 * TOKENS, WIDTH)).astype(np.float32)
    x[:TOKENS] = np.nan
    y, _ = run(engines[mode], x, decision, np.where(decision, 1, -1).astype(np.float32))
    found = slice(TOKENS, None)
    np.testing.assert_allclose(y[found], expected(x, decision)[found], atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", [0.02, 20.0])
def test_scores_far_apart(engines, mode, first):
    """Wherever the first token's score, which empty slots have too, is among those of its image."""
    rng = np.random.default_rng(5)
    decision = np.array([[True] * 5, [True, False, False, True, True]])
    x = 4 * rng.standard_normal((2 * TOKENS, WIDTH)).astype(np.float32)
    x[TOKENS] *= first
    y, _ = run(engines[mode], x, decision, np.where(decision, 1, -1).astype(np.float32))
    np.testing.assert_allclose(y, expected(x, decision), rtol=1e-3, atol=1e-4)
