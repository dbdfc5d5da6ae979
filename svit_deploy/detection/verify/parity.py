"""Every stage of a detection model by itself, then the file as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from svit_deploy.compare import (
    GateFlips,
    effective_keep,
    kept_counts,
    margin_error,
    rms,
    token_error,
)
from svit_deploy.detection.bundle import DetectionBundle, subsample
from svit_deploy.detection.config import Task
from svit_deploy.detection.postprocess import Detections, split_images
from svit_deploy.detection.preprocess import Prepared, feeds_of
from svit_deploy.detection.verify.detections import compare_detections, faults, in_words
from svit_deploy.detection.verify.expected import DetectionExpectations, Expectation
from svit_deploy.detection.verify.observed import Seen, decisions_of, observe, shipped
from svit_deploy.detection.verify.report import Comparison, DetectionReport
from svit_deploy.engines.base import Engine
from svit_deploy.export import names
from svit_deploy.graph_edit import FED, add_outputs, feed_values, force_values
from svit_deploy.progress import Progress
from svit_deploy.verify.parity import Parity
from svit_deploy.verify.report import GateResult, Stage
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
        self.errors: dict[str, float] = {}

    def check_file(self) -> None:
        """What can be said without running: settings, random operators, thresholds."""
        expectations: Any = self.expectations  # its `differences` are all that is asked for
        Parity(self.subject, expectations).check_file()

    def staged(self) -> onnx.ModelProto:
        """The graph with the reference's keep masks and, if known, its values as inputs."""
        shape: tuple[int | str, ...] = ("batch", "tokens")
        decisions = {names.decision_name(gate): shape for gate in self.gates}
        model = force_values(self.subject.model, decisions)
        model = add_outputs(model, [names.margin_name(gate) for gate in self.gates])
        model = add_outputs(model, self.bundle.features)
        if self.expectations.has_stages:
            width = self.bundle.config.embed_dim
            model = feed_values(model, dict.fromkeys(self.bundle.stages, ("rows", width)))
            if self.bundle.task is Task.DETECT:
                maps = {
                    name: ("batch", width, f"rows_{name}", f"columns_{name}")
                    for name in self.bundle.features
                }
                model = feed_values(model, maps)
        return model

    def compare(self, progress: Progress) -> list[tuple[Prepared, Detections, Detections]]:
        """Runs every image, staged and as shipped, beside the reference.

        Returns:
            Of a detector, every image with its detections as shipped and as expected.
        """
        seen: list[Seen] = []
        expected: list[Expectation] = []
        alone: list[tuple[Detections, Detections]] = []
        with self.subject.engine(self.staged()) as staged, shipped(self.subject) as file:
            self.report.engine = file.description
            for number, part in enumerate(self.expectations.each()):
                progress.update(
                    "comparing with the reference", 0.8 * number / self.expectations.count
                )
                found = self.run_staged(staged, part)
                if found is not None and part.detections is not None:
                    alone.append((found, part.detections))
                seen.append(observe(self.bundle, self.subject, file, part.image))
                slim = Expectation(
                    part.image, part.features, part.keep_mask, part.margin, part.detections
                )
                expected.append(slim)
        squares = [[rms(part.margin[0, gate]) ** 2 for part in expected] for gate in self.gates]
        self.subject.scales = np.array([max(1.0, np.mean(s) ** 0.5) for s in squares])
        self.judge_stages()
        if alone:
            self.judge_detections("heads by themselves", alone)
        same = self.judge_gates(seen, expected)
        self.judge_features(seen, expected, same)
        results = [
            (theirs.image, mine.detections, theirs.detections)
            for mine, theirs in zip(seen, expected, strict=True)
            if mine.detections is not None and theirs.detections is not None
        ]
        if self.bundle.task is Task.DETECT:
            pairs = [results[i][1:] for i, equal in enumerate(same) if equal]
            self.report.comparison = self.judge_detections("detections", pairs)
        return results

    def judge_detections(
        self, name: str, pairs: Sequence[tuple[Detections, Detections]]
    ) -> Comparison:
        found = compare_detections(pairs, self.bundle.config, self.limits)
        wrong = faults(found, self.limits, self.bundle.config)
        self.report.check(name, not wrong, ", ".join(wrong) or in_words(found, self.limits))
        return found

    def run_staged(self, engine: Engine, part: Expectation) -> Detections | None:
        """Adds the errors of one image's stages; returns what its heads make of the reference's."""
        feeds = feeds_of([part.image], self.bundle.inputs)
        for gate in self.gates:
            mask = np.ascontiguousarray(part.keep_mask[:, gate])
            feeds[names.decision_name(gate)] = mask
        feeds |= {name + FED: rows for name, rows in part.stages.items()}
        if part.stages and self.bundle.task is Task.DETECT:
            feeds |= {n + FED: m for n, m in zip(self.bundle.features, part.maps, strict=True)}
        outputs = engine.run(feeds)
        for gate in self.gates:
            name = names.margin_name(gate)
            self.add(name, margin_error(outputs[name], part.margin[:, gate]))
        for name, rows in part.stages.items():
            self.add(name, token_error(outputs[name], rows))
        maps = subsample([outputs[name][0] for name in self.bundle.features], part.image.size)
        for name, mine, theirs in zip(self.bundle.features, maps, part.features, strict=True):
            self.add(name, token_error(mine.T, theirs.T))
        if self.bundle.task is not Task.DETECT or not part.stages:
            return None
        return split_images(outputs, 1)[0]

    def add(self, name: str, error: float) -> None:
        self.errors[name] = max(self.errors.get(name, 0.0), error)

    def judge_stages(self) -> None:
        """Lists the stages in the order they run and names the first that differs."""
        limits, config, scales = self.limits, self.bundle.config, self.subject.scales
        alone = self.expectations.has_stages
        gate_of = {names.block_name(b): gate for gate, b in enumerate(config.gate_blocks)}
        stages = []

        def add(label: str, name: str, limit: float) -> None:
            if name in self.errors:
                stages.append(Stage(label, self.errors[name], float(limit)))

        for name in self.bundle.stages:
            if (gate := gate_of.get(name)) is not None:
                margin = limits.margin if alone else limits.rounding
                add(f"gate {gate}", names.margin_name(gate), margin * scales[gate])
            limit = limits.block if name.startswith("block") else limits.stage
            add(_label(name), name, limits.embedding if name == names.EMBEDDING else limit)
        for name in self.bundle.features:
            add(f"features of {_label(name)}", name, limits.stage if alone else limits.features)
        self.report.stages += stages
        wrong = [stage for stage in stages if not stage.error <= stage.limit]
        detail = f"largest error is {max(s.error / s.limit for s in stages):.0%} of its limit"
        if wrong:
            rest = f" of {len(wrong)}" if len(wrong) > 1 else ""
            detail = (
                f"{wrong[0].name} is the first{rest} to differ from the reference, by "
                f"{wrong[0].error:.2g} (limit {wrong[0].limit:.2g})"
            )
        name = "every stage by itself" if alone else "gates and features, masks given"
        self.report.check(name, not wrong, detail)

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
        rule = "margin > threshold, within the budget if there is one"
        check(
            "keep mask follows the margins",
            not wrong,
            f"gate {wrong[0]} does not keep by {rule}" if wrong else rule,
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
        patch = self.bundle.config.patch_size
        rows = self.bundle.rows_for(image.size[0] * image.size[1] // patch**2)
        return np.array(rows) if rows else None

    def judge_features(
        self, seen: list[Seen], expected: list[Expectation], same: list[bool]
    ) -> None:
        """The feature maps of the file as it is, where its masks are the reference's."""
        if seen[0].features is None:
            self.report.notes.append(
                "a detector's engine does not show its feature maps; its decisions and its "
                "detections are compared"
            )
            return
        errors = dict.fromkeys(self.bundle.features, 0.0)
        for mine, theirs, equal in zip(seen, expected, same, strict=True):
            if not equal or mine.features is None:
                continue
            for name, a, b in zip(errors, mine.features, theirs.features, strict=True):
                errors[name] = max(errors[name], token_error(a.T, b.T))
        self.report.features = errors
        worst, limit = max(errors, key=lambda name: errors[name]), self.limits.features
        self.report.check(
            "features",
            errors[worst] <= limit,
            f"largest error {errors[worst]:.2g} ({worst}), limit {limit:.2g}, in {sum(same)} of "
            f"{len(same)} images with identical masks",
        )


def _label(name: str) -> str:
    """`block_3.out` -> `block 3`"""
    return name.removesuffix(".out").replace("_", " ")


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
