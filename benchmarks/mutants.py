"""Faults put into exported graphs on purpose: which of them does `verify` refuse, and where?

Half of the faults are designed (`mutation/faults_of_*.py`), the others drawn at random with a fixed
seed (`mutation/drawn.py`). They are dealt out to exports of every family and token mode, whose
precisions take turns; another seed deals in another way. Each mutated graph takes the place of the
right one in its bundle, the manifest's hash is made to fit, and `verify` runs as the command runs
it. A mutant that changes nothing beyond rounding (`mutation/effect.py`) counts apart. Unbroken
bundles must pass.

    python benchmarks/mutants.py --json mutants.json           # about 15 minutes on two cores
    python benchmarks/mutants.py --precision fp16 --only int8  # some of them
    python benchmarks/mutants.py --json mutants.json --table   # what is there, without running

With `--json`, a run that was interrupted goes on where it ended.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported, here and in workers

from mutation.cases import ALL, CASES, precision_of
from mutation.results import Results
from mutation.run import Group, run_group
from mutation.table import render


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="text that a mutant's id must hold")
    parser.add_argument("--precision", nargs="*", choices=ALL, help="of every system")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn, and where faults go")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="results, also those of a run before")
    parser.add_argument("--recorded", action="store_true", help="verify without the checkpoint")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    options = parser.parse_args()
    results = Results(options.json, options.seed, options.recorded)
    if not options.table:
        known = frozenset(results.records)
        groups = [
            Group(name, precision, options.seed, options.only, known, options.recorded)
            for name, case in reversed(CASES.items())  # those that take longest first
            for precision in options.precision or [precision_of(name, options.seed)]
            if precision in case.precisions
        ]
        with get_context("spawn").Pool(options.workers) as pool:
            for records in pool.imap_unordered(run_group, groups):
                for record in records:
                    print(f"{'passed ' if record.passed else 'refused'} {record.id}", flush=True)
                results.add(records)
    print(render(list(results.records.values()), results.made))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers end, too
    main()
