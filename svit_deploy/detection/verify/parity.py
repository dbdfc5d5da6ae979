"""A detection model beside its reference: every stage by itself, then the file as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from svit_deploy.compare import (
    GateFlips,
    effective_keep,
    kept_counts,
    margin_error,
    rms,
    token_error,
)
from svit_deploy.detection.bundle import DetectionBundle
from svit_deploy.detection.config import Task
from svit_deploy.detection.postprocess import Detections
from svit_deploy.detection.preprocess import Prepared, feeds_of
from svit_deploy.detection.verify.detections import compare_detections, faults, in_words
from svit_deploy.detection.verify.expected import DetectionExpectations, Expectation
from svit_deploy.detection.verify.observed import (
    Seen,
    compare_results,
    decisions_of,
    guided,
    masks_for,
    observe,
    read_outputs,
    shipped,
)
from svit_deploy.detection.verify.report import Comparison, DetectionReport
from svit_deploy.detection.verify.stages import Stages
from svit_deploy.engines.base import Engine
from svit_deploy.progress import Progress
from svit_deploy.verify.parity import Parity
from svit_deploy.verify.report import GateResult
from svit_deploy.verify.subject import Subject


class DetectionParity:
    """Compares a subject with what is expected of it, adding to the report."""

    def __init__(
        self,
        bundle: DetectionBundle,
        subject: Subject,
        expectations: DetectionExpectations,
        report: DetectionReport,
    ) -> None:
        self.bundle, self.subject, self.expectations = bundle, subject, expectations
        self.report, self.limits, self.gates = report, report.limits, subject.gates

    def check_file(self) -> None:
        """What can be said without running: settings, random operators, thresholds."""
        expectations: Any = self.expectations  # its `differences` are all that is asked for
        Parity(self.subject, expectations).check_file()

    def compare(self, progress: Progress) -> list[tuple[Prepared, Detections, Detections]]:
        """Runs every image, staged and as shipped, beside the reference.

        Returns:
            Of a detector, every image with its detections as shipped and as expected.
        """
        seen: list[Seen] = []
        expected: list[Expectation] = []
        alone: list[tuple[Detections, Detections]] = []
        stages = Stages(self.bundle, self.subject, self.report, self.expectations.has_stages)
        with self.subject.engine(stages.graph()) as staged, shipped(self.subject) as file:
            self.report.engine = file.description
            for number, part in enumerate(self.expectations.each()):
                progress.update(
                    "comparing with the reference", 0.8 * number / self.expectations.count
                )
                found = stages.run(staged, part)
                if found is not None and part.detections is not None:
                    alone.append((found, part.detections))
                seen.append(observe(self.bundle, self.subject, file, part.image))
                slim = Expectation(
                    part.image, part.features, part.keep_mask, part.margin, part.detections
                )
                expected.append(slim)
        squares = [[rms(part.margin[0, gate]) ** 2 for part in expected] for gate in self.gates]
        self.subject.scales = np.array([max(1.0, np.mean(s) ** 0.5) for s in squares])
        stages.judge()
        if alone:
            self.judge_detections("heads by themselves", alone)
        same = self.judge_gates(seen, expected)
        unturned = self.run_guided(seen, expected, same)
        self.judge_features(unturned, expected)
        if self.bundle.task is not Task.DETECT:
            return []
        self.report.comparison = self.judge_detections("detections", _pairs(unturned, expected))
        results = zip(expected, _pairs(seen, expected), strict=True)
        return [(theirs.image, *pair) for theirs, pair in results]

    def run_guided(
        self, seen: Sequence[Seen], expected: Sequence[Expectation], same: Sequence[bool]
    ) -> list[Seen]:
        """What was seen; of images that turned a decision, a run of the graph without that turn.

        A coin toss changes what is computed from there on, and no limit could tell it from a fault.
        An engine is then compared with its own graph on the engine's masks.
        """
        if all(same):
            return list(seen)
        turned = len(same) - sum(same)
        self.report.notes.append(
            f"{turned} of {len(same)} images turned a decision; their features and detections are "
            "those of the graph on the reference's keep masks"
        )
        result, differ = list(seen), []
        with self.subject.engine(guided(self.subject)) as engine:
            for i, (mine, theirs) in enumerate(zip(seen, expected, strict=True)):
                if same[i]:
                    continue
                result[i] = self.observe_guided(engine, theirs.image, theirs.keep_mask)
                if self.subject.runs_engine:
                    own = self.observe_guided(engine, theirs.image, mine.keep_mask)
                    ok, detail = compare_results(mine, own, self.bundle.config, self.limits)
                    differ += [] if ok else [f"image {i}: {detail}"]
        if self.subject.runs_engine:
            detail = differ[0] if differ else f"in all {turned} images that turned a decision"
            self.report.check("engine follows its graph", not differ, detail)
        return result

    def observe_guided(self, engine: Engine, image: Prepared, keep_mask: np.ndarray) -> Seen:
        """One image on given keep masks `[1, G, N]`."""
        outputs = engine.run(feeds_of([image], self.bundle.inputs) | masks_for(keep_mask))
        return read_outputs(self.bundle, self.subject, outputs, [image])[0]

    def judge_detections(
        self, name: str, pairs: Sequence[tuple[Detections, Detections]]
    ) -> Comparison:
        found = compare_detections(pairs, self.bundle.config, self.limits)
        wrong = faults(found, self.limits, self.bundle.config)
        self.report.check(name, not wrong, ", ".join(wrong) or in_words(found, self.limits))
        return found

    def judge_gates(self, seen: list[Seen], expected: list[Expectation]) -> list[bool]:
        """The decisions of the file as it is; tells which images have the reference's masks."""
        same = [
            bool((mine.keep_mask == theirs.keep_mask).all())
            for mine, theirs in zip(seen, expected, strict=True)
        ]
        if not self.gates:
            return same
        subject, check = self.subject, self.report.check
        flips: list[list[GateFlips]] = []
        faults, dishonest, miscounted, drift = [], [], [], np.zeros(len(self.gates))
        for mine, theirs in zip(seen, expected, strict=True):
            rows = self.rows(theirs.image)
            subject.rows = rows
            decision = mine.margin > subject.thresholds[None, :, None]
            honest = mine.keep_mask == effective_keep(decision, mine.margin, rows)
            dishonest += [gate for gate in self.gates if not honest[:, gate].all()]
            found, explained, detail = subject.compare_decisions(
                mine.decided, decisions_of(theirs.keep_mask, theirs.margin)
            )
            flips.append(found)
            faults += [] if explained else [detail]
            drift = np.maximum(drift, _drift(mine, theirs))
            if rows is not None and mine.overflow is not None:
                beyond = np.maximum(decision.sum(2) - rows, 0)
                miscounted += [g for g in self.gates if (beyond != mine.overflow)[:, g].any()]
        wrong = sorted(set(dishonest))
        check(
            "keep mask follows the margins",
            not wrong,
            f"gate {wrong[0]} does not keep by {subject.rule}" if wrong else subject.rule,
        )
        total = [_sum(of_gate) for of_gate in zip(*flips, strict=True)]
        check("few decisions turn", *subject.count_turned(total))
        tosses = sum(flip.coin_tosses for flip in total)
        check(
            "gate decisions",
            not faults,
            faults[0]
            if faults
            else f"identical but for {tosses} coin tosses"
            if tosses
            else "identical",
        )
        wrong = [gate for gate in self.gates if not drift[gate] <= subject.rounding[gate]]
        largest = np.max(drift / subject.scales)
        check(
            "margins",
            not wrong,
            f"those of gate {wrong[0]} differ by {drift[wrong[0]]:.2g} where rounding explains "
            f"{subject.rounding[wrong[0]]:.2g}"
            if wrong
            else f"differ by at most {largest:.2g}, in units of max(1, rms of the gate)",
        )
        if self.bundle.shares and self.bundle.has_gate_outputs:
            detail = f"gate {miscounted[0]} miscounts" if miscounted else "in every image"
            check("overflow counts what the budget cuts", not miscounted, detail)
        self.tell_gates(seen, expected, total, drift)
        return same

    def tell_gates(
        self,
        seen: list[Seen],
        expected: list[Expectation],
        flips: list[GateFlips],
        drift: np.ndarray,
    ) -> None:
        config = self.bundle.config

        def ratios(masks: list[np.ndarray]) -> np.ndarray:
            kept = [kept_counts(mask, config)[0] / mask.shape[2] for mask in masks]
            return np.mean(kept, axis=0)

        keep = ratios([mine.keep_mask for mine in seen])
        wanted = ratios([theirs.keep_mask for theirs in expected])
        for gate in self.gates:
            result = GateResult(
                gate=gate,
                block=config.gate_blocks[gate],
                flips=flips[gate],
                drift=float(drift[gate]),
                rounding=float(self.subject.rounding[gate]),
                keep=float(keep[gate]),
                expected_keep=float(wanted[gate]),
                target_keep=config.target_keep[gate] if config.target_keep else None,
            )
            self.report.gates.append(result)

    def rows(self, image: Prepared) -> np.ndarray | None:
        """Tokens that each gate's budget lets through, of an image of this size."""
        rows = self.bundle.rows_for(self.bundle.config.tokens_of(image.size))
        return np.array(rows) if rows else None

    def judge_features(self, unturned: list[Seen], expected: list[Expectation]) -> None:
        """The feature maps of the whole model."""
        shown = [
            (mine.features, theirs.features)
            for mine, theirs in zip(unturned, expected, strict=True)
            if mine.features is not None
        ]
        if len(shown) < len(unturned):
            self.report.notes.append(
                "a detector's engine does not show its feature maps; its decisions and its "
                "detections are compared"
            )
        if not shown:
            return
        errors = dict.fromkeys(self.bundle.features, 0.0)
        for actual, wanted in shown:
            for name, a, b in zip(errors, actual, wanted, strict=True):
                errors[name] = max(errors[name], token_error(a.T, b.T))
        self.report.features = errors
        worst, limit = max(errors, key=lambda name: errors[name]), self.limits.features
        self.report.check(
            "features",
            errors[worst] <= limit,
            f"largest error {errors[worst]:.2g} ({worst}), limit {limit:.2g}",
        )


def _pairs(
    seen: Sequence[Seen], expected: Sequence[Expectation]
) -> list[tuple[Detections, Detections]]:
    """The detections of both sides, image by image."""
    pairs = []
    for mine, theirs in zip(seen, expected, strict=True):
        assert mine.detections is not None and theirs.detections is not None
        pairs.append((mine.detections, theirs.detections))
    return pairs


def _drift(mine: Seen, theirs: Expectation) -> np.ndarray:
    """Largest difference of each gate's margins `[G]`; 0 after the first decision that differs."""
    drift = np.zeros(mine.margin.shape[1])
    for gate in range(len(drift)):
        drift[gate] = margin_error(mine.margin[:, gate], theirs.margin[:, gate])
        if (mine.keep_mask[:, gate] != theirs.keep_mask[:, gate]).any():
            break
    return drift


def _sum(flips: tuple[GateFlips, ...]) -> GateFlips:
    """One gate's flips in all images."""
    return GateFlips(
        tokens=sum(flip.tokens for flip in flips),
        flips=sum(flip.flips for flip in flips),
        coin_tosses=sum(flip.coin_tosses for flip in flips),
        consequences=sum(flip.consequences for flip in flips),
        largest_margin=max(flip.largest_margin for flip in flips),
    )
