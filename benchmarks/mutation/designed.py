"""All faults that someone thought of."""

from __future__ import annotations

from mutation import (
    faults_of_batches,
    faults_of_blocks,
    faults_of_detectors,
    faults_of_gates,
    faults_of_methods,
    faults_of_rows,
)
from mutation.fault import Fault

DESIGNED: tuple[Fault, ...] = (
    *faults_of_blocks.FAULTS,
    *faults_of_gates.FAULTS,
    *faults_of_rows.FAULTS,
    *faults_of_methods.FAULTS,
    *faults_of_detectors.FAULTS,
    *faults_of_batches.FAULTS,
)


def designed_for(case: str, seed: int = 0) -> list[Fault]:
    """The faults that a case gets: each goes to one of its cases, with another seed to the next."""
    return [
        fault
        for number, fault in enumerate(DESIGNED)
        if case == fault.cases[(number + seed) % len(fault.cases)]
    ]
