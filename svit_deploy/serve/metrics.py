"""What a server tells Prometheus beside KServe's own metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from prometheus_client import Counter, Gauge, Histogram

from svit_deploy.bundle import Bundle
from svit_deploy.inference.stream import Seen
from svit_deploy.serve.batcher import Done
from svit_deploy.serve.drift import Drift

log = logging.getLogger(__name__)

MODEL, GATE = ("model_name",), ("model_name", "gate")
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
IMAGES = Counter("svit_images", "Images answered", MODEL)
REFUSED = Counter("svit_refused", "Requests refused or failed", (*MODEL, "reason"))
WAITING = Gauge("svit_queue_images", "Images that are not answered yet", MODEL)
QUEUE = Histogram("svit_queue_seconds", "What images waited", MODEL, buckets=SECONDS)
ENGINE = Histogram("svit_engine_seconds", "What their runs took", MODEL, buckets=SECONDS)
BUSY = Counter("svit_engine_busy_seconds", "Time in the engine", MODEL)
BATCH = Histogram(
    "svit_batch_images", "Images that theirs were run with", MODEL, buckets=(1, 2, 4, 8, 16, 32, 64)
)
KEPT = Counter("svit_kept_tokens", "Tokens that each gate kept", GATE)
OFFERED = Counter("svit_tokens", "Tokens of the images that each gate saw", GATE)
RATIO = Histogram(
    "svit_keep_ratio", "Share of tokens kept", GATE, buckets=[i / 10 for i in range(1, 11)]
)
DRIFT = Gauge(
    "svit_keep_ratio_drift", "Population stability index against the export's samples", GATE
)
DRIFTED = Gauge("svit_keep_ratio_drifted", "1 where it is beyond its limit", GATE)
OVERFLOW = Counter("svit_overflow_tokens", "Tokens beyond the budgets", GATE)
OVERFLOWED = Counter("svit_overflow_images", "Images with tokens beyond the budgets", GATE)
EVERY = 50
"""Images after which drift is looked at."""


class Counted(NamedTuple):
    """What is counted of an image.

    Attributes:
        keep_mask, overflow: as in `Seen`.
        queue_seconds, engine_seconds, batch: as in `Done`.
    """

    keep_mask: np.ndarray | None
    overflow: np.ndarray | None
    queue_seconds: float
    engine_seconds: float
    batch: int

    @classmethod
    def of(cls, seen: Seen, done: Done[Any]) -> Counted:
        times = (done.queue_seconds, done.engine_seconds, done.batch)
        return cls(seen.keep_mask, seen.overflow, *times)


class ModelMetrics:
    """Counts what a model does.

    Args:
        waiting: tells how many images are not answered yet.
    """

    def __init__(
        self, name: str, bundle: Bundle, threshold: float, waiting: Callable[[], int]
    ) -> None:
        self.name = name
        self.drift = _drift_of(bundle, threshold)
        self._drifted = np.zeros(bundle.config.num_gates, bool)
        WAITING.labels(name).set_function(waiting)
        IMAGES.labels(name)
        if self.drift is not None:
            self._tell_drift(self.drift)

    def count(self, images: Sequence[Counted]) -> None:
        """Images that were answered."""
        IMAGES.labels(self.name).inc(len(images))
        for one in images:
            QUEUE.labels(self.name).observe(one.queue_seconds)
            ENGINE.labels(self.name).observe(one.engine_seconds)
            BUSY.labels(self.name).inc(one.engine_seconds / one.batch)
            BATCH.labels(self.name).observe(one.batch)
            if one.keep_mask is not None:
                self._count_kept(one.keep_mask)
            overflow = [] if one.overflow is None else one.overflow.tolist()
            for gate, beyond in enumerate(overflow):
                OVERFLOW.labels(self.name, gate).inc(beyond)
                OVERFLOWED.labels(self.name, gate).inc(beyond > 0)

    def refuse(self, reason: str) -> None:
        REFUSED.labels(self.name, reason).inc()

    def _count_kept(self, keep_mask: np.ndarray) -> None:
        ratios = keep_mask.mean(axis=1)
        for gate, (mask, ratio) in enumerate(zip(keep_mask, ratios, strict=True)):
            KEPT.labels(self.name, gate).inc(int(mask.sum()))
            OFFERED.labels(self.name, gate).inc(mask.size)
            RATIO.labels(self.name, gate).observe(float(ratio))
        if self.drift is not None:
            self.drift.add(ratios)
            if self.drift.images % EVERY == 0:
                self._tell_drift(self.drift)

    def _tell_drift(self, drift: Drift) -> None:
        index, limit = drift.index(), drift.limit()
        drifted = index > limit
        for gate, (value, is_beyond) in enumerate(zip(index, drifted, strict=True)):
            DRIFT.labels(self.name, gate).set(float(value))
            DRIFTED.labels(self.name, gate).set(int(is_beyond))
        for gate in np.flatnonzero(drifted & ~self._drifted).tolist():
            log.warning(
                "%s: gate %d keeps other shares of tokens than of the export's samples "
                "(population stability index %.2f, limit %.2f, last %d images)",
                *(self.name, gate, index[gate], limit, drift.compared),
            )
        self._drifted = drifted


def _drift_of(bundle: Bundle, threshold: float) -> Drift | None:
    """None where the graph does not tell what it kept."""
    if not bundle.has_gate_outputs:
        return None
    ratios = [
        mask[:, : bundle.config.at(image.size).num_tokens].mean(axis=1)
        for part in bundle.load_samples()
        for image, mask in zip(part.images, part.result.selected.keep_mask, strict=True)
    ]
    return Drift(np.array(ratios), threshold)
