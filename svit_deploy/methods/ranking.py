"""What became of each token, for methods that fix how many remain: on what a run tells, in NumPy.

Positions count an image's tokens after its prefix, in the order they have by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from svit_deploy.methods.method import Values
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.result import Selected
from svit_deploy.names import decision_name, margin_name


def ranked_values(entering: Sequence[int], kept: Sequence[int]) -> Values:
    """`Method.values` where the tokens after the prefix are ranked and the first go on.

    Args:
        entering: tokens ranked at each selection.
        kept: of them, those that go on.
    """
    values: Values = {}
    for gate, (count, best) in enumerate(zip(entering, kept, strict=True)):
        values[margin_name(gate)] = (np.float32, (count,))
        values[decision_name(gate)] = (np.int64, (best,))
    return values


def decode_survivors(
    config: ModelConfig,
    values: Mapping[str, np.ndarray],
    batch: int,
    columns: int,
    added: Mapping[int, int] | None = None,
) -> Selected:
    """Follows tokens that are gone for good once they are not kept.

    Args:
        values: of `ranked_values`.
        columns: tokens to tell about.
        added: selection to the column of the token that is put at the end after it.
    """
    keep, margin = blank(config, batch, columns)
    prefix, images = config.prefix_tokens, np.arange(batch)[:, None]
    places = np.tile(np.arange(config.num_tokens), (batch, 1))
    for gate in range(config.num_gates):
        scores, positions = values[margin_name(gate)], values[decision_name(gate)]
        margin[images, gate, places[:, prefix:]] = scores
        chosen = np.take_along_axis(places[:, prefix:], positions, axis=1)
        places = np.concatenate([places[:, :prefix], chosen], axis=1)
        keep[images, gate, places] = True
        if added and gate in added:
            new = np.full((batch, 1), added[gate])
            places = np.concatenate([places, new], axis=1)
    return Selected(keep, margin)


def merge_parts(parts: np.ndarray, gone: np.ndarray, into: np.ndarray) -> np.ndarray:
    """The token that each of `[B, S]` is part of, after the tokens `gone` merged `into` others.

    Args:
        parts: the same before.
        gone, into: `[B, M]`.
    """
    renamed = np.tile(np.arange(parts.shape[1]), (len(parts), 1))
    np.put_along_axis(renamed, gone, into, axis=1)
    return np.take_along_axis(renamed, parts, axis=1)


def blank(config: ModelConfig, batch: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep mask and margins where nothing is kept but the prefix, and no other token is there."""
    keep = np.zeros((batch, config.num_gates, columns), bool)
    margin = np.full(keep.shape, -np.inf, np.float32)
    keep[:, :, : config.prefix_tokens] = True
    margin[:, :, : config.prefix_tokens] = np.inf
    return keep, margin
