"""What a run computed, the graph's or the reference's: one type for every model and task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

Outputs = dict[str, np.ndarray]
"""What came out for one image, by name, as its task reads it."""


@dataclass(frozen=True)
class Selected:
    """What the tokens of each image became, selection by selection.

    Attributes:
        keep_mask: `[n, G, S]` bool, S the tokens of the image and any that the method adds.
        margin: `[n, G, S]` float32, what they are ranked by: +inf for tokens that are always
            kept, -inf for those that are no longer there.
        source: `[n, G, S]` int64, the token that each is part of afterwards, itself if it was
            neither merged nor pruned; None where nothing is merged.
        lead: `[n, G, S]` float32, by how much the token that each merges into is nearer than the
            next, infinite for those that do not merge; None where the reference alone knows.
        overflow: `[n, G]` int64, kept tokens beyond the budget; None where nothing tells.
    """

    keep_mask: np.ndarray
    margin: np.ndarray
    source: np.ndarray | None = None
    lead: np.ndarray | None = None
    overflow: np.ndarray | None = None

    @classmethod
    def nothing(cls, images: int, tokens: int) -> Selected:
        """Of a model without gates: G is 0."""
        empty = np.zeros((images, 0, tokens), np.float32)
        return cls(empty.astype(bool), empty)

    @property
    def decisions(self) -> np.ndarray:
        """What of a run must agree `[n, G, S]`: what was kept, or what became of each token."""
        return self.keep_mask if self.source is None else self.source

    def __getitem__(self, images: slice | np.ndarray) -> Selected:
        arrays = {name: value[images] for name, value in self._known().items()}
        return replace(self, **arrays)

    @classmethod
    def concatenate(cls, parts: Sequence[Selected]) -> Selected:
        """Of images with as many tokens each."""
        known = parts[0]._known()
        return cls(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in known})

    def _known(self) -> dict[str, np.ndarray]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Result:
    """What a run computed of some images of one size.

    Attributes:
        outputs: image by image.
        selected: which tokens were kept.
        values: the decisions as the graph holds them (`Method.values`), `[n, ...]` by name.
        stages: if asked for, what each stage gave, by the name of the graph's value: tokens
            `[n, T, C]`, NaN where a token is gone, or maps `[n, C, h, w]`.
    """

    outputs: list[Outputs]
    selected: Selected
    values: dict[str, np.ndarray] = field(default_factory=dict)
    stages: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.outputs)

    def __getitem__(self, images: slice | np.ndarray) -> Result:
        numbers = np.arange(len(self))[images]
        return Result(
            [self.outputs[number] for number in numbers],
            self.selected[images],
            {name: value[images] for name, value in self.values.items()},
            {name: value[images] for name, value in self.stages.items()},
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Result]) -> Result:
        """Of images of one size."""
        first = parts[0]
        return cls(
            [outputs for part in parts for outputs in part.outputs],
            Selected.concatenate([part.selected for part in parts]),
            {n: np.concatenate([part.values[n] for part in parts]) for n in first.values},
            {n: np.concatenate([part.stages[n] for part in parts]) for n in first.stages},
        )


def stack(outputs: Sequence[Outputs], name: str) -> np.ndarray:
    """One output of several images `[n, ...]`."""
    return np.stack([output[name] for output in outputs])
