"""The queue before an engine: batches, order, sizes, limits, failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import pytest

from svit_deploy.images.prepared import Prepared
from svit_deploy.serve.batcher import Batcher, Done, Room
from svit_deploy.serve.refusals import Busy, Refused, TooLarge, TooSlow


def image(value: float, side: int = 1) -> Prepared:
    return Prepared.whole(np.full((3, side, side), value, np.float32))


class Engine:
    """Doubles; waits until it is let go, and fails at 13."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.go = threading.Event()
        self.go.set()
        self.began = threading.Event()
        self.closed = False

    @contextmanager
    def open(self) -> Iterator[object]:
        yield self.run
        self.closed = True

    def run(self, images: Sequence[Prepared]) -> list[float]:
        values = [float(one.pixels[0, 0, 0]) for one in images]
        self.batches.append(values)
        self.began.set()
        assert self.go.wait(10)
        if 13 in values:
            raise ValueError("13")
        assert len({one.size for one in images}) == 1
        return [2 * value for value in values]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@contextmanager
def batching(engine: Engine, **limits: float) -> Iterator[Batcher[float]]:
    chosen = {"max_batch": 4, "max_delay": 0.0, "timeout": 60.0} | limits
    batcher: Batcher[float] = Batcher(engine.open, name="test", **chosen)
    batcher.start()
    yield batcher
    engine.go.set()
    batcher.close()
    batcher.join()
    assert engine.closed


def busy(engine: Engine, batcher: Batcher[float]) -> list[Future[Done[float]]]:
    """A batch of one that keeps the engine busy until it is let go."""
    engine.go.clear()
    engine.began.clear()
    futures = batcher.submit([image(0)])
    assert engine.began.wait(10)
    return futures


def values(futures: Sequence[Future[Done[float]]]) -> list[float]:
    return [future.result(10).value for future in futures]


def test_what_waits_runs_together_in_order(engine: Engine) -> None:
    with batching(engine) as batcher:
        first = busy(engine, batcher)
        others = [future for n in range(1, 7) for future in batcher.submit([image(n)])]
        engine.go.set()
        assert values(first + others) == [0, 2, 4, 6, 8, 10, 12]
        assert engine.batches == [[0], [1, 2, 3, 4], [5, 6]]
        assert [future.result().batch for future in others] == [4, 4, 4, 4, 2, 2]


def test_a_batch_has_one_size_and_others_are_not_lost(engine: Engine) -> None:
    with batching(engine) as batcher:
        first = busy(engine, batcher)
        others = batcher.submit([image(1), image(2, side=2), image(3), image(4, side=2)])
        engine.go.set()
        assert values(first + others) == [0, 2, 4, 6, 8]
        assert engine.batches == [[0], [1, 3], [2, 4]]


def test_an_image_waits_for_others_until_the_batch_is_full(engine: Engine) -> None:
    with batching(engine, max_delay=60.0) as batcher:
        futures = batcher.submit([image(1), image(2), image(3)])
        assert not futures[0].done()
        assert values(futures + batcher.submit([image(4)])) == [2, 4, 6, 8]
        assert engine.batches == [[1, 2, 3, 4]]


def test_an_image_waits_no_longer_than_it_should(engine: Engine) -> None:
    with batching(engine, max_delay=0.05) as batcher:
        (done,) = [future.result(10) for future in batcher.submit([image(1)])]
        assert done.queue_seconds >= 0.05
        assert engine.batches == [[1]]


def test_what_nobody_waits_for_is_not_run(engine: Engine) -> None:
    with batching(engine) as batcher:
        first = busy(engine, batcher)
        others = batcher.submit([image(1), image(2), image(3)])
        assert others[0].cancel() and others[2].cancel()
        engine.go.set()
        assert values([*first, others[1]]) == [0, 4]
        assert engine.batches == [[0], [2]]


def test_an_image_that_fails_takes_no_other_with_it(engine: Engine) -> None:
    with batching(engine) as batcher:
        first = busy(engine, batcher)
        others = batcher.submit([image(1), image(13), image(3)])
        engine.go.set()
        assert values([*first, others[0], others[2]]) == [0, 2, 6]
        with pytest.raises(ValueError, match="13"):
            others[1].result(10)


def test_room_is_limited_and_given_back() -> None:
    room = Room(3)
    with room.of(2):
        with pytest.raises(Busy, match="2 images are waiting already"), room.of(2):
            pass
        with room.of(1):
            assert room.held == 3
    assert room.held == 0
    with pytest.raises(TooLarge, match="larger than the queue of 3"), room.of(4):
        pass
    room.close()
    with pytest.raises(Refused, match="being stopped"), room.of(1):
        pass


def test_closing_runs_what_was_taken_in_and_takes_no_more(engine: Engine) -> None:
    with batching(engine, max_delay=60.0) as batcher:
        futures = batcher.submit([image(1)])
        batcher.close()
        assert values(futures) == [2]
        with pytest.raises(Refused, match="being stopped"):
            batcher.submit([image(2)])


def test_an_engine_that_does_not_open_is_told_at_the_start() -> None:
    @contextmanager
    def broken() -> Iterator[object]:
        raise OSError("no engine")
        yield

    limits = {"max_batch": 1, "max_delay": 0.0, "timeout": 1.0}
    batcher: Batcher[float] = Batcher(broken, name="broken", **limits)
    with pytest.raises(OSError, match="no engine"):
        batcher.start()


def test_what_would_be_too_late_makes_room_for_what_is_not(engine: Engine) -> None:
    with batching(engine, max_batch=1, timeout=1.0) as batcher:
        first = busy(engine, batcher)
        late = batcher.submit([image(1)])
        time.sleep(0.8)  # the engine is slow: its next run would end after the limit
        timely = batcher.submit([image(2)])
        engine.go.set()
        assert values(first + timely) == [0, 4]
        with pytest.raises(TooSlow, match="no answer within 1 seconds"):
            late[0].result(10)
        assert engine.batches == [[0], [2]]
