"""Engines that cost what they are told to, on a clock that only they advance."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from svit_deploy.bench import BenchReport, BenchSettings, BenchTarget, run_bench
from svit_deploy.engines.base import Engine, TensorSpec

MS = 1_000_000
TOKENS = 10


@dataclass
class World:
    """A clock, and everything that happened: `(engine, image numbers, outputs asked for)`."""

    now_ns: int = 0
    runs: list[tuple[str, list[int], tuple[str, ...]]] = field(default_factory=list)
    open: set[str] = field(default_factory=set)

    def clock(self) -> int:
        return self.now_ns


@dataclass
class FakeEngine(Engine):
    """Image i is filled with i and keeps `i % TOKENS` of the tokens at both gates, or `kept`."""

    world: World
    name: str
    cost_ms: Callable[[float], float]
    kept: int | None = None

    def __post_init__(self):
        self.world.open.add(self.name)
        self.world.now_ns += 50 * MS

    def inputs(self):
        return (TensorSpec("x", np.dtype("float32"), ("B", 3, 2, 2)),)

    def outputs(self):
        return (
            TensorSpec("logits", np.dtype("float32"), ("B", 4)),
            TensorSpec("keep_mask", np.dtype("bool"), ("B", 2, TOKENS)),
        )

    @property
    def description(self):
        return {"runtime": "fake"}

    def run(self, feeds, outputs=None):
        assert self.name in self.world.open
        images = feeds["x"][:, 0, 0, 0].astype(int)
        kept = images % TOKENS if self.kept is None else np.full(len(images), self.kept)
        self.world.runs.append((self.name, images.tolist(), tuple(outputs)))
        self.world.now_ns += int(self.cost_ms(kept.mean()) * MS)
        mask = np.arange(TOKENS) < kept[:, None, None] + np.zeros((1, 2, 1))
        return {"keep_mask": mask} if "keep_mask" in outputs else {}

    def close(self):
        self.world.open.discard(self.name)


def images(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 2, 2), "f")


def dense(
    world: World,
    cost_ms: Callable[[float], float] = lambda kept: 10,
    count: int = 20,
    label: str = "dense",
) -> BenchTarget:
    return BenchTarget(label, lambda: FakeEngine(world, label, cost_ms), False, "x", images(count))


def pruned(world: World, cost_ms: Callable[[float], float] = lambda kept: 4 + kept) -> BenchTarget:
    forced = {"worst-case": TOKENS, "keep=0.2": 2, "keep=0.5": 5, "keep=0.8": 8}
    return BenchTarget(
        "pruned",
        lambda: FakeEngine(world, "pruned", cost_ms),
        True,
        "x",
        images(20),
        keep_output="keep_mask",
        variants={
            name: lambda name=name, kept=kept: FakeEngine(world, name, cost_ms, kept)
            for name, kept in forced.items()
        },
    )


SHORT = {"warmup_s": 0, "duration_s": 0, "min_samples": 40, "worst_case": False}


def bench(world: World, *targets: BenchTarget, **settings) -> BenchReport:
    return run_bench(targets, BenchSettings(**SHORT | settings), clock=world.clock)
