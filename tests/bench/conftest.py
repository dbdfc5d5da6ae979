"""Engines that cost what they are told to, on a clock that only they advance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from svit_deploy.bench.report import BenchReport
from svit_deploy.bench.run import run_bench
from svit_deploy.bench.settings import BenchSettings, BenchTarget
from svit_deploy.engines.base import Engine, Flight, NodeTime, RunTimes, TensorSpec

TOKENS = 10
LOAD_NS = 50_000_000
Cost = Callable[[float], float]  # milliseconds by mean kept tokens


@dataclass
class World:
    """A clock, and everything that happened: `(engine, image numbers, outputs asked for)`."""

    now_ns: int = 0
    runs: list[tuple[str, list[int], tuple[str, ...]]] = field(default_factory=list)
    open: set[str] = field(default_factory=set)

    def clock(self) -> int:
        return self.now_ns

    def target(
        self,
        label: str,
        cost_ms: Cost,
        count: int = 20,
        times: RunTimes | None = None,
        about: dict[str, Any] | None = None,
        overlap: float | None = None,
        nodes: Sequence[NodeTime] = (),
        **options: Any,
    ) -> BenchTarget:
        """A model without content, unless the options say otherwise.

        Args:
            times, about: what its engine tells of its last run and of itself.
            nodes: what its profiler tells, if it has one.
            overlap: how many times more runs it does where several are in flight, if it can.
        """
        more = {"times": times, "about": about or {}, "overlap": overlap, "nodes": nodes}
        values = np.arange(count, dtype=np.float32)
        return BenchTarget(
            **{
                "label": label,
                "engine_factory": lambda: FakeEngine(self, label, cost_ms, **more),
                "content_dependent": False,
                "input_name": "x",
                "inputs": values[:, None, None, None] * np.ones((1, 3, 2, 2), np.float32),
                **options,
            }
        )

    def dense(self, cost_ms: Cost = lambda kept: 10, **options: Any) -> BenchTarget:
        return self.target(**{"label": "dense", "cost_ms": cost_ms, **options})

    def pruned(self, cost_ms: Cost = lambda kept: 4 + kept) -> BenchTarget:
        forced = {"worst-case": TOKENS, "keep=0.2": 2, "keep=0.5": 5, "keep=0.8": 8}
        return self.target(
            "pruned",
            cost_ms,
            content_dependent=True,
            keep_output="keep_mask",
            variants={
                name: lambda name=name, kept=kept: FakeEngine(self, name, cost_ms, kept)
                for name, kept in forced.items()
            },
        )

    def bench(self, *targets: BenchTarget, progress=None, **settings: Any) -> BenchReport:
        """Runs 20 blocks of 2 at batch 1, without warm-up, worst case or sweep, unless told."""
        short = {"warmup_s": 0, "duration_s": 0, "min_samples": 40, "worst_case": False}
        options = {} if progress is None else {"progress": progress}
        if settings.pop("sweep", False):
            settings["sweep_tokens"] = Path("sweep.png")
        return run_bench(targets, BenchSettings(**short | settings), clock=self.clock, **options)


@dataclass
class FakeEngine(Engine):
    """Image i is filled with i and keeps `i % TOKENS` of the tokens at both gates, or `kept`."""

    world: World
    name: str
    cost_ms: Cost
    kept: int | None = None
    times: RunTimes | None = None
    about: dict[str, Any] = field(default_factory=dict)
    overlap: float | None = None
    nodes: Sequence[NodeTime] = ()

    def __post_init__(self):
        self.world.open.add(self.name)
        self.world.now_ns += LOAD_NS

    def inputs(self):
        return (TensorSpec("x", np.dtype("float32"), ("B", 3, 2, 2)),)

    def outputs(self):
        return (
            TensorSpec("logits", np.dtype("float32"), ("B", 4)),
            TensorSpec("keep_mask", np.dtype("bool"), ("B", 2, TOKENS)),
        )

    def fly(self, feeds, outputs, runs, in_flight):
        if self.overlap is None:
            return None
        seconds = runs * self.cost_ms(0) / 1e3 / self.overlap
        self.world.runs.append((f"{self.name} in flight", [runs, in_flight], tuple(outputs)))
        return Flight(in_flight, runs, seconds, 3.0)

    @property
    def description(self):
        return {"runtime": "fake", **self.about}

    @property
    def last_times(self):
        return self.times

    @property
    def nvidia_gpu(self):
        return 0 if "gpu" in self.about else None

    def profile(self, feeds, outputs):
        if not self.nodes:
            return None
        self.world.runs.append((f"{self.name} profiled", [len(feeds)], tuple(outputs)))
        return list(self.nodes)

    def run(self, feeds, outputs=None):
        assert self.name in self.world.open
        images = feeds["x"][:, 0, 0, 0].astype(int)
        kept = images % TOKENS if self.kept is None else np.full(len(images), self.kept)
        self.world.runs.append((self.name, images.tolist(), tuple(outputs)))
        self.world.now_ns += int(self.cost_ms(kept.mean()) * 1e6)
        mask = np.arange(TOKENS) < kept[:, None, None] + np.zeros((1, 2, 1))
        return {"keep_mask": mask} if "keep_mask" in outputs else {}

    def close(self):
        self.world.open.discard(self.name)


@pytest.fixture
def world() -> World:
    return World()
