"""How far an exported model may be from the reference before it is refused.

One table for code and docs (docs/verify.md shows it and the measurements behind it).
"""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.model.precision import FORMATS


@dataclass(frozen=True)
class Limits:
    """Largest accepted differences for one precision, whatever the task.

    Errors of tokens are those of `distance.token_error`; those of margins are in units of
    max(1, rms of the gate's margins).

    Attributes:
        embedding: token error after the patch embedding.
        block: token error of a block by itself, run on the reference's tokens and keep mask.
        margin: error of a gate's margins by itself, run on the reference's tokens.
        head: error of the logits by themselves, run on the reference's tokens.
        logits: error of the logits of the whole model, where its keep masks are the reference's.
        rounding: how far rounding in all stages before it may move a margin. Decisions that flip
            nearer than this to their cut are near ties.
        turned: largest share of decisions that may flip, near ties or not, beside a handful.
        top1: smallest share of images whose top-1 class agrees.
    """

    embedding: float
    block: float
    margin: float
    head: float
    logits: float
    rounding: float
    turned: float
    top1: float


LIMITS = {
    "fp32": Limits(
        embedding=1e-4,
        block=1e-5,
        margin=2e-5,
        head=3e-5,
        logits=1e-4,
        rounding=2e-4,
        turned=1e-3,
        top1=0.995,
    ),
    "fp16": Limits(
        embedding=4e-2,
        block=1e-2,
        margin=2e-5,  # gates and head compute in float32
        head=3e-5,
        logits=5e-2,
        rounding=1e-1,
        turned=5e-3,
        top1=0.99,
    ),
    "bf16": Limits(
        embedding=3e-1,
        block=6e-2,
        margin=2e-5,
        head=3e-5,
        logits=3e-1,
        rounding=7e-1,
        turned=3e-2,
        top1=0.98,
    ),
    **dict.fromkeys(  # the two move things alike
        FORMATS,
        Limits(
            embedding=1e-4,  # float32, as gates and head
            block=3e-1,
            margin=2e-5,
            head=3e-5,
            logits=1.0,
            rounding=1.0,
            turned=3e-2,
            top1=0.98,
        ),
    ),
}
