"""Runs of a model on a GPU: one after another, or several in flight."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Generic

import numpy as np

from svit_deploy.engines.arrays import Feed
from svit_deploy.engines.base import Flight, RunTimes
from svit_deploy.engines.device.cuda import Cuda, Event
from svit_deploy.engines.device.graphs import CudaGraphs
from svit_deploy.engines.device.slot import ProgramT, Slot


class DeviceRuns(Generic[ProgramT]):
    """Runs go one after another in one `Slot`; only `fly` has several.

    Args:
        make_slot: see `Slot` for what it may raise; the first is made at once.
    """

    def __init__(self, cuda: Cuda, make_slot: Callable[[], Slot[ProgramT]]) -> None:
        self._cuda, self._make_slot = cuda, make_slot
        self._slots = [make_slot()]

    @property
    def program(self) -> ProgramT:
        return self._slots[0].program

    @property
    def graphs(self) -> CudaGraphs:
        return self._slots[0].graphs

    @property
    def times(self) -> RunTimes | None:
        """Where the time of the last run went; None before the first, and after `close`."""
        return self._slots[0].times if self._slots else None

    def run(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str], kept: Collection[str] = ()
    ) -> dict[str, Feed]:
        """Runs once; what is kept stays on the device until the next run."""
        self._cuda.use()
        self._slots[0].start(feeds, outputs, kept)
        return self._slots[0].finish()

    def fly(
        self,
        feeds: Sequence[Mapping[str, np.ndarray]],
        outputs: Sequence[str],
        runs: int,
        in_flight: int,
    ) -> Flight:
        """See `Engine.fly`."""
        self._cuda.use()
        while len(self._slots) < in_flight:
            self._slots.append(self._make_slot())
        slots = self._slots[:in_flight]
        for slot in slots:  # bindings and graphs are made before the clock starts
            for feed in (feeds[0], feeds[-1]):
                slot.start(feed, outputs)
                slot.finish()
        with contextlib.ExitStack() as made:
            for slot in slots:
                made.callback(slot.abandon)
            first, *last = (
                made.enter_context(contextlib.closing(Event(self._cuda)))
                for _ in range(1 + in_flight)
            )
            began = time.perf_counter()
            slots[0].record(first)
            for number in range(runs):
                slot = slots[number % in_flight]
                if slot.is_running:
                    slot.finish()
                slot.start(feeds[number % len(feeds)], outputs)
            left = [slots[number % in_flight] for number in range(max(0, runs - in_flight), runs)]
            for slot, event in zip(left, last, strict=False):
                slot.record(event)
                slot.finish()
            seconds = time.perf_counter() - began
            device_ms = max(event.since(first) for event in last[: len(left)])
        return Flight(in_flight, runs, seconds, device_ms / runs)

    def close(self) -> None:
        for slot in self._slots:
            slot.close()
        self._slots.clear()
