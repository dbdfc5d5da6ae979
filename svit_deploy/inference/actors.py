"""A job on Ray: one engine per actor, each given some items at a time, results in order.

Ray Data is not used: it cuts its batches out of blocks of its own, and what a gate decides near a
tie may depend on the batch. Here the items are cut where the job itself would begin a new batch, so
that results are those of one process to the last bit, whoever does them and however often.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NamedTuple

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from svit_deploy.errors import CapabilityError, SvitDeployError
from svit_deploy.inference.job import Job, Opened, X, Y
from svit_deploy.machine.cluster import room

AT_ONCE = 2
"""Shards of an actor: one that it works on, one that waits."""
AHEAD = 4
"""Shards per actor that may be given away before the first result is taken."""
TRIES = 4
"""How often a shard is given away whose actors die."""


class Done(NamedTuple):
    """What an actor made of a shard: results, and the failure that it ended with, if any."""

    results: list[Any]
    error: SvitDeployError | None


class Actor(Generic[X, Y]):
    """A process that opens a job; Ray starts another in place of one that died.

    Args:
        folder: where paths lead from, as in the process that asks.
    """

    def __init__(self, folder: Path) -> None:
        os.chdir(folder)
        self.stack = ExitStack()
        self.opened: Opened[X, Y] | None = None

    def tell(self, job: Sequence[Any]) -> tuple[Any, int, int] | SvitDeployError:
        """What the job tells of itself, where its items may be parted, and items of a shard.

        Args:
            job: holds the reference to it, which is not followed more than once.
        """
        try:
            opened = self._open(job)
        except SvitDeployError as error:
            return error
        return opened.told, opened.cut, opened.shard

    def do(self, job: Sequence[Any], items: Sequence[X]) -> Done:
        """Runs a shard."""
        results: list[Y] = []
        try:
            for result in self._open(job).work(items):
                results.append(result)
        except SvitDeployError as error:
            return Done(results, error)
        return Done(results, None)

    def _open(self, job: Sequence[Any]) -> Opened[X, Y]:
        if self.opened is None:
            self.opened = self.stack.enter_context(cloudpickle.loads(ray.get(job[0])).open())
        return self.opened


class Actors(Generic[X, Y]):
    """Actors of one job; those that Ray has no room for yet join later.

    Args:
        resources: of one actor, as Ray's `options` takes them.
    """

    def __init__(self, job: Job[X, Y], count: int, resources: dict[str, Any]) -> None:
        kind = ray.remote(max_restarts=-1, max_task_retries=TRIES - 1, **resources)(Actor)
        self._job = [ray.put(cloudpickle.dumps(job))]
        self.actors = [kind.remote(Path.cwd()) for _ in range(count)]
        # Futures, because waiting for them can be interrupted by any signal.
        self._joining = {one.tell.remote(self._job).future(): one for one in self.actors}
        self._load: dict[Any, int] = {}

    def first(self) -> tuple[Any, int, int]:
        """What the first that is open tells; raises what kept it from opening."""
        ready = wait(self._joining, return_when=FIRST_COMPLETED).done
        self._join(ready)
        told = _result(ready.pop())
        if isinstance(told, SvitDeployError):
            raise told
        return told

    def _join(self, ready: Iterable[Future[Any]]) -> None:
        for one in ready:
            if one in self._joining:
                self._load[self._joining.pop(one)] = 0

    def work(self, items: Iterable[X], size: int) -> Iterator[Y]:
        """Results in order; no more items are taken in than some shards of each actor.

        Args:
            size: items of a shard.

        Raises:
            SvitDeployError: what an actor ended with, behind the results before it, or that
                actors died too often.
        """
        items = iter(items)
        given: deque[Future[Any]] = deque()
        busy: dict[Future[Any], Any] = {}
        while True:
            while (actor := self._free(len(given))) and (shard := list(islice(items, size))):
                one = actor.do.remote(self._job, shard).future()
                given.append(one)
                busy[one] = actor
                self._load[actor] += 1
            if not given:
                return
            ready = wait([*busy, *self._joining], return_when=FIRST_COMPLETED).done
            self._join(ready)
            for one in ready & busy.keys():
                self._load[busy.pop(one)] -= 1
            while given and given[0] not in busy:
                done = _result(given.popleft())
                yield from done.results
                if done.error is not None:
                    raise done.error

    def _free(self, given: int) -> Any:
        """An actor that may be given a shard, if there is one."""
        if given >= AHEAD * len(self._load):
            return None
        actor = min(self._load, key=lambda one: self._load[one])
        return actor if self._load[actor] < AT_ONCE else None

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


@contextmanager
def open_on_ray(
    job: Job[X, Y], count: int | None, resources: dict[str, Any]
) -> Iterator[Opened[X, Y]]:
    """A job whose items actors work on, in a cluster that this process is connected with.

    Args:
        count: of actors; as many as the cluster has room for by default.
        resources: of one actor, as Ray's `options` takes them.

    Raises:
        SvitDeployError: the job cannot be opened there.
    """
    actors = Actors(job, count or max(1, room(resources)), resources)
    try:
        told, cut, shard = actors.first()
        yield Opened(told, cut, partial(actors.work, size=shard), shard)
    finally:
        actors.close()


def _result(done: Future[Any]) -> Any:
    """What came of a call; what Ray raises is told in a sentence, a bug is raised as here."""
    try:
        return done.result()
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        reason = " ".join(str(error).split())[:300]
        raise CapabilityError(
            f"workers of Ray died {TRIES} times at the same images ({reason})",
            "see Ray's logs on that machine, or leave --ray out",
        ) from error
