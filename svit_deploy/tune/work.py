"""The folder of the candidates: their bundles, what was seen of them, and how long that took."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from types import TracebackType
from typing import Any

from svit_deploy.bench.schedule import in_words
from svit_deploy.errors import ExportError
from svit_deploy.images import source_of
from svit_deploy.images.medium import PICTURES, Medium
from svit_deploy.io.files import reading
from svit_deploy.io.journal import AnotherRun, Journal
from svit_deploy.io.partial import remove
from svit_deploy.progress import SILENT, Progress

STEPS = "steps.jsonl"
SUFFIX = ".tune"


@dataclass(frozen=True)
class Step:
    """Something that is done once.

    Attributes:
        kind: steps of a kind take about as long as each other.
        of: what it is done to.
        expected_s: how long it takes at least, where that is known before.
    """

    kind: str
    of: str
    expected_s: float | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.of}"


class Work:
    """The folder `OUTPUT.tune`, in which an earlier run of the same kind may have done some steps.

    A context manager. The folder stays until `finish`.

    Args:
        run: what the steps depend on, JSON-able.
        steps: all that are known of, in their order.
        force: begin anew where the folder is of another run.

    Attributes:
        found: steps that were done before.

    Raises:
        ExportError: the folder is of another run, holds something else, or cannot be written.
    """

    def __init__(
        self,
        output: Path,
        run: dict[str, Any],
        steps: Sequence[Step],
        force: bool,
        progress: Progress = SILENT,
    ) -> None:
        self.folder = output.absolute().with_name(output.absolute().name + SUFFIX)
        self.journal = Journal[str](self.folder / STEPS, run, "steps", stays=True)
        self.steps, self.progress, self._force = list(steps), progress, force
        self.found = 0
        self._dropped: set[str] = set()

    def check(self) -> None:
        """Looks what is there.

        Raises:
            ExportError: what `__enter__` would raise.
        """
        if self.folder.exists() and not self._is_ours():
            raise ExportError(
                f"{self.folder} exists and is no folder that tune wrote",
                "give another output with -o",
            )
        try:
            self.found = self.journal.check()
        except AnotherRun:
            if self._force:
                return
            raise ExportError(
                f"{self.folder} is of another run: of other images, another checkpoint, settings "
                "or packages",
                "give another output with -o, or --force to begin anew",
            ) from None

    def __enter__(self) -> Work:
        self.check()
        if not self.found:
            remove(self.folder)
        self.journal.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.journal.__exit__(kind, error, trace)

    def finish(self) -> None:
        """Removes the folder, behind its context."""
        remove(self.folder)

    def once(self, step: Step, do: Callable[[Progress], Any], among: str = "") -> Any:
        """What a step gives, JSON-able; it is done unless it has been.

        Args:
            among: with what else it is done, if that matters.
        """
        key = str(step)
        if key not in self.journal.done or self.journal[key]["among"] != among:
            start = time.monotonic()
            row = {"kind": step.kind, "among": among, "result": do(_OfStep(self, step))}
            self.journal.add(key, row | {"seconds": round(time.monotonic() - start, 3)})
        return self.journal[key]["result"]

    def drop(self, of: str) -> None:
        """No more steps are taken of it."""
        self._dropped.add(of)

    @property
    def seconds(self) -> float:
        """That all steps took, in whatever runs."""
        return float(sum(row["seconds"] for row in self.journal.rows()))

    def estimate(self, now: Step, share: float) -> tuple[float, float | None]:
        """The share of all that is done, and the seconds that are left, if anything tells.

        Args:
            now: the step that is under way, and `share` of it done.
        """
        taken = defaultdict[str, list[float]](list)
        for row in self.journal.rows():
            taken[row["kind"]].append(row["seconds"])
        done = self.journal.done
        left = [s for s in self.steps if str(s) not in done and s.of not in self._dropped]
        if not taken:
            return share / max(1, len(left)), None
        usual = mean(second for seconds in taken.values() for second in seconds)
        known = {kind: mean(seconds) for kind, seconds in taken.items()}

        def expected(step: Step) -> float:
            return known.get(step.kind, step.expected_s or usual)

        left_s = sum(map(expected, left)) - share * expected(now)
        done_s = sum(map(sum, taken.values()))
        return done_s / (done_s + max(left_s, 1e-9)), max(left_s, 0.0)

    def _is_ours(self) -> bool:
        return (self.folder / STEPS).is_file() or (
            self.folder.is_dir() and not any(self.folder.iterdir())
        )


class _OfStep(Progress):
    """The progress of a step, as that of all of them."""

    def __init__(self, work: Work, step: Step) -> None:
        self._work, self._step = work, step
        self.update("", 0)

    def update(self, description: str, fraction: float, detail: str = "") -> None:
        share, left_s = self._work.estimate(self._step, fraction)
        left = "" if left_s is None else f"about {in_words(left_s)} left in all"
        self._work.progress.update(str(self._step), share, left)


def fingerprint(path: Path | None, medium: Medium = PICTURES) -> str | None:
    """Changes when a file does, or a picture in a folder: names, sizes and times."""
    if path is None:
        return None
    with reading(path):
        files = {".": path}
        if path.is_dir():
            source = source_of(path, medium)
            files = {name: (source.folder or path) / name for name in source.names}
        about = ((name, file.stat()) for name, file in files.items())
        told = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in about])
    return hashlib.sha256(told.encode()).hexdigest()
