"""Images through a model in batches: pictures are read in threads while the model runs."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from svit_deploy.bundle import Bundle
from svit_deploy.engines.base import Engine
from svit_deploy.engines.batches import Batches
from svit_deploy.errors import InputError, UsageError
from svit_deploy.images.prepared import Prepared
from svit_deploy.images.source import ImageSource, Load
from svit_deploy.inference.engine import open_bundle_engine
from svit_deploy.inference.job import Opened
from svit_deploy.inference.settings import SKIP, InferenceSettings
from svit_deploy.model.result import Outputs
from svit_deploy.names import KEEP_MASK, OVERFLOW
from svit_deploy.progress import SILENT, Progress
from svit_deploy.tasks.samples import check_labels_fit, prepare

log = logging.getLogger(__name__)

T = TypeVar("T")
SHARD = 2
"""Batches that are worth being sent to another process together."""


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


class Image(NamedTuple):
    """An image to run: its place in the source, and what reads it."""

    number: int
    name: str
    label: int | None
    load: Load


class Read(NamedTuple):
    """An image that was read."""

    number: int
    array: np.ndarray
    image: Prepared


@dataclass(frozen=True)
class Ran(Generic[T]):
    """What became of an image.

    Attributes:
        seen: what was looked at; nothing of one that was skipped.
        reason: why that one could not be read.
        seconds: its share of the run that it was part of.
    """

    name: str
    seen: tuple[T, ...] = ()
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Run(Generic[T]):
    """Runs images with a bundle, and keeps of each what `look` says; a job.

    Every `batch` images, in their order, are a batch: those that cannot be read are missing from
    it, and those of several sizes run one size after the other. So it is known without reading
    them which images run together.

    Args:
        look: is called where the images run; raises InputError.
    """

    bundle: Bundle
    settings: InferenceSettings
    look: Callable[[Seen], T]

    @contextmanager
    def open(self) -> Iterator[Opened[Image, Ran[T]]]:
        """Opens the engine; what is told is its description.

        Raises:
            UsageError: a batch that the graph does not take.
            CapabilityError: the engine cannot run here.
        """
        with open_bundle_engine(self.bundle, self.settings) as engine:
            yield self.on(engine)

    def on(self, engine: Engine) -> Opened[Image, Ran[T]]:
        """The same with an engine that is open."""
        batch = choose_batch(self.bundle, engine, self.settings)
        if self.bundle.task.many_rows:  # one image at a time, so many of its rows
            engine, batch = Batches(engine, 1, batch), 1
        there = {spec.name for spec in engine.outputs()}
        more = [name for name in (KEEP_MASK, OVERFLOW) if name in there]
        wanted = [*self.bundle.task.outputs(), *more]

        def work(images: Iterable[Image]) -> Iterator[Ran[T]]:
            pool = ThreadPoolExecutor(self.settings.workers)
            try:
                ahead = self._read_ahead(pool, images, 2 * max(batch, self.settings.workers))
                while block := list(islice(ahead, batch)):
                    yield from self._block(engine, wanted, block)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

        return Opened(engine.description, batch, work, SHARD * batch)

    def _block(
        self, engine: Engine, wanted: Sequence[str], block: Sequence[tuple[Image, Future[Read]]]
    ) -> Iterator[Ran[T]]:
        """The images of one batch, those that cannot be read first.

        Raises:
            InputError: a picture cannot be read and none is to be skipped; those before it are
                given first. Or the graph fails.
        """
        reads, broken = list[Read](), None
        for image, reading in block:
            try:
                reads.append(reading.result())
            except InputError as error:
                if self.settings.on_error != SKIP:
                    broken = error
                    break
                yield Ran(image.name, reason=error.message)
        for _, same in groupby(reads, key=lambda read: read.image.size):
            batch = list(same)
            began = time.perf_counter()
            outputs = engine.run(self.bundle.task.feeds([read.image for read in batch]), wanted)
            seconds = (time.perf_counter() - began) / len(batch)
            for seen in see(self.bundle, outputs, batch):
                yield Ran(seen.image.name, (self.look(seen),), seconds=seconds)
        if broken is not None:
            raise broken

    def _read_ahead(
        self, pool: ThreadPoolExecutor, images: Iterable[Image], most: int
    ) -> Iterator[tuple[Image, Future[Read]]]:
        """Images in order, each being read together with the next ones, at most so many."""
        ahead: deque[tuple[Image, Future[Read]]] = deque()
        for image in images:
            ahead.append((image, pool.submit(self._read, image)))
            if len(ahead) > most:
                yield ahead.popleft()
        yield from ahead

    def _read(self, image: Image) -> Read:
        """Reads and prepares an image; runs in a thread."""
        bundle, array = self.bundle, image.load()
        given = (bundle.task, bundle.config, bundle.sizes)
        return Read(image.number, array, prepare(array, image.name, image.label, *given))


@dataclass
class Stream(Generic[T]):
    """Runs a source's images where a job is open, and counts.

    Args:
        chosen: numbers of the images to run; all by default.

    Attributes:
        skipped: names of images that could not be read, and why.
        done: images run.
        seconds, engine_seconds: since the first was asked for; in engines, of all together.

    Raises:
        InputError: a label that is none of the model's classes.
    """

    opened: Opened[Image, Ran[T]]
    bundle: Bundle
    source: ImageSource
    progress: Progress = SILENT
    chosen: Collection[int] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    done: int = 0
    seconds: float = 0.0
    engine_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_labels_fit(self.source.labels, self.bundle.config)
        self.total = len(self.source if self.chosen is None else self.chosen)

    def __iter__(self) -> Iterator[T]:
        """What was looked at of the images in order, as they are done.

        Raises:
            InputError: see `Run`.
        """
        start = time.perf_counter()
        for ran in self.opened.work(self._images()):
            self.seconds = time.perf_counter() - start
            if ran.reason:
                log.warning("%s is skipped: %s", ran.name, ran.reason)
                self.skipped.append((ran.name, ran.reason))
                continue
            self.done += 1
            self.engine_seconds += ran.seconds
            over = self.done + len(self.skipped)
            self.progress.update(
                "running the model", over / self.total, f"{self.done / self.seconds:.1f} images/s"
            )
            yield from ran.seen

    def _images(self) -> Iterator[Image]:
        names, labels = self.source.names, self.source.labels
        for number, load in enumerate(self.source.loaders()):
            if self.chosen is None or number in self.chosen:
                label = None if labels is None else int(labels[number])
                yield Image(number, names[number], label, load)


def see(bundle: Bundle, outputs: Mapping[str, np.ndarray], batch: Sequence[Read]) -> Iterator[Seen]:
    """What a run of images of one size gave, image by image."""
    images = [read.image for read in batch]
    tokens = bundle.config.at(images[0].size).num_tokens
    keep, overflow = outputs.get(KEEP_MASK), outputs.get(OVERFLOW)
    for i, (read, found) in enumerate(
        zip(batch, bundle.task.read(outputs, images, bundle.config), strict=True)
    ):
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
        usual = bundle.manifest["batch"]["opt"] if bundle.task.many_rows else bundle.together
        return settings.batch or usual
    if settings.batch not in (None, fixed):
        raise UsageError(
            f"{bundle.name} was exported for batches of {fixed} and cannot run {settings.batch}",
            "leave --batch out, or export it with a wider --batch",
        )
    return fixed
