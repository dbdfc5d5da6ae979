"""Models that ask for more than images, as a benchmark runs them: with images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from svit_deploy.engines.base import Engine, NodeTime, TensorSpec, Wrapped
from svit_deploy.images.prepared import Prepared
from svit_deploy.names import INPUT
from svit_deploy.tasks import Task


def of_images_alone(engine: Engine, task: Task) -> Engine:
    """The engine, if images are all that a task's models get, or a `WholeImages` of it."""
    return engine if task.inputs == (INPUT,) else WholeImages(engine, task)


class WholeImages(Wrapped):
    """An engine that is given images alone: they fill their whole size, and are not rescaled.

    What else it asks for is what its task feeds with such images.
    """

    def __init__(self, engine: Engine, task: Task) -> None:
        super().__init__(engine)
        self.task = task
        asked = {spec.name for spec in engine.inputs()}
        self._added = tuple(n for n in task.inputs if n != INPUT and n in asked)
        self._known: dict[tuple[int, ...], dict[str, np.ndarray]] = {}

    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec in self.engine.inputs() if spec.name not in self._added)

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        return self.engine.run(self._whole(feeds), outputs)

    def profile(
        self, feeds: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[str] | None
    ) -> list[NodeTime] | None:
        return self.engine.profile([self._whole(feed) for feed in feeds], outputs)

    def _whole(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**feeds, **self._rest(feeds[INPUT].shape)}

    def _rest(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """What is fed beside images `[B, 3, H, W]`; made once, for runs are timed."""
        if shape not in self._known:
            blank = Prepared.whole(np.zeros(shape[1:], np.float32))
            feeds = self.task.feeds([blank] * shape[0])
            self._known[shape] = {name: feeds[name] for name in self._added}
        return self._known[shape]
