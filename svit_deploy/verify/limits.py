"""How far an exported model may be from the reference before it is refused.

One table for code and docs (docs/verify.md shows it and the measurements behind it).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Largest accepted differences for one precision.

    Attributes:
        token: relative error of a token in a feature map (`compare.token_error`), with the
            reference's masks forced.
        margin: absolute error of a gate's margin, in units of max(1, rms of that gate's
            margins). A margin nearer than this to its threshold may fall either way.
        logits: absolute error of a logit, in units of max(1, rms of the logits).
        top1: smallest share of images whose top-1 class agrees.
    """

    token: float
    margin: float
    logits: float
    top1: float


LIMITS = {"fp32": Limits(token=5e-5, margin=5e-5, logits=5e-5, top1=0.995)}
