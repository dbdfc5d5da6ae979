"""Names of graph values that `verify`, `bench` and users may rely on."""

from __future__ import annotations

INPUT, LOGITS, KEEP_MASK, MARGIN, OVERFLOW = "images", "logits", "keep_mask", "margin", "overflow"
SOURCE, EMBEDDING = "source", "embedding"


def block_name(block: int) -> str:
    """The graph's value `[B * S, C]` after a block, counted from 0."""
    return f"block_{block}.out"


def margin_name(gate: int) -> str:
    """The graph's value `[B, S]`: keep logit minus prune logit; +inf where always kept."""
    return f"gate_{gate}.margin"


def decision_name(gate: int) -> str:
    """The graph's value `[B, S]` bool: margin > threshold, before any budget."""
    return f"gate_{gate}.decision"


def threshold_name(gate: int) -> str:
    """The graph's scalar initializer that a margin must exceed."""
    return f"gate_{gate}.threshold"


def target_name(gate: int) -> str:
    """The graph's value that says into which token each one that goes is merged."""
    return f"gate_{gate}.target"


def lead_name(gate: int) -> str:
    """What only the reference tells: by how much that token is nearer than the next."""
    return f"gate_{gate}.lead"


def packed_name(block: int, part: str) -> str:
    """What attention without padding reads and writes in a gated block of a graph with plugins.

    Rows `[T, C]` of the kept tokens: `query`, `key`, `value` and `mixed`, attention's result;
    and `lengths` `[B + 1]` int32, the kept tokens of all images before each.
    """
    return f"block_{block}.{part}"
