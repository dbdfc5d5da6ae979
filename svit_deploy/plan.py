"""What a command needs and what it will do, told before its work begins; a dry run ends there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from svit_deploy.errors import EXIT_OK, SvitDeployError


class Plan:
    """Where a command asks for what it needs, and tells what it will do, before it begins.

    This base class keeps nothing and goes on with the work: whatever is missing ends it.
    """

    def needs(self, check: Callable[..., object], *given: Any, **named: Any) -> None:
        """Calls a check, which raises where something is missing."""
        check(*given, **named)

    def tell(self, label: str, text: str) -> None:
        """One line about the run: a few words of label, and what goes for it."""

    def writes(self, *paths: Path) -> None:
        """Files that the run will write."""

    def begin(self) -> None:
        """Called where all inputs are read, and before anything is run or written."""


RUN = Plan()


class DryRun(Plan):
    """Notes what a run would do, and all that is missing; the run ends where its work begins.

    ::

        with DryRun() as plan:
            api.export("svit_s.pth", "out", plan=plan)
        print(plan.exit_code, plan.lines, plan.files, plan.missing)

    Attributes:
        lines: label and text of what was told.
        files: that would be written, in the order told.
        missing: what the run would end with, the first first; empty if it could run.
    """

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.files: list[Path] = []
        self.missing: list[SvitDeployError] = []

    @property
    def exit_code(self) -> int:
        """What the run would end with, as far as its work does not fail."""
        return self.missing[0].exit_code if self.missing else EXIT_OK

    def needs(self, check: Callable[..., object], *given: Any, **named: Any) -> None:
        with self._noting():
            check(*given, **named)

    def tell(self, label: str, text: str) -> None:
        self.lines.append((label, text))

    def writes(self, *paths: Path) -> None:
        self.files += paths

    def begin(self) -> None:
        raise _Begun

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "exit_code": self.exit_code,
            "plan": [{"label": label, "text": text} for label, text in self.lines],
            "writes": list(map(str, self.files)),
            "missing": [
                {"message": error.message, "fix": error.fix, "exit_code": error.exit_code}
                for error in self.missing
            ],
        }

    def __enter__(self) -> DryRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if isinstance(error, SvitDeployError):
            self._note(error)
        return isinstance(error, (SvitDeployError, _Begun))

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except SvitDeployError as error:
            self._note(error)

    def _note(self, error: SvitDeployError) -> None:
        if str(error) not in map(str, self.missing):
            self.missing.append(error)


class _Begun(Exception):
    """The work would begin here."""
