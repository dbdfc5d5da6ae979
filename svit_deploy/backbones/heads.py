"""Classification heads, each in graphs and in the plain PyTorch forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from svit_deploy.backbones.tokens import GraphTokens
from svit_deploy.names import LOGITS

if TYPE_CHECKING:
    from torch import Tensor

Classify = Callable[[Any, "Tensor"], "Tensor"]


@dataclass(frozen=True)
class Head:
    """From the tokens that the last block gave to logits.

    Attributes:
        graph: the tokens, and the rows and their count that `for_head` gives -> the graph's value
            `[B, classes]`, not yet named.
        reference: a backbone's reference and its tokens `[B, T, C]` -> `[B, classes]`.
    """

    graph: Callable[[GraphTokens, str, int | str], str]
    reference: Classify

    def write(self, tokens: GraphTokens) -> str:
        """The logits, under their name."""
        rows, count = tokens.for_head()
        with tokens.graph.scope("head"):
            logits = self.graph(tokens, rows, count)
        return tokens.graph.rename(logits, LOGITS)


def _class_token_graph(tokens: GraphTokens, rows: str, count: int | str) -> str:
    config, graph, layers = tokens.config, tokens.graph, tokens.writer.layers
    split = graph.reshape(rows, -1, count, config.embed_dim)
    logits = []
    for position, head in enumerate(("head", "head_dist")[: config.prefix_tokens]):
        token = graph.op("Gather", split, graph.constant(position), axis=1)
        norm = layers.layer_norm(token, "norm", config.norm_eps)
        logits.append(layers.exact_linear(norm, head))
    if config.distilled:
        both = graph.op("Add", *logits)
        logits = [graph.op("Mul", both, graph.constant(0.5, np.float32))]
    return logits[0]


def _class_token_reference(reference: Any, x: Tensor) -> Tensor:
    x = reference.norm(x, "norm", reference.norm_eps)
    logits = reference.exact_linear(x[:, 0], "head")
    if reference.config.distilled:
        logits = (logits + reference.exact_linear(x[:, 1], "head_dist")) / 2
    return logits


def mean_head(name: str) -> Head:
    """Final norm, the mean of all tokens, a linear layer of that name."""

    def graph(tokens: GraphTokens, rows: str, count: int | str) -> str:
        graph, layers = tokens.graph, tokens.writer.layers
        norm = layers.layer_norm(rows, "norm", tokens.config.norm_eps)
        norm = graph.reshape(norm, -1, count, layers.weights["norm.weight"].size)
        mean = graph.op("ReduceMean", norm, graph.constant([1]), keepdims=0)
        return layers.exact_linear(mean, name)

    def reference(backbone: Any, x: Tensor) -> Tensor:
        mean = backbone.norm(x, "norm", backbone.norm_eps).mean(dim=1)
        return cast("Tensor", backbone.exact_linear(mean, name))

    return Head(graph, reference)


def _patch_mean_graph(tokens: GraphTokens, rows: str, count: int | str) -> str:
    config, graph, layers = tokens.config, tokens.graph, tokens.writer.layers
    width = layers.weights["norm.weight"].size
    x = graph.to_float32(graph.reshape(rows, -1, count, width))
    if config.prefix_tokens:
        x = graph.slice(x, config.prefix_tokens, config.num_tokens)
    mean = graph.op("ReduceMean", x, graph.constant([1]), keepdims=0)
    norm = layers.layer_norm(mean, "norm", config.norm_eps)
    return layers.exact_linear(norm, "head")


def _patch_mean_reference(reference: Any, x: Tensor) -> Tensor:
    patches = x[:, reference.config.prefix_tokens :]
    x = reference.norm(patches.mean(dim=1), "norm", reference.norm_eps)
    return reference.exact_linear(x, "head")


CLASS_TOKEN = Head(_class_token_graph, _class_token_reference)
"""Final norm, then a linear layer on the class token; a distilled model averages two."""
MEAN = mean_head("head")
"""Final norm, the mean of all tokens, a linear layer."""
PATCH_MEAN = Head(_patch_mean_graph, _patch_mean_reference)
"""The mean of all patches, then norm and linear layer."""
