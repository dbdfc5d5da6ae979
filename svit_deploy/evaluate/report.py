"""What an evaluation saw, as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from svit_deploy import __version__
from svit_deploy.bundle import Bundle
from svit_deploy.inference.stream import Seen
from svit_deploy.machine.environment import describe_environment
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.counts import kept_counts
from svit_deploy.tasks.runs import Judgement
from svit_deploy.tasks.scores import Measure

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class GateKeep:
    """What one gate kept.

    Attributes:
        keep_ratio: kept / the tokens that it decides on, mean over the images.
        kept_tokens: those that are always kept included, mean over the images.
    """

    gate: int
    block: int
    keep_ratio: float
    kept_tokens: float


class Kept(NamedTuple):
    """What gates kept of an image: its share and number of tokens by gate `[G]`, of how many."""

    ratios: np.ndarray
    tokens: np.ndarray
    of: int
    overflows: bool


def kept_of(seen: Seen, config: ModelConfig) -> Kept | None:
    """None where the graph does not tell."""
    if seen.keep_mask is None or not config.num_gates:
        return None
    config = config.at(seen.image.size)
    gated = np.array([config.gated_tokens(gate) for gate in range(config.num_gates)])
    ratios = kept_counts(seen.keep_mask[None], config)[0] / gated
    overflows = seen.overflow is not None and bool(seen.overflow.any())
    return Kept(ratios, seen.keep_mask.sum(axis=1), config.num_tokens, overflows)


class KeptTokens:
    """Collects what gates kept, image by image."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.images = self.overflowing = 0
        self._ratios, self._kept = np.zeros((2, config.num_gates))
        self._tokens = 0

    def add(self, kept: Kept | None) -> None:
        if kept is None:
            return
        self.images += 1
        self._ratios += kept.ratios
        self._kept += kept.tokens
        self._tokens += kept.of
        self.overflowing += kept.overflows

    @property
    def gates(self) -> list[GateKeep]:
        """Of each gate; empty where none shows what it keeps."""
        if not self.images:
            return []
        means = zip(
            self.config.gate_blocks,
            (self._ratios / self.images).tolist(),
            (self._kept / self.images).tolist(),
            strict=True,
        )
        return [GateKeep(gate, *mean) for gate, mean in enumerate(means)]

    @property
    def tokens(self) -> float | None:
        """Tokens of an image, in the mean."""
        return self._tokens / self.images if self.images else None

    @property
    def kept_tokens(self) -> float | None:
        """Tokens that a gated block computes of an image, in the mean over gates and images."""
        return float(self._kept.mean() / self.images) if self.images else None


@dataclass
class Evaluation:
    """How good a bundle is on some images.

    Attributes:
        told: how it is known what is right, in words.
        images: that were run.
        measures: how good it is, with intervals.
        broken: images whose outputs are not finite; they count as wrong.
        skipped: names of pictures that could not be read, and why.
        recorded: how many of the images the export recorded, and what is said of both sides on
            them; None where it recorded none of them.
        seconds: from the first picture read to the last output.
        engine_seconds: of them those in which the model ran.
    """

    bundle: Bundle
    told: str
    engine: dict[str, Any]
    batch: int
    seed: int
    images: int
    measures: list[Measure]
    kept: KeptTokens
    broken: int
    skipped: list[tuple[str, str]]
    recorded: tuple[int, Judgement] | None
    seconds: float
    engine_seconds: float
    notes: list[str] = field(default_factory=list)

    @property
    def images_per_s(self) -> float:
        """With reading the pictures, and without loading the model."""
        return self.images / self.seconds

    @property
    def engine_images_per_s(self) -> float:
        """While the model runs."""
        return self.images / self.engine_seconds

    def results(self) -> dict[str, Any]:
        """JSON-able."""
        kept, recorded = self.kept, self.recorded
        return {
            "images": self.images,
            "labels": self.told,
            "measures": {
                one.key: {"value": one.value, "low": one.low, "high": one.high}
                for one in self.measures
            },
            "gates": [asdict(gate) for gate in kept.gates],
            "tokens": kept.tokens,
            "mean_kept_tokens": kept.kept_tokens,
            "overflowing_images": kept.overflowing if self.bundle.budgets else None,
            "not_finite_images": self.broken,
            "recorded": recorded and {"images": recorded[0], **recorded[1].results},
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "seconds": self.seconds,
            "images_per_s": self.images_per_s,
            "engine_images_per_s": self.engine_images_per_s,
            "notes": self.notes,
        }

    def to_dict(self, command: list[str] | None = None) -> dict[str, Any]:
        """JSON-able record."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "svit-deploy", "version": __version__},
            "command": command or [],
            "inputs": [{"name": self.bundle.name, "model_sha256": self.bundle.model_sha256}],
            "environment": describe_environment(),
            "settings": {
                "engine": self.engine,
                "batch": self.batch,
                "confidence": 0.95,
                "seed": self.seed,
            },
            "results": self.results(),
        }
