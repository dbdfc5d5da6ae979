"""Attention without padding: each image's kept rows attend to each other where they lie.

The graph of a `dynamic` model lays the rows out as `[B, Kmax]` slots for attention, which costs
as much as the fullest image for every image. Newer releases have attention on packed rows
`[T, H, D]` with cumulative counts. It has no ONNX operator, so the graph names its tensors and
the padded attention between them is replaced after parsing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from svit_deploy.machine.tensorrt import Library


def has_packed_attention(library: Library) -> bool:
    """Whether the network API has it; a kernel for this GPU is another question."""
    return (
        library.member("AttentionIOForm", "PACKED_NHD") is not None
        and hasattr(library.trt.INetworkDefinition, "add_attention_v2")
        and hasattr(library.trt.IAttention, "query_lengths")
    )


def pack_attention(library: Library, network: Any, num_heads: int) -> int:
    """Replaces the padded attention of every block that names its packed tensors.

    A block has `block_{i}.query`, `.key`, `.value` and `.mixed` `[T, C]`, and `.lengths` `[B + 1]`
    int32: rows of the images so far, from 0 to T.

    Returns:
        How many blocks were changed; 0 where the library has no such attention.
    """
    if num_heads < 1 or not has_packed_attention(library):
        return 0
    tensors = {tensor.name: tensor for tensor in _outputs(network)}
    changed: dict[str, Any] = {}
    for mixed in [name for name in tensors if name.endswith(".mixed")]:
        block = mixed.removesuffix(".mixed")
        names = [f"{block}.{part}" for part in ("query", "key", "value", "lengths")]
        if all(name in tensors for name in names):
            found = (tensors[name] for name in names)
            changed[mixed] = _attend(library, network, num_heads, *found)
    for layer in _layers(network):
        for position in range(layer.num_inputs):
            tensor = layer.get_input(position)
            if tensor is not None and tensor.name in changed:
                layer.set_input(position, changed[tensor.name])
    return len(changed)


def _attend(
    library: Library, network: Any, heads: int, query: Any, key: Any, value: Any, lengths: Any
) -> Any:
    """Adds attention on rows `[T, C]`; returns its rows `[T, C]`."""
    trt = library.trt
    width = query.shape[-1]
    head_dim = width // heads
    split = [_reshape(network, rows, (-1, heads, head_dim)) for rows in (query, key, value)]
    scale = network.add_constant((1, 1, 1), _scale(head_dim)).get_output(0)
    if query.dtype != scale.dtype:
        scale = network.add_cast(scale, query.dtype).get_output(0)
    product = trt.ElementWiseOperation.PROD
    split[0] = network.add_elementwise(split[0], scale, product).get_output(0)
    attention = network.add_attention_v2(
        *split, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
    )
    packed = trt.AttentionIOForm.PACKED_NHD
    attention.query_form = attention.key_value_form = packed
    attention.query_lengths = attention.key_value_lengths = lengths
    attention.decomposable = True
    return _reshape(network, attention.get_output(0), (-1, width))


@functools.cache
def _scale(head_dim: int) -> np.ndarray:
    """Kept for good: the network refers to the array's memory until it is built."""
    return np.full(1, head_dim**-0.5, np.float32)


def _reshape(network: Any, tensor: Any, shape: tuple[int, ...]) -> Any:
    layer = network.add_shuffle(tensor)
    layer.reshape_dims = shape
    return layer.get_output(0)


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(number) for number in range(network.num_layers))


def _outputs(network: Any) -> Iterator[Any]:
    return itertools.chain.from_iterable(
        (layer.get_output(number) for number in range(layer.num_outputs))
        for layer in _layers(network)
    )
