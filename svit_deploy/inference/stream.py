"""Images through a model in batches: pictures are read in threads while the model runs."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from svit_deploy.bundle import Bundle
from svit_deploy.engines.base import Engine
from svit_deploy.errors import InputError, UsageError
from svit_deploy.images.prepared import Prepared
from svit_deploy.images.source import ImageSource, Load
from svit_deploy.inference.settings import SKIP, InferenceSettings
from svit_deploy.model.result import Outputs
from svit_deploy.names import KEEP_MASK, OVERFLOW
from svit_deploy.progress import SILENT, Progress
from svit_deploy.tasks.samples import check_labels_fit, prepare

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model made of one image.

    Attributes:
        number: its place in the source.
        array: what was read, as `ImageSource.loaders` gives it.
        outputs: as the task reads them.
        keep_mask: `[G, S]`, without tokens that the method adds; None where the graph does not
            tell.
        overflow: `[G]`, tokens beyond the budgets; None where there are none.
    """

    number: int
    array: np.ndarray
    image: Prepared
    outputs: Outputs
    keep_mask: np.ndarray | None
    overflow: np.ndarray | None


class Read(NamedTuple):
    """An image that was read."""

    number: int
    array: np.ndarray
    image: Prepared


@dataclass
class Stream:
    """Runs a source's images, and counts.

    Args:
        chosen: numbers of the images to run; all by default.

    Attributes:
        skipped: names of images that could not be read, and why.
        done: images run.
        seconds, engine_seconds: since the first was asked for, and of them in the engine.

    Raises:
        UsageError: a batch that the graph does not take.
        InputError: a label that is none of the model's classes.
    """

    bundle: Bundle
    engine: Engine
    source: ImageSource
    settings: InferenceSettings
    progress: Progress = SILENT
    chosen: Collection[int] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    done: int = 0
    seconds: float = 0.0
    engine_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_labels_fit(self.source.labels, self.bundle.config)
        self.batch = choose_batch(self.bundle, self.engine, self.settings)
        self.total = len(self.source if self.chosen is None else self.chosen)
        there = {spec.name for spec in self.engine.outputs()}
        more = [name for name in (KEEP_MASK, OVERFLOW) if name in there]
        self.wanted = [*self.bundle.task.outputs(), *more]

    def __iter__(self) -> Iterator[Seen]:
        """The images in order, as they are done.

        Raises:
            InputError: a picture cannot be read and none is to be skipped; those before it are
                given first. Or the graph fails.
        """
        start, batch = time.perf_counter(), list[Read]()
        for number, reading in self._read_ahead():
            try:
                read = reading.result()
            except InputError as error:
                if self.settings.on_error != SKIP:
                    yield from self._run(batch, start)
                    raise
                name = self.source.names[number]
                log.warning("%s is skipped: %s", name, error.message)
                self.skipped.append((name, error.message))
                continue
            if batch and (len(batch) == self.batch or batch[0].image.size != read.image.size):
                yield from self._run(batch, start)
                batch = []
            batch.append(read)
        yield from self._run(batch, start)

    def _read_ahead(self) -> Iterator[tuple[int, Future[Read]]]:
        """Images' numbers in order, each being read together with the next ones."""
        ahead: deque[tuple[int, Future[Read]]] = deque()
        pool = ThreadPoolExecutor(self.settings.workers)
        try:
            for number, load in self._chosen():
                ahead.append((number, pool.submit(self._read, number, load)))
                if len(ahead) > 2 * max(self.batch, self.settings.workers):
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _chosen(self) -> Iterator[tuple[int, Load]]:
        for number, load in enumerate(self.source.loaders()):
            if self.chosen is None or number in self.chosen:
                yield number, load

    def _read(self, number: int, load: Load) -> Read:
        """Reads and prepares an image; runs in a thread."""
        bundle, labels = self.bundle, self.source.labels
        name, label = self.source.names[number], None if labels is None else int(labels[number])
        array = load()
        image = prepare(array, name, label, bundle.task, bundle.config, bundle.sizes)
        return Read(number, array, image)

    def _run(self, batch: list[Read], start: float) -> Iterator[Seen]:
        """Runs images of one size at once."""
        if not batch:
            return
        task, images = self.bundle.task, [read.image for read in batch]
        began = time.perf_counter()
        outputs = self.engine.run(task.feeds(images), self.wanted)
        now = time.perf_counter()
        self.engine_seconds += now - began
        self.done += len(batch)
        self.seconds = now - start
        over = self.done + len(self.skipped)
        self.progress.update(
            "running the model", over / self.total, f"{self.done / self.seconds:.1f} images/s"
        )
        yield from see(self.bundle, outputs, batch)


def see(bundle: Bundle, outputs: Mapping[str, np.ndarray], batch: Sequence[Read]) -> Iterator[Seen]:
    """What a run of images of one size gave, image by image."""
    images = [read.image for read in batch]
    tokens = bundle.config.at(images[0].size).num_tokens
    keep, overflow = outputs.get(KEEP_MASK), outputs.get(OVERFLOW)
    for i, (read, found) in enumerate(zip(batch, bundle.task.read(outputs, images), strict=True)):
        yield Seen(
            read.number,
            read.array,
            read.image,
            found,
            None if keep is None else keep[i, :, :tokens],
            None if overflow is None else overflow[i],
        )


def choose_batch(bundle: Bundle, engine: Engine, settings: InferenceSettings) -> int:
    """How many images to run at once; raises UsageError for a batch that the graph lacks."""
    fixed = engine.inputs()[0].shape[0]
    if not isinstance(fixed, int):
        largest = bundle.manifest["batch"]["max"]
        return settings.batch or min(bundle.task.together, largest)
    if settings.batch not in (None, fixed):
        raise UsageError(
            f"{bundle.name} was exported for batches of {fixed} and cannot run {settings.batch}",
            "leave --batch out, or export it with a wider --batch",
        )
    return fixed
