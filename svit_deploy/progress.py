"""Progress of a long command: a bar on a terminal, plain lines elsewhere, silence by default."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Where a command tells how far it is. This base class keeps silent."""

    def update(self, description: str, fraction: float, detail: str = "") -> None:
        """Says what is being done and how much of all the work is done, from 0 to 1.

        Args:
            detail: what changes all the time, such as a rate.
        """


SILENT = Progress()


class Portion(Progress):
    """A part of a longer work.

    Args:
        low, high: how much of all is done before it and behind it.
    """

    def __init__(self, whole: Progress, low: float, high: float) -> None:
        self._whole, self._low, self._high = whole, low, high

    def update(self, description: str, fraction: float, detail: str = "") -> None:
        done = self._low + (self._high - self._low) * fraction
        self._whole.update(description, done, detail)


class _Bar(Progress):
    """A bar that redraws only inside `update`: a refresh thread would disturb timed runs."""

    def __init__(self, bar: RichProgress, clock: Callable[[], float]) -> None:
        self._bar, self._clock = bar, clock
        self._task = bar.add_task("", total=1.0)
        self._drawn = ("", float("-inf"))

    def update(self, description: str, fraction: float, detail: str = "") -> None:
        now = self._clock()
        if description == self._drawn[0] and now - self._drawn[1] < 0.5:
            return
        self._drawn = (description, now)
        text = _joined(description, detail)
        self._bar.update(self._task, description=text, completed=fraction, refresh=True)


class _Lines(Progress):
    """A line for each new description, and one every 30 s while it stays the same."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self._clock = console, clock
        self._printed = ("", float("-inf"))

    def update(self, description: str, fraction: float, detail: str = "") -> None:
        now = self._clock()
        if description == self._printed[0] and now - self._printed[1] < 30:
            return
        self._printed = (description, now)
        text = _joined(description, detail)
        line = f"{fraction:4.0%} {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _joined(description: str, detail: str) -> str:
    return f"{description}, {detail}" if detail else description


@contextlib.contextmanager
def show_progress(
    console: Console | None = None,
    *,
    enabled: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Shows progress while the block runs.

    Args:
        console: where to; standard error by default, so that results on standard output can be
            piped. Rich honours NO_COLOR, TERM=dumb and a redirected stream.
        enabled: False keeps silent (`--no-progress`, `--quiet`).
    """
    console = console or Console(stderr=True)
    if not enabled:
        yield SILENT
    elif not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console, clock)
    else:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
        )
        with RichProgress(
            *columns, TimeElapsedColumn(), console=console, transient=True, auto_refresh=False
        ) as bar:
            yield _Bar(bar, clock)
