"""A queue of images before an engine, run in batches of those that wait."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from svit_deploy.images.prepared import Prepared
from svit_deploy.serve.refusals import Busy, Refused, TooLarge, TooSlow

T = TypeVar("T")
Run = Callable[[Sequence[Prepared]], Sequence[T]]


@dataclass(frozen=True)
class Done(Generic[T]):
    """What came out for an image.

    Attributes:
        queue_seconds, engine_seconds: waited, and in the engine together with the batch.
        batch: images that were run together.
    """

    value: T
    queue_seconds: float
    engine_seconds: float
    batch: int


@dataclass(eq=False)
class Job(Generic[T]):
    """An image that waits."""

    image: Prepared
    future: Future[Done[T]] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


class Room:
    """How many images may wait for their answers; for one event loop.

    Attributes:
        held: those that do.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held, self.closed = most, 0, False

    def close(self) -> None:
        """Lets nobody in any more."""
        self.closed = True

    @contextmanager
    def of(self, images: int) -> Iterator[None]:
        """Room for images from their arrival until they are answered.

        Raises:
            Refused: there is none.
        """
        if self.closed:
            raise Refused("the model is being stopped", "try again")
        if images > self.most:
            raise TooLarge(
                f"a request of {images} images is larger than the queue of {self.most}",
                "send fewer at once",
            )
        if self.held + images > self.most:
            raise Busy(f"{self.held} images are waiting already", "try again later")
        self.held += images
        try:
            yield
        finally:
            self.held -= images


class Batcher(Generic[T]):
    """Runs images in a thread of its own, together with others of their size that wait.

    An image that comes alone waits `max_delay` for others; those that come while the engine runs
    share the next run. What nobody waits for any more is not run, nor what would be too late if it
    takes as long as the last run: else, under overload, each image would be run for a client that
    gives up just before its answer.

    Args:
        open_run: gives what runs images of one size; entered and left in the thread, because
            engines belong to the thread that opened them.
        max_batch: most images in a run.
        max_delay: seconds.
        timeout: seconds after which an answer is too late.
    """

    def __init__(
        self,
        open_run: Callable[[], AbstractContextManager[Run[T]]],
        *,
        max_batch: int,
        max_delay: float,
        timeout: float,
        name: str,
    ) -> None:
        self.max_batch, self.max_delay = max_batch, max_delay
        self.timeout = timeout
        self._last = 0.0
        self._jobs: deque[Job[T]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._opened: Future[None] = Future()
        self._open_run = open_run
        self._thread = threading.Thread(target=self._work, name=f"engine of {name}", daemon=True)

    def start(self) -> None:
        """Opens the engine; raises what that raises."""
        self._thread.start()
        self._opened.result()

    def close(self) -> None:
        """Lets images that have been submitted run, then frees the engine."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self) -> None:
        """Waits for the end that `close` asked for."""
        self._thread.join()

    def submit(self, images: Sequence[Prepared]) -> list[Future[Done[T]]]:
        """Puts images, for which there is room, in the queue."""
        jobs = [Job[T](image) for image in images]
        with self._changed:
            if self._closed:
                raise Refused("the model is being stopped", "try again")
            self._jobs += jobs
            self._changed.notify()
        return [job.future for job in jobs]

    def _work(self) -> None:
        try:
            with self._open_run() as run:
                self._opened.set_result(None)
                while batch := self._next():
                    self._run(run, batch)
        except BaseException as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    def _next(self) -> list[Job[T]]:
        """Those to run next; none at the end."""
        with self._changed:
            while True:
                while self._jobs and not self._is_wanted(self._jobs[0]):
                    self._jobs.popleft()
                if not self._jobs:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                first = self._jobs[0]
                alike = [job for job in self._jobs if job.image.size == first.image.size]
                left = first.since + self.max_delay - time.perf_counter()
                if len(alike) >= self.max_batch or left <= 0 or self._closed:
                    chosen = alike[: self.max_batch]
                    taken = set(chosen)
                    self._jobs = deque(job for job in self._jobs if job not in taken)
                    chosen = [job for job in chosen if job.future.set_running_or_notify_cancel()]
                    if chosen:
                        return chosen
                else:
                    self._changed.wait(left)

    def _is_wanted(self, job: Job[T]) -> bool:
        """Whether to run an image; one that would be too late is told so."""
        # A run that was slow once must not keep others from showing that it no longer is.
        expected = min(self._last, self.timeout / 2)
        if time.perf_counter() + expected <= job.since + self.timeout:
            return not job.future.cancelled()
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(
                TooSlow(f"no answer within {self.timeout:g} seconds", "try again later")
            )
        return False

    def _run(self, run: Run[T], jobs: list[Job[T]]) -> None:
        began = time.perf_counter()
        try:
            values = run([job.image for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:  # the others need not fail with the one that does
                self._run(run, [job])
            return
        self._last = seconds = time.perf_counter() - began
        for job, value in zip(jobs, values, strict=True):
            job.future.set_result(Done(value, began - job.since, seconds, len(jobs)))
