"""Packed tokens: rows of kept tokens alone, and how they attend to each other by image."""

from __future__ import annotations

from dataclasses import dataclass, field

from svit_deploy.graph.builder import INT64, GraphBuilder
from svit_deploy.graph.layers import MASKED, QKV, attend_heads
from svit_deploy.graph.rows import compact_rows, gather_rows, true_positions

FAINT = -32.0
"""Added to the score of a copy of a key that is there: thousands of them weigh less than 1e-10 of
it, nothing in float32."""


@dataclass(frozen=True)
class TokenGrid:
    """Tokens per image S, a number or an int64 vector, and the head layout of attention.

    With `single` there is never more than one image.
    """

    num_tokens: int | str
    num_heads: int
    head_dim: int
    single: bool = False


def key_bias(graph: GraphBuilder, visible: str, otherwise: float | None = None) -> str:
    """`[B, K]` bool -> `[B, 1, 1, K]`: 0 for a visible key, by default `MASKED` for any other."""
    zero, masked = graph.number(0), graph.number(MASKED if otherwise is None else otherwise)
    return graph.op("Unsqueeze", graph.op("Where", visible, zero, masked), graph.constant([1, 2]))


@dataclass(frozen=True)
class Packed:
    """Where the tokens of one image's mask `[1, S]` are when they are packed into T rows.

    Linear layers see exactly T rows, and so does attention. T may be 0.

    Attributes:
        rows: `[T]`, flat positions in the mask.
        bias: `[B, 1, 1, Kmax]`, for the scores of keys; None if no key is hidden.
        lengths: `[B + 1]` int32, tokens of all images before each; None of a single image.
    """

    graph: GraphBuilder
    grid: TokenGrid
    rows: str
    bias: str | None = field(default=None, kw_only=True)
    lengths: str | None = field(default=None, kw_only=True)

    @property
    def firsts(self) -> str:
        """The rows of the first token of each image `[B]`."""
        return self.graph.constant([0])

    def split_heads(self, rows: str) -> str:
        """`[T, C]` -> `[B, H, Kmax, D]`."""
        split = self.graph.reshape(rows, 1, -1, self.grid.num_heads, self.grid.head_dim)
        return self.graph.op("Transpose", split, perm=(0, 2, 1, 3))

    def join_heads(self, mixed: str) -> str:
        """`[B, H, Kmax, D]` -> `[T, C]`."""
        mixed = self.graph.op("Transpose", mixed, perm=(0, 2, 1, 3))
        return self.of_rows(mixed, self.grid.num_heads * self.grid.head_dim)

    def of_rows(self, values: str, *width: int) -> str:
        """What the slots `[B, Kmax, *width]` of the packed rows hold, `[T, *width]`."""
        return self.graph.reshape(values, -1, *width)

    def attend(self, qkv: QKV, keys: Packed | None = None) -> str:
        """Attention of these tokens, to each other or to those packed in `keys`."""
        graph, keys = self.graph, keys or self
        query, key, value = qkv
        query, key, value = (
            self.split_heads(query),
            keys.split_heads(key),
            keys.split_heads(value),
        )
        key = graph.op("Transpose", key, perm=(0, 1, 3, 2))
        return self.join_heads(
            attend_heads(graph, query, key, value, self.grid.head_dim, keys.bias)
        )


@dataclass(frozen=True)
class PackedBatch(Packed):
    """The same of a batch's masks `[B, S]`.

    For attention the rows are laid out as `[B, Kmax]` slots, and gathered back. T and Kmax may be
    0. An empty slot repeats the first token of its image, and its score is lower by `FAINT`: it
    cannot weigh, whatever the scores are, and no exponential underflows, which takes processors
    many times as long.

    Attributes:
        places: `[T]`, flat slots.
        head_table: `[B, H, Kmax]`, the head's row of each slot among `[T * H, D]`.
    """

    places: str
    head_table: str

    @property
    def firsts(self) -> str:
        assert self.lengths is not None
        return self.graph.slice(self.lengths, 0, -1, axis=0)

    def split_heads(self, rows: str) -> str:
        split = self.graph.reshape(rows, -1, self.grid.head_dim)
        return gather_rows(self.graph, split, self.head_table)

    def of_rows(self, values: str, *width: int) -> str:
        return gather_rows(self.graph, self.graph.reshape(values, -1, *width), self.places)


def pack(graph: GraphBuilder, grid: TokenGrid, mask: str) -> Packed:
    """Packs the tokens of a mask `[B, S]`."""
    if grid.single and not graph.plugins:
        return Packed(graph, grid, true_positions(graph, mask))
    rows, slots, places, lengths, *_ = graph.function(
        "SvitCompact", compact_rows, mask, outputs=7, index_bits=64
    )
    filled = graph.op("GreaterOrEqual", slots, graph.constant(0))  # [B, Kmax]
    bias = None if grid.single else key_bias(graph, filled, FAINT)
    # Behind images of no tokens there may be none: any row then, whose result nobody reads.
    first = graph.op("Cast", graph.slice(lengths, 0, -1, axis=0), to=INT64)
    first = graph.op("Min", first, graph.op("Sub", graph.shape(rows, 0), graph.constant([1])))
    # The row in each slot.
    table = graph.op("Where", filled, slots, graph.op("Unsqueeze", first, graph.constant([1])))
    heads = grid.num_heads
    # Rows of D values, one per row and head: moving those splits the heads in the same pass.
    head_numbers = graph.constant([[[head] for head in range(heads)]])  # [1, H, 1]
    first = graph.op(
        "Mul", graph.op("Unsqueeze", table, graph.constant([1])), graph.constant(heads)
    )
    head_table = graph.op("Add", first, head_numbers)
    return PackedBatch(graph, grid, rows, places, head_table, bias=bias, lengths=lengths)
