"""Parity of an exported backbone or detector with its reference.

As for classifiers (docs/verify.md): what the file says, every stage by itself, the file as it is,
behaviour. Images may differ in size, so each is run by itself.
"""

from __future__ import annotations

from svit_deploy.detection.bundle import DetectionBundle
from svit_deploy.detection.coco import GroundTruth
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
    *,
    truth: GroundTruth | None = None,
) -> DetectionReport:
    """Verifies a bundle; `report.passed` says whether it may be used.

    Args:
        truth: annotations of the images, for the average precision of both sides.
    """
    report = DetectionReport(bundle, expectations.count, expectations.description)
    report.notes += expectations.notes
    subject = Subject(bundle, settings or VerifySettings(), report)
    parity = DetectionParity(bundle, subject, expectations, report)
    parity.check_file()
    if not report.passed:  # what follows would repeat it in worse words
        return report
    found = parity.compare(progress)
    if truth is not None:
        names, sizes = expectations.names(), [image.original_size for image, _, _ in found]
        for side, detections in (
            ("exported", [mine for _, mine, _ in found]),
            ("reference", [theirs for _, _, theirs in found]),
        ):
            for kind, value in truth.average_precision(names, detections, sizes).items():
                report.average_precision.setdefault(kind, {})[side] = value
    progress.update("behaviour", 0.8)
    check_behaviour(bundle, subject, expectations, report)
    return report
