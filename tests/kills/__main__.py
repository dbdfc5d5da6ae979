"""`python -m tests.kills`: ends commands that write, at random moments, and looks what is left."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from tests.kills.commands import WRITINGS
from tests.kills.trial import Ground


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="by SIGKILL")
    parser.add_argument("--signals", type=int, default=100, metavar="N", help="SIGTERM and SIGINT")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--command", choices=list(WRITINGS), action="append", help="only this one")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/kills"), metavar="FOLDER")
    options = parser.parse_args()
    ground, names = Ground(options.output), options.command or list(WRITINGS)
    politely = [(signal.SIGTERM, signal.SIGINT)[i % 2] for i in range(options.signals)]
    signals = [*[signal.SIGKILL] * options.kills, *politely]
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    trials, wrong, start = 0, 0, time.monotonic()
    for i, number in enumerate(signals):
        name = names[i % len(names)]
        try:
            trial = ground.trial(name, number, random.Random(f"{options.seed}/{i}"))
        except KeyboardInterrupt:
            break
        trials += 1
        counts[name].update([number.name, trial.left, *["litter"] * bool(trial.swept)])
        if trial.wrong is not None:
            wrong += 1
            print(f"{name}, {number.name}, number {i}: {trial.wrong}", flush=True)
    for name, found in counts.items():
        print(f"{name:22}", ", ".join(f"{what} {count}" for what, count in sorted(found.items())))
    print(f"{trials} runs ended, {wrong} badly, {time.monotonic() - start:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
