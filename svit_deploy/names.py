"""Names that others rely on: values of graphs, for `verify`, `bench` and users; the manifest."""

from __future__ import annotations

INPUT, LOGITS, KEEP_MASK, MARGIN, OVERFLOW = "images", "logits", "keep_mask", "margin", "overflow"
SOURCE, EMBEDDING = "source", "embedding"

MANIFEST = "manifest.json"
"""By it a folder is a bundle."""


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
    """The graph's value that tells the token which each leaving one merges into."""
    return f"gate_{gate}.target"


def lead_name(gate: int) -> str:
    """The lead of the nearest token over the next; only the reference computes it."""
    return f"gate_{gate}.lead"


def packed_name(block: int, part: str) -> str:
    """A value that attention without padding reads or writes in a gated block, with plugins.

    Rows `[T, C]` of the kept tokens: `query`, `key`, `value` and `mixed`, attention's result;
    and `lengths` `[B + 1]` int32, the kept tokens of all images before each.
    """
    return f"block_{block}.{part}"
