"""One export, all its faults: what is run by a worker."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mutation.cases import CASES, Case
from mutation.designed import designed_for
from mutation.drawn import draw
from mutation.effect import Effect, Effects
from mutation.fault import Fault
from mutation.graph import Graph
from mutation.judge import Judge, verify
from svit_deploy.bundle import MANIFEST, MODEL, Bundle, write_manifest
from svit_deploy.verify.checkpoint import load_reference_model

TRIES = 50
"""Faults drawn until one gives a graph that runs: one that no runtime takes is no test."""
FEW = 3
"""Faults that are drawn for a case that has fewer designed ones."""
SIDES = ("checkpoint", "recorded reference")
WRITTEN = ("schema_version", "files")
"""Of a manifest, what is written anew."""


@dataclass
class Record:
    """One mutant, or one unbroken bundle, and what became of it.

    Attributes:
        id: golden, token mode, precision, kind and name, with `/` between them.
        kind: `designed`, `drawn` or `control`.
        places: where the fault is, as the report calls it.
        named: what the report named.
        effect: see `mutation.effect`; None of a manifest and of controls.
        seconds: of the processor.
    """

    id: str
    kind: str
    fault: str
    passed: bool
    words: str
    places: list[str] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    effect: dict[str, Any] | None = None
    seconds: float = 0.0

    @property
    def case(self) -> str:
        return "/".join(self.id.split("/")[:2])

    @property
    def precision(self) -> str:
        return self.id.split("/")[2]

    @property
    def equivalent(self) -> bool:
        return self.effect is not None and Effect(**self.effect).none

    @property
    def located(self) -> bool:
        return not self.passed and bool(set(self.places) & set(self.named))


@dataclass(frozen=True)
class Group:
    """The mutants of one export.

    Attributes:
        only: text that a record's id must hold.
        known: ids of records that are there already.
        recorded: verify without the checkpoint.
    """

    case: str
    precision: str
    seed: int
    only: str = ""
    known: frozenset[str] = frozenset()
    recorded: bool = False

    def id(self, name: str) -> str:
        return f"{self.case}/{self.precision}/{name}"

    def wants(self, name: str) -> bool:
        """Whether a record is asked for and not there yet."""
        found = self.id(name)
        return self.only in found and found not in self.known


Make = Callable[[Bundle], tuple[Graph, str]]
"""Makes a graph with a fault, and tells the fault; each call of a drawn one makes another."""


def run_group(group: Group) -> list[Record]:
    """Exports once, verifies the bundle and every mutant; nothing where all is known."""
    case = CASES[group.case]
    sides = [side for side in SIDES if group.wants(f"control/{side}")]
    wanted = [(name, make) for name, make in mutants(group) if group.wants(name)]
    if not wanted and not sides:
        return []
    with tempfile.TemporaryDirectory() as made:
        bundle = case.export(Path(made), group.precision)
        checkpoint = case.weights(Path(made))
        model = load_reference_model(bundle, checkpoint, arch=case.arch, overrides=dict(case.told))
        judges = dict(zip(SIDES, (Judge(bundle, model), Judge(bundle, None)), strict=True))
        records = [control(group, bundle, judges[side], side) for side in sides]
        if wanted:
            judge = judges[SIDES[group.recorded]]
            runner = Mutants(group, case, bundle, checkpoint, Effects(bundle, model), judge)
            records += [runner.run(name, make) for name, make in wanted]
    return records


def mutants(group: Group) -> Iterator[tuple[str, Make]]:
    """Each mutant's name, and what makes it: as many are drawn as are designed, and a few."""
    faults = designed_for(group.case, group.seed)
    for fault in faults:
        yield f"designed/{fault.name}", partial(_designed, fault)
    of_case = zlib.crc32(f"{group.case}/{group.precision}".encode())
    for number in range(max(len(faults), FEW)):
        rng = np.random.default_rng([group.seed, of_case, number])
        yield f"drawn/{number}", partial(_drawn, rng)


def _designed(fault: Fault, bundle: Bundle) -> tuple[Graph, str]:
    graph = Graph(bundle)
    fault.change(graph)
    return graph, fault.name


def _drawn(rng: np.random.Generator, bundle: Bundle) -> tuple[Graph, str]:
    graph = Graph(bundle)
    return graph, draw(graph, rng)


def control(group: Group, bundle: Bundle, judge: Judge, side: str) -> Record:
    """The unbroken bundle, against its checkpoint or against what the export recorded."""
    start = time.process_time()
    verdict = judge.verify(bundle.path)
    return Record(
        id=group.id(f"control/{side}"),
        kind="control",
        fault=f"none, against the {side}",
        passed=verdict.passed,
        words=verdict.words,
        named=list(verdict.named),
        seconds=time.process_time() - start,
    )


@dataclass(frozen=True)
class Mutants:
    """Makes the mutants of one bundle and verifies them."""

    group: Group
    case: Case
    bundle: Bundle
    checkpoint: Path
    effects: Effects
    judge: Judge

    def run(self, name: str, make: Make) -> Record:
        start, kind = time.process_time(), name.split("/")[0]
        folder = self.bundle.path.parent / "mutant"
        for _ in range(TRIES):
            graph, fault = make(self.bundle)
            places = graph.places()
            if not places:  # nothing was changed, or nothing of it reaches an output
                continue
            write_mutant(self.bundle, graph, folder)
            effect = None if graph.told_only else self.effects.measure(folder)
            if kind == "designed" or effect is None or effect.runs:
                break
        else:
            raise RuntimeError(f"{self.group.id(name)}: no fault gives a graph that runs")
        if effect is not None:
            verdict = self.judge.verify(folder)
        else:  # the manifest is another
            verdict = verify(self.case, folder, None if self.group.recorded else self.checkpoint)
        return Record(
            id=self.group.id(name),
            kind=kind,
            fault=fault,
            passed=verdict.passed,
            words=verdict.words,
            places=sorted(places),
            named=list(verdict.named),
            effect=None if effect is None else asdict(effect),
            seconds=time.process_time() - start,
        )


def write_mutant(bundle: Bundle, graph: Graph, folder: Path) -> None:
    """A copy of a bundle with another graph, its manifest telling that one's hash."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in bundle.path.iterdir():
        if file.name not in (MODEL, MANIFEST):
            os.link(file, folder / file.name)
    onnx.save(graph.finished(), folder / MODEL)
    told = {name: entry for name, entry in graph.manifest.items() if name not in WRITTEN}
    write_manifest(folder, told)
