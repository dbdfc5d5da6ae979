"""Attention in groups: that of each group by itself, computed in float64."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.graph.builder import FLOAT, GraphBuilder
from svit_deploy.graph.check import finish
from svit_deploy.graph.groups import Groups, attend_in_groups

STAGE = SimpleNamespace(heads=2, width=6)
QUERIES = Groups(np.array([[3, 0, 4], [1, 4, 2]]), 5)
"""Of five tokens, the last stands in two groups and is no result."""
KEYS = Groups(np.array([[0, 1, 2, 3], [5, 3, 1, 0]]), 6)


def attend(queries, keys, values, bias):
    """`[K, C]`, `[K', C]` twice, `[H, K, K']` -> `[K, C]`."""
    query, key, value = (x.reshape(len(x), STAGE.heads, -1) for x in (queries, keys, values))
    scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(query.shape[-1]) + bias
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, value).reshape(len(query), -1)


def test_each_group_attends_to_its_own_tokens():
    rng = np.random.default_rng(2)
    tokens = (QUERIES.tokens, KEYS.tokens, KEYS.tokens)
    query, key, value = (rng.standard_normal((3, count, STAGE.width)) for count in tokens)
    bias = rng.standard_normal((2, STAGE.heads, 3, 4))
    graph = GraphBuilder("groups", 20)
    names = tuple(graph.input(name, FLOAT, ("rows", STAGE.width)) for name in "qkv")
    found = attend_in_groups(graph, names, QUERIES, KEYS, STAGE, 4, graph.number(bias))
    graph.output(graph.rename(found, "found"), FLOAT, ("results", STAGE.width))
    model = finish(graph.model(), {}, "0")
    feeds = dict(zip(names, (x.reshape(-1, STAGE.width) for x in (query, key, value)), strict=True))
    with OnnxRuntimeEngine(model.SerializeToString(), threads=1) as engine:
        actual = engine.run({name: x.astype(np.float32) for name, x in feeds.items()})["found"]
    expected = np.zeros((3, 4, STAGE.width))
    for image in range(3):
        for group, (own, seen) in enumerate(zip(QUERIES.places, KEYS.places, strict=True)):
            mixed = attend(query[image, own], key[image, seen], value[image, seen], bias[group])
            shown = own < 4
            expected[image, own[shown]] = mixed[shown]
    np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=0, atol=1e-5)
