"""Parity of an exported backbone or detector with its reference.

As for classifiers (docs/verify.md): what the file says, every stage by itself, the file as it is,
behaviour. Images may differ in size, so each is run by itself.
"""

from __future__ import annotations

from svit_deploy.detection.bundle import DetectionBundle
from svit_deploy.detection.verify.behaviour import check_behaviour
from svit_deploy.detection.verify.expected import DetectionExpectations, RecomputedDetections
from svit_deploy.detection.verify.parity import DetectionParity
from svit_deploy.detection.verify.report import DetectionReport
from svit_deploy.progress import SILENT, Progress
from svit_deploy.verify.subject import Subject, VerifySettings

__all__ = [
    "DetectionExpectations",
    "DetectionReport",
    "RecomputedDetections",
    "verify_detection",
]


def verify_detection(
    bundle: DetectionBundle,
    expectations: DetectionExpectations,
    settings: VerifySettings | None = None,
    progress: Progress = SILENT,
) -> DetectionReport:
    """Verifies a bundle; `report.passed` says whether it may be used."""
    report = DetectionReport(bundle, expectations.count, expectations.description)
    report.notes += expectations.notes
    subject = Subject(bundle, settings or VerifySettings(), report)
    parity = DetectionParity(bundle, subject, expectations, report)
    parity.check_file()
    if not report.passed:  # what follows would repeat it in worse words
        return report
    parity.compare(progress)
    progress.update("behaviour", 0.8)
    check_behaviour(bundle, subject, expectations, report)
    return report
