"""Faults in what every Vision Transformer has: embedding, blocks, head."""

from __future__ import annotations

import math

import numpy as np
import onnx

from mutation.fault import Change, Fault, generator, of_block, weights_of_block
from mutation.graph import Graph, Steps
from svit_deploy import names

FLOAT16 = onnx.TensorProto.FLOAT16


# --- numerics ----------------------------------------------------------------------------------


def epsilon(scope: str, factor: float) -> Change:
    def change(graph: Graph) -> None:
        node = graph.node("LayerNormalization", scope)
        graph.set_attribute(node, "epsilon", graph.attribute(node, "epsilon") * factor)

    return change


def tanh_gelu(scope: str) -> Change:
    return lambda g: g.set_attribute(g.node("Gelu", scope), "approximate", "tanh")


def softmax_axis(block: int) -> Change:
    return lambda g: g.set_attribute(g.node("Softmax", f"block_{block}"), "axis", -2)


def attention_scale(block: int, factor: float) -> Change:
    """The scale of the queries times a factor; without a scale if that is infinite."""

    def change(graph: Graph) -> None:
        node = graph.node("Mul", f"block_{block}/attention")
        scale = graph.constant(node.input[1])
        assert scale is not None and scale.size == 1
        graph.set_input(node, 1, 1.0 if math.isinf(factor) else scale * factor)

    return change


def softmax_in_half(block: int) -> Change:
    """Scores rounded to eleven bits before their softmax."""

    def rounded(steps: Steps, scores: str) -> str:
        return steps.op("Cast", steps.op("Cast", scores, to=FLOAT16), to=onnx.TensorProto.FLOAT)

    return lambda g: g.replace_input(g.node("Softmax", f"block_{block}"), 0, rounded)


def clipped(block: int, bound: float) -> Change:
    """Hidden activations of an MLP cut off, as a badly calibrated quantiser does."""

    def change(graph: Graph) -> None:
        node, position = of_block(graph, block, "mlp.fc2.weight")
        like = node.input[position]
        graph.replace_input(node, 0, lambda s, hidden: s.op("Min", hidden, s.number(bound, like)))

    return change


def int8_activations(block: int) -> Change:
    """Hidden activations of an MLP rounded to 1/16."""

    def change(graph: Graph) -> None:
        node, _ = of_block(graph, block, "mlp.fc2.weight")
        like = node.input[1]

        def rounded(steps: Steps, hidden: str) -> str:
            sixteen = steps.number(16.0, like)
            return steps.op("Div", steps.op("Round", steps.op("Mul", hidden, sixteen)), sixteen)

        graph.replace_input(node, 0, rounded)

    return change


# --- weights -----------------------------------------------------------------------------------


def int8(weights: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Symmetric int8: 127 steps to the largest value, of all or of each row."""
    largest = np.abs(weights).max(axis=axis, keepdims=axis is not None)
    step = np.maximum(largest, 1e-30) / 127
    return np.round(weights / step) * step


def fc2_in_int8(block: int, rows: bool = False) -> Change:
    def change(graph: Graph) -> None:
        axis = 1 if rows else None
        graph.change_input(*of_block(graph, block, "mlp.fc2.weight"), lambda w: int8(w, axis))

    return change


def fewer_bits(block: int) -> Change:
    """All of a block's weights with the mantissa of the next smaller type."""
    bits = {"fp32": 10, "fp16": 7, "bf16": 3}

    def change(graph: Graph) -> None:
        kept = bits[graph.bundle.precision] + 1

        def narrow(weights: np.ndarray) -> np.ndarray:
            mantissa, exponent = np.frexp(weights)
            return np.ldexp(np.round(mantissa * 2.0**kept) / 2.0**kept, exponent)

        for node, position in weights_of_block(graph, block):
            graph.change_input(node, position, narrow)

    return change


def fc1_row(block: int, factor: float) -> Change:
    """One row of fc1 scaled, the one whose unit weighs most."""

    def change(graph: Graph) -> None:
        second = graph.constant(of_block(graph, block, "mlp.fc2.weight")[0].input[1])
        assert second is not None
        unit = int(np.linalg.norm(second, axis=0).argmax())

        def scaled(weights: np.ndarray) -> np.ndarray:
            weights[unit] *= factor
            return weights

        graph.change_input(*of_block(graph, block, "mlp.fc1.weight"), scaled)

    return change


def weight_noise(block: int, share: float) -> Change:
    def change(graph: Graph) -> None:
        rng = generator()
        for node, position in weights_of_block(graph, block):
            graph.change_input(
                node, position, lambda w: w * (1 + share * rng.standard_normal(w.shape))
            )

    return change


def queries_for_keys(block: int) -> Change:
    """Queries' weights where keys' should be, and the reverse."""

    def change(graph: Graph) -> None:
        query, _ = of_block(graph, block, "attn.q.weight")
        key, _ = of_block(graph, block, "attn.k.weight")
        for position in range(1, len(query.input)):
            first, second = query.input[position], key.input[position]
            graph.rewire(query, position, second)
            graph.rewire(key, position, first)

    return change


def without_bias(part: str) -> Change:
    return lambda g: g.change_weight(part, np.zeros_like)


def block_without_bias(block: int, part: str) -> Change:
    return lambda g: g.change_input(*of_block(g, block, part), np.zeros_like)


def of_the_next_block(block: int, part: str) -> Change:
    def change(graph: Graph) -> None:
        node, position = of_block(graph, block, part)
        other, _ = of_block(graph, block + 1, part)
        graph.rewire(node, position, other.input[position])

    return change


def transposed(block: int, part: str) -> Change:
    return lambda g: g.change_input(*of_block(g, block, part), np.transpose)


def heads_exchanged(block: int) -> Change:
    """The first two heads' values change places behind attention."""

    def change(graph: Graph) -> None:
        def exchanged(weights: np.ndarray) -> np.ndarray:
            size = weights.shape[1] // graph.config.num_heads
            order = np.arange(weights.shape[1])
            order[: 2 * size] = np.roll(order[: 2 * size], size)
            return weights[:, order]

        graph.change_input(*of_block(graph, block, "attn.proj.weight"), exchanged)

    return change


# --- structure ---------------------------------------------------------------------------------


def without_shortcut(block: int, half: str) -> Change:
    """What a half block computes is not added to its input."""

    def change(graph: Graph) -> None:
        scope = f"block_{block}/{half}"
        adds = [n for n in graph.nodes if n.op_type == "Add" and n.name.startswith(scope + "/")]
        node = adds[-1]
        skipped = node.input[0]

        def nothing(steps: Steps, value: str) -> str:
            return steps.op("Sub", value, value)

        assert skipped != node.input[1]
        graph.replace_input(node, 0, nothing)

    return change


def norm_skipped(block: int) -> Change:
    """The second LayerNorm neither shifts nor scales."""

    def change(graph: Graph) -> None:
        node = graph.node("LayerNormalization", f"block_{block}/mlp")
        graph.set_input(node, 1, np.ones_like(graph.constant(node.input[1])))
        graph.set_input(node, 2, np.zeros_like(graph.constant(node.input[2])))

    return change


# --- embedding and head ------------------------------------------------------------------------


def positions(change: str) -> Change:
    def shifted(table: np.ndarray) -> np.ndarray:
        if change == "shifted":
            return np.roll(table, 1, axis=1)
        if change == "two exchanged":
            table[:, [4, 5]] = table[:, [5, 4]]
            return table
        side = math.isqrt(table.shape[1])
        grid = table.reshape(1, side, side, -1)
        return grid[:, ::-1].reshape(table.shape)

    return lambda g: g.change_weight("patch_positions", shifted)


def class_token_without_position(graph: Graph) -> None:
    graph.change_weight("prefix_tokens", lambda table: table * 0.98)


def colours_turned(graph: Graph) -> None:
    name = "patch_embed.proj.weight"

    def turned(weights: np.ndarray) -> np.ndarray:  # bfloat16's are flat
        return weights.reshape(len(weights), 3, -1)[:, ::-1]

    graph.change_weight(name, turned)


def other_statistics(graph: Graph) -> None:
    """Half and half folded into the first layer where ImageNet's are undone."""
    factor = np.array([0.229, 0.224, 0.225]) / 0.5

    def scaled(weights: np.ndarray) -> np.ndarray:
        return weights.reshape(len(weights), 3, -1) * factor[:, None]

    graph.change_weight("patch_embed.proj.weight", scaled)


def next_token_for_the_class_token(graph: Graph) -> None:
    graph.set_input(graph.node("Gather", "head"), 1, 1)


def one_patch_left_out(graph: Graph) -> None:
    """The first patch is embedded twice, the second is lost."""

    def repeated(steps: Steps, patches: str) -> str:
        count = graph.config.num_patches
        return steps.op("Gather", patches, steps.constant([0, 0, *range(2, count)]), axis=1)

    node = graph.reader("patch_positions")
    graph.replace_input(node, 1 - list(node.input).index("patch_positions"), repeated)


def class_exchanged(graph: Graph) -> None:
    def exchanged(values: np.ndarray) -> np.ndarray:
        return values[[1, 0, *range(2, len(values))]]

    for part in ("weight", "bias"):
        graph.change_weight(f"head.{part}", exchanged)


def logits_scaled(graph: Graph) -> None:
    graph.replace(
        names.LOGITS,
        lambda steps, logits: steps.op("Mul", logits, steps.number(1.01, names.LOGITS)),
    )


DEIT, SVIT = "deit/dense", "svit_cls/dynamic"
FAULTS = (
    Fault("epsilon of a block's norm", epsilon("block_2/attention", 10), (DEIT, "lvvit/dense")),
    Fault("epsilon of a gated block's norm", epsilon("block_5/mlp", 0.1), (SVIT, "digits/dynamic")),
    Fault("epsilon of the final norm", epsilon("head", 10), (DEIT, "stvitr/static")),
    Fault("GELU by tanh", tanh_gelu("block_4/mlp"), (SVIT, "evit_fuse/static", "digits/dynamic")),
    Fault(
        "GELU by tanh in an adapter's block", tanh_gelu("block_1/mlp"), ("svit_adapter/dynamic",)
    ),
    Fault("softmax over the queries", softmax_axis(3), ("svit_cls/masked", "tome/static")),
    Fault("attention without its scale", attention_scale(5, math.inf), ("lvvit/dense",)),
    Fault("attention scale 1 % off", attention_scale(2, 1.01), (DEIT, "dynamicvit/static")),
    Fault("softmax of scores in half", softmax_in_half(1), (DEIT,)),
    Fault("activations cut off", clipped(3, 2.0), (DEIT, "evovit/static")),
    Fault("activations in 1/16", int8_activations(4), (DEIT, "svit_cls/budget")),
    Fault("fc2 in int8", fc2_in_int8(5), (SVIT, "deit_distilled/dense", "digits/dynamic")),
    Fault("fc2 in int8, row by row", fc2_in_int8(5, rows=True), (DEIT, "lvvit/dense")),
    Fault("a block's weights in fewer bits", fewer_bits(6), (DEIT, "tome/static", "stvitr/static")),
    Fault("fc1 row times 1.1", fc1_row(4, 1.1), (SVIT, DEIT, "digits/dynamic")),
    Fault("1 % noise in a block", weight_noise(5, 0.01), (SVIT, "evovit/static", "digits/dynamic")),
    Fault("0.1 % noise in a block", weight_noise(5, 0.001), (DEIT,)),
    Fault("queries for keys", queries_for_keys(4), (DEIT, "svit_cls/budget", "ats/dynamic")),
    Fault(
        "no bias behind attention", block_without_bias(2, "attn.proj.bias"), (DEIT, "tome/static")
    ),
    Fault("no bias of keys", block_without_bias(5, "attn.k.bias"), ("evovit/static", SVIT)),
    Fault("fc2 of the next block", of_the_next_block(6, "mlp.fc2.weight"), (DEIT, "ats/dynamic")),
    Fault(
        "a square weight turned", transposed(1, "attn.v.weight"), (DEIT, "dynamicvit_lvvit/static")
    ),
    Fault("heads exchanged", heads_exchanged(3), (DEIT, "svit_cls_224/dynamic")),
    Fault("a shortcut missing", without_shortcut(4, "mlp"), ("lvvit/dense",)),
    Fault("a norm that does nothing", norm_skipped(3), ("evit_nofuse/static",)),
    Fault("positions shifted", positions("shifted"), (DEIT, "dynamicvit/static")),
    Fault("positions upside down", positions("upside down"), ("svit_cls_empty_gate/budget",)),
    Fault("two positions exchanged", positions("two exchanged"), ("deit_distilled/dense",)),
    Fault("class token 2 % smaller", class_token_without_position, (DEIT, "evit_fuse/static")),
    Fault("blue for red", colours_turned, ("dynamicvit/static", "svit_adapter/dynamic")),
    Fault("other statistics folded in", other_statistics, (DEIT,)),
    Fault("a patch left out", one_patch_left_out, (DEIT,)),
    Fault(
        "a patch for the class token", next_token_for_the_class_token, (SVIT, "evit_fuse/static")
    ),
    Fault("head without bias", without_bias("head.bias"), (DEIT, "evovit/static")),
    Fault("second head without bias", without_bias("head_dist.bias"), ("deit_distilled/dense",)),
    Fault("two classes exchanged", class_exchanged, ("dynamicvit/static",)),
    Fault("logits 1 % larger", logits_scaled, ("svit_cls/hidden", "stvitr/static")),
)
