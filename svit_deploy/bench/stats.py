"""Statistics of latency samples: summaries, comparisons and fits. Pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

NO_DIFFERENCE = "no measurable difference"
# Loading the same model twice gives latencies up to this far apart (where its memory happens to
# lie), and no number of runs of one load averages that out.
RESOLUTION = 0.02
SEGMENTS = 40
MIN_BLOCKS = 6  # 2 * 0.5**6 = 3 %: with fewer, no range of the samples holds a median at 95 %


@dataclass(frozen=True)
class LatencySummary:
    """Latency of one engine. A percentile is None where the samples are too few to claim it.

    `cv` is the standard deviation over the mean; it holds the spread between images as well as
    the noise. `drift` is the median of the last third over that of the first third, minus 1.
    """

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    min_ms: float
    max_ms: float
    cv: float
    drift: float


@dataclass(frozen=True)
class RatioInterval:
    """How many times faster the candidate is than the baseline: above 1 is faster.

    The interval must lie beyond 1 by more than `RESOLUTION` to count as a difference.
    """

    ratio: float
    low: float
    high: float

    @property
    def no_measurable_difference(self) -> bool:
        return self.low <= 1 + RESOLUTION and self.high >= 1 / (1 + RESOLUTION)

    @property
    def verdict(self) -> str:
        if self.no_measurable_difference:
            return NO_DIFFERENCE
        return "faster" if self.low > 1 else "slower"


@cache
def percentile_floor(p: float) -> int:
    """Fewest samples for a claim about percentile `p`, in (0, 100): 11 for p50, 64 for p90,
    662 for p99.

    At least two samples must lie beyond the percentile with 99 % confidence: the smallest n with
    `P[Binomial(n, tail) <= 1] <= 0.01`. MLPerf Inference's early stopping uses the same rule.
    """
    if not 0 < p < 100:
        raise ValueError(f"percentile {p} is outside (0, 100)")
    tail = min(p, 100 - p) / 100
    count = 2
    while (1 - tail) ** (count - 1) * (1 + (count - 1) * tail) > 0.01:
        count += 1
    return count


def summarise(samples_ms: ArrayLike) -> LatencySummary:
    """Summarises latencies `[n]` in milliseconds, in the order they were taken.

    Raises:
        ValueError: no samples, or one that is not positive and finite.
    """
    samples = _positive(samples_ms).reshape(-1)
    third = max(1, samples.size // 3)
    mean = float(samples.mean())
    return LatencySummary(
        count=samples.size,
        mean_ms=mean,
        p50_ms=float(np.median(samples)),
        p90_ms=_percentile(samples, 90),
        p99_ms=_percentile(samples, 99),
        min_ms=float(samples.min()),
        max_ms=float(samples.max()),
        cv=float(samples.std() / mean),
        drift=float(np.median(samples[-third:]) / np.median(samples[:third]) - 1),
    )


def repeat_cv(samples_ms: ArrayLike) -> float:
    """Spread between runs on the same images, over the mean: noise without the content.

    Args:
        samples_ms: latencies `[blocks, runs]`, two or more runs; those of a block had the same
            images.
    """
    samples = _positive(samples_ms)
    return float(np.sqrt(samples.var(axis=1, ddof=1).mean()) / samples.mean())


def ratio_interval(
    baseline_ms: ArrayLike,
    candidate_ms: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> RatioInterval:
    """Speed-up of a candidate: the ratio of medians, with a paired bootstrap interval.

    Segments of consecutive blocks are drawn with replacement, the same ones for both sides: what
    slowed a whole block (a hot machine, a hard image) does not count as a difference, and what
    slowed many in a row counts as one event, not as many. The interval is taken on the logarithm:
    swapping the two sides gives the reciprocal.

    Args:
        baseline_ms, candidate_ms: latencies `[blocks, runs]`, or `[n]` for pairs; row i of both
            was measured in the same block. At least `MIN_BLOCKS` rows.

    Raises:
        ValueError: too few blocks, different numbers of them, or samples that are not positive.
    """
    baseline, candidate = _positive(baseline_ms), _positive(candidate_ms)
    blocks = len(baseline)
    if len(candidate) != blocks or blocks < MIN_BLOCKS:
        raise ValueError(f"{blocks} and {len(candidate)} blocks; both need {MIN_BLOCKS} or more")
    ratio = float(np.median(baseline) / np.median(candidate))
    segments = np.array_split(np.arange(blocks), min(blocks, SEGMENTS))
    rng = np.random.default_rng(seed)
    logs = np.empty(resamples)
    for i in range(resamples):
        choice = rng.integers(len(segments), size=len(segments))
        drawn = np.concatenate([segments[j] for j in choice])
        logs[i] = np.log(np.median(baseline[drawn]) / np.median(candidate[drawn]))
    tail = (1 - confidence) / 2
    low, high = np.exp(np.quantile(logs, [tail, 1 - tail]))
    return RatioInterval(ratio, min(float(low), ratio), max(float(high), ratio))


def fit_latency(kept: ArrayLike, ms: ArrayLike) -> tuple[float, float]:
    """Least-squares line `ms = a + b * kept` through points `[n]`; returns `(a, b)`.

    Points that share one `kept` have no slope: b is 0 and a the mean.
    """
    x, y = np.asarray(kept, dtype=np.float64), np.asarray(ms, dtype=np.float64)
    if x.shape != y.shape or not x.size:
        raise ValueError(f"cannot fit {x.size} kept ratios to {y.size} latencies")
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread if spread else 0.0
    return float(y.mean() - slope * x.mean()), slope


def _percentile(samples: np.ndarray, p: float) -> float | None:
    return float(np.percentile(samples, p)) if samples.size >= percentile_floor(p) else None


def _positive(samples_ms: ArrayLike) -> np.ndarray:
    samples = np.asarray(samples_ms, dtype=np.float64)
    if not samples.size or not np.isfinite(samples).all() or samples.min() <= 0:
        raise ValueError("latencies must be positive and finite, at least one of them")
    return samples
