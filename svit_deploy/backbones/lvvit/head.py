"""LV-ViT's head: the class token's logits and, by half, the best of any patch's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.backbones.heads import Head
from svit_deploy.backbones.tokens import GraphTokens
from svit_deploy.graph.builder import INT64_MAX

if TYPE_CHECKING:
    from torch import Tensor


def _graph(tokens: GraphTokens, rows: str, count: int | str) -> str:
    graph, layers = tokens.graph, tokens.writer.layers
    norm = layers.layer_norm(rows, "norm", tokens.config.norm_eps)
    split = graph.reshape(norm, -1, count, tokens.config.embed_dim)
    first = graph.op("Gather", split, graph.constant(0), axis=1)
    logits = layers.exact_linear(first, "head")
    dense = graph.reshape(
        layers.exact_linear(norm, "aux_head"), -1, count, tokens.config.num_classes
    )
    best = graph.op("ReduceMax", graph.slice(dense, 1, INT64_MAX), graph.constant([1]), keepdims=0)
    return graph.op("Add", logits, graph.op("Mul", best, graph.constant(0.5, np.float32)))


def _reference(reference: Any, x: Tensor) -> Tensor:
    x = reference.norm(x, "norm", reference.norm_eps)
    best = reference.exact_linear(x[:, 1:], "aux_head").amax(dim=1)
    logits: Tensor = reference.exact_linear(x[:, 0], "head") + 0.5 * best
    return logits


DENSE_LABELS = Head(_graph, _reference)
