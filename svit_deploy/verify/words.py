"""Counts of things in words."""

from __future__ import annotations

from collections.abc import Sequence

from svit_deploy.verify.decisions import GateFlips


def number_of(count: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def decisions_in_words(flips: Sequence[GateFlips]) -> str:
    """How far decisions agree whose differences rounding explains."""
    ties = sum(flip.near_ties for flip in flips)
    later = sum(flip.consequences for flip in flips)
    if not ties:
        return "identical"
    words = f"identical but for {number_of(ties, 'near-tie flip')}"
    if later:
        words += f" and {number_of(later, 'decision')} after {'it' if ties == 1 else 'them'}"
    return words
