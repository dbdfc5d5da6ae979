"""The rules by which gates decide on margins, in the plain PyTorch forward."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Decide = Callable[[int, Tensor], Tensor]
"""Gate number and margins `[B, S]` -> tokens to keep `[B, S]` bool."""


def keep_above(thresholds: Sequence[float]) -> Decide:
    """The deterministic rule: keep iff margin > threshold, a tie is pruned."""
    return lambda gate, margin: margin > torch.tensor(thresholds[gate], dtype=torch.float32)


def keep_forced(keep_mask: np.ndarray) -> Decide:
    """The given masks `[B, G, S]`, whatever the margins say."""
    forced = torch.from_numpy(np.ascontiguousarray(keep_mask))
    return lambda gate, margin: forced[:, gate]


def keep_budget(decide: Decide, rows: Sequence[int] | np.ndarray | None) -> Decide:
    """At most `rows[gate]` tokens per image, always-kept ones included; lowest margins go first.

    Without `rows` there is no budget.
    """
    if rows is None or not len(rows):
        return decide

    def decide_within(gate: int, margin: Tensor) -> Tensor:
        keep = decide(gate, margin)
        order = margin.masked_fill(~keep, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1]).expand_as(order)
        )
        return keep & (rank < rows[gate])

    return decide_within


def keep_all(gate: int, margin: Tensor) -> Tensor:
    return torch.ones_like(margin, dtype=torch.bool)


def keep_none(gate: int, margin: Tensor) -> Tensor:
    """Only what a gate may not prune."""
    return torch.isposinf(margin)


def drive(steps: Generator[tuple[int, Tensor], Tensor, Any], decide: Decide) -> Any:
    """Runs a forward pass to its end with one rule for every gate."""
    try:
        gate, margin = next(steps)
        while True:
            gate, margin = steps.send(decide(gate, margin))
    except StopIteration as finished:
        return finished.value
