"""One kill and what is left of it: the old or the new, whole, and no litter after the next run."""

from __future__ import annotations

import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from svit_deploy.errors import EXIT_EXPORT, EXIT_INTERRUPTED, EXIT_OK
from tests.fuzz.sound import Sound
from tests.kills.commands import WRITINGS
from tests.kills.killing import Killer, Life, content, fresh, litter, moments, output_of, state

CODES = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: 128 + signal.SIGTERM}
NOTHING_LEFT = "nothing half-written was left."


@dataclass(frozen=True)
class Trial:
    """What came of one run that got a signal.

    Attributes:
        left: `nothing`, `old` or `new`, or what is wrong.
        swept: what the next run removed.
        wrong: the complaint, if there is one.
    """

    left: str
    swept: int
    wrong: str | None


class Ground:
    """A folder for trials: what the commands read, and undisturbed runs to choose moments in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.sound = Sound(self.folder / "sound")
        self.killer = Killer(self.folder)
        self._undisturbed: dict[str, Life] = {}

    def undisturbed(self, name: str) -> Life:
        if name not in self._undisturbed:
            for _ in range(2):  # the first makes what is read, and imports
                place = self._before(name)
                life = self.killer.run(place, name, WRITINGS[name].args(self.sound), None)
                assert life.code == EXIT_OK, life.err
            self._undisturbed[name] = life
        return self._undisturbed[name]

    def trial(self, name: str, number: signal.Signals, rng: random.Random) -> Trial:
        writing, args = WRITINGS[name], list(WRITINGS[name].args(self.sound))
        moment = moments(rng, self.undisturbed(name))
        place, output = self._before(name), output_of(args)
        old = content(place / output)
        life = self.killer.run(place, name, args, moment, number)
        left = state(place, output, old, writing)
        if left not in ("nothing", "old", "new"):
            return Trial(left, 0, f"{left} ({moment}): {life.err}")
        found = litter(place, output, writing)
        if number != signal.SIGKILL:
            found = [entry for entry in found if entry != writing.journal]
            return Trial(left, 0, _complaint(life, number, found, moment))
        if life.code not in (-number, EXIT_OK):
            return Trial(left, 0, f"exit code {life.code} ({moment}): {life.err}")
        again = self.killer.run(place, name, args, None)
        wanted = EXIT_EXPORT if left == "new" and name == "export" else EXIT_OK  # without --force
        wrong = None
        if again.code != wanted:
            wrong = f"the next run ends with {again.code} ({moment}): {again.err}"
        elif again.code == EXIT_OK and (kept := litter(place, output, writing)):
            wrong = f"the next run leaves {', '.join(kept)} ({moment})"
        elif (now := state(place, output, old, writing)) != "new":
            wrong = f"after the next run: {now} ({moment})"
        return Trial(left, len(found), wrong)

    def _before(self, name: str) -> Path:
        """A fresh folder with what is there before a run."""
        place, kept = fresh(self.folder / "place"), self.folder / f"before {name}"
        writing = WRITINGS[name]
        if writing.before is None:
            return place
        if not kept.exists():
            life = self.killer.run(place, name, writing.before(self.sound), None)
            assert life.code == EXIT_OK, life.err
            shutil.copytree(place, kept)
        return Path(shutil.copytree(kept, place, dirs_exist_ok=True))


def _complaint(life: Life, number: signal.Signals, found: list[str], moment: object) -> str | None:
    if life.code not in (CODES[number], EXIT_OK):
        return f"exit code {life.code} ({moment}): {life.err}"
    if found:
        return f"left {', '.join(found)} ({moment})"
    last = life.err.splitlines()[-1:] or [""]
    if life.code != EXIT_OK and not (
        last[0].startswith("error: ") and last[0].endswith(NOTHING_LEFT)
    ):
        return f"says {life.err[-300:]!r} ({moment})"
    return "a traceback: " + life.err if "Traceback" in life.err else None
