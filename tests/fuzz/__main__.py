"""`python -m tests.fuzz`: damaged files of every kind through the command line, by the thousand.

A case is made of its kind, the seed and its number alone. One that ends badly leaves its folder,
with `failure.txt` in it: what was wrong, the command line, what it printed, how to run it again.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.kinds import KINDS
from tests.fuzz.oracle import End, complaint
from tests.fuzz.worker import Case, Worker


def main() -> int:
    options = _options()
    worker = Worker(options.output)
    failures = 0
    try:
        for kind, cases in _cases(options):
            codes: Counter[int | None] = Counter()
            found, cpu_s = 0, 0.0
            for case in cases:
                args, end = worker.run(case)
                codes[end.code] += 1
                cpu_s += end.cpu_s
                wrong = complaint(end, KINDS[kind].max_growth)
                if wrong is None:
                    shutil.rmtree(worker.folder / case.name)
                    continue
                found += 1
                print(f"{case.name}: {wrong}", flush=True)
                _keep(worker.folder / case.name, case, args, end, wrong)
            ends = ", ".join(f"{code}: {codes[code]}" for code in sorted(codes, key=str))
            print(
                f"{kind:12} {len(cases):5} cases, {found} bad, {cpu_s:.0f} s; exit codes {ends}",
                flush=True,
            )
            failures += found
    except KeyboardInterrupt:
        print(f"stopped; go on with --first {case.number} --kind {case.kind}")
    finally:
        worker.close()
    print(f"{failures} bad ends" + (f", kept in {worker.folder}" if failures else ""))
    return int(failures > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--cases", type=int, default=10_000, metavar="N", help="of all kinds together"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="only this one")
    parser.add_argument(
        "--first", type=int, default=0, metavar="N", help="the number to begin with"
    )
    parser.add_argument("--case", type=int, metavar="N", help="this number alone")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/fuzz"), metavar="FOLDER")
    return parser.parse_args()


def _cases(options: argparse.Namespace) -> Iterator[tuple[str, list[Case]]]:
    for name, kind in KINDS.items():
        if name in (options.kind or KINDS):
            numbers = range(options.first, round(options.cases * kind.share))
            if options.case is not None:
                numbers = range(options.case, options.case + 1)
            yield name, [Case(name, options.seed, number) for number in numbers]


def _keep(folder: Path, case: Case, args: list[str], end: End, wrong: str) -> None:
    again = f"python -m tests.fuzz --kind {case.kind} --seed {case.seed} --case {case.number}"
    (folder / "failure.txt").write_text(
        f"{wrong}\n\n{again}\ncd {folder} && svit-deploy {shlex.join(args)}\n\n"
        f"exit code {end.code}, {end.cpu_s:.1f} s, {end.grown // 2**20} MiB\n\n"
        f"{end.out}\n\n{end.err}\n",
        encoding="utf-8",
        errors="replace",
    )


if __name__ == "__main__":
    sys.exit(main())
