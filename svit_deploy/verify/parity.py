"""Parity with the reference: every stage by itself, then the file as it is."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from svit_deploy import names
from svit_deploy.graph.edit import read_scalar
from svit_deploy.graph.quantised import wrong_layers
from svit_deploy.images.prepared import Prepared
from svit_deploy.inference.job import Opened
from svit_deploy.inference.places import opened
from svit_deploy.io.onnx_file import random_operators, read_metadata
from svit_deploy.model.counts import keep_ratios
from svit_deploy.model.precision import FORMATS
from svit_deploy.progress import Progress
from svit_deploy.verify.comparison import Beside, Compared, Comparison
from svit_deploy.verify.decisions import (
    GateFlips,
    against_rule,
    beyond_budget,
    decision_distance,
    margin_drift,
)
from svit_deploy.verify.examples import examples
from svit_deploy.verify.expected import ExpectedResults, Given
from svit_deploy.verify.exported import ModelUnderTest
from svit_deploy.verify.margins import margin_histogram
from svit_deploy.verify.report import GateResult
from svit_deploy.verify.rounding import predicted_flips
from svit_deploy.verify.words import number_of

EXAMPLES = 8


class Parity:
    """Compares a model with what is expected of it, adding to the report.

    Args:
        truth: annotations of the images, as the task reads them.
    """

    def __init__(
        self, model: ModelUnderTest, reference: ExpectedResults, truth: Any = None
    ) -> None:
        self.model, self.reference, self.truth = model, reference, truth
        self.config, self.limits, self.report = model.config, model.limits, model.report
        self.gates, self.check = model.gates, model.report.check
        self.parts: list[Compared] = []

    def check_file(self) -> None:
        """What can be said without running: settings, random operators, thresholds."""
        for name, differences in self.reference.differences.items():
            self.check(name, not differences, ", ".join(differences) or "as the reference's")
        shown = {output.name for output in self.model.model.graph.output}
        missing = [name for name in self.model.promised if name not in shown]
        self.check("outputs", not missing, f"no {', '.join(missing)}" if missing else "all there")
        told = contradictions(read_metadata(self.model.model), self.model.bundle.manifest)
        self.check(
            "metadata",
            not told,
            f"the graph's own {', '.join(told)} is not the manifest's"
            if told
            else "as the manifest",
        )
        random = random_operators(self.model.model)
        self.check(
            "no random operator",
            not random,
            f"the graph samples in {', '.join(random[:3])}" if random else "none in the graph",
        )
        if self.config.thresholds:
            self.check_thresholds()
        if form := FORMATS.get(self.model.bundle.precision):
            wrong = wrong_layers(self.model.model, form, self.model.bundle.steps)
            said = ", ".join(wrong[:3]) or "as the manifest says"
            self.check("quantised layers", not wrong, said)

    def check_thresholds(self) -> None:
        wrong = []
        for gate, expected in zip(self.gates, self.model.thresholds, strict=True):
            threshold = np.float32(read_scalar(self.model.model, names.threshold_name(gate)))
            # The slack of one ulp-scale step lets a threshold pass through decimal text.
            if not abs(threshold - expected) <= 1e-7 + 2 * np.spacing(abs(expected)):
                wrong.append(f"gate {gate} has {threshold:g}, not {expected:g}")
        self.check("thresholds", not wrong, ", ".join(wrong) or "as the manifest says")

    def compare(self, progress: Progress) -> Sequence[Prepared]:
        """Runs the graph with forced decisions and as shipped beside the reference.

        Returns:
            The first images, for the behaviour checks.
        """
        model, comparison = self.model, Comparison(self.model, self.reference)
        first: Sequence[Prepared] = ()
        corners: list[Compared] = []
        given: deque[Given] = deque()

        def groups() -> Iterator[Given]:
            for group in self.reference.given():
                given.append(group)
                yield group

        there: Opened[Given, Beside]
        with opened(comparison, model.bundle, model.settings, model.settings) as there:
            self.report.engine = there.told
            for beside in there.work(groups()):
                images, _, corner = given.popleft()
                compared = comparison.add(images, beside)
                if corner:
                    corners.append(compared)
                    continue
                if room := EXAMPLES - len(self.report.examples) if self.gates else 0:
                    masks = compared.actual.selected.keep_mask[:room]
                    self.report.examples += examples(images[:room], masks, self.config)
                self.parts.append(compared)
                first = first or images
                done = sum(len(past.images) for past in self.parts) / self.reference.count
                progress.update("comparing with the reference", 0.7 * done)
        model.scales = self.margin_scales()
        comparison.whole.set_limits()
        self.limits = self.report.limits = model.limits
        for view in comparison.views:
            view.judge()
        if self.gates:
            self.judge_decisions()
            self.judge_budget()
        comparison.forced.judge()
        self.judge_outputs()
        self.judge_corners(corners)
        return first

    def judge_corners(self, corners: Sequence[Compared]) -> None:
        """The extreme sizes, each a painted picture."""
        if not corners:
            return
        said = []
        for part in corners:
            height, width = part.images[0].size
            said.append(f"{height}x{width}")
            ok, words = self.model.compare(part.actual, part.expected, part.rows)
            if not ok:
                self.check("extreme sizes", False, f"{height}x{width}: {words}")
                return
        self.check("extreme sizes", True, ", ".join(said))

    def margin_scales(self) -> np.ndarray:
        """What an error of each gate's margins is measured in `[G]`."""
        unit = self.model.method.margin_unit
        if unit:
            return np.full(len(self.gates), float(unit))
        squares, count = np.zeros(len(self.gates)), 0
        for part in self.parts:
            margin = part.expected.selected.margin.astype(np.float64)
            squares += (np.where(np.isfinite(margin), margin, 0.0) ** 2).sum(axis=(0, 2))
            count += margin.shape[0] * margin.shape[2]
        return np.maximum(1.0, np.sqrt(squares / count))

    def judge_decisions(self) -> None:
        """The decisions of the file as it is, gate by gate."""
        model = self.model
        wrong: set[int] = set()
        flips: list[list[GateFlips]] = []
        drift, predicted = np.zeros(len(self.gates)), 0.0
        for part in self.parts:
            actual, expected = part.selected
            wrong |= set(against_rule(actual, model.thresholds, part.rows))
            flips.append(model.flips(actual, expected, part.rows))
            drift = np.maximum(drift, margin_drift(actual, expected))
            if part.moved is not None:
                distance = decision_distance(expected.margin, model.thresholds, part.rows)
                predicted += predicted_flips(distance, part.moved)
        self.check(
            "keep mask follows the margins",
            not wrong,
            f"gate {min(wrong)} does not keep by {model.rule}" if wrong else model.rule,
        )
        total = [GateFlips.total(of_gate) for of_gate in zip(*flips, strict=True)]
        self.check("gate decisions", *model.explain_flips(total))
        self.check("few decisions flip", *model.count_flips(total, predicted))
        self.check("margins", *model.explain_drift(drift))
        self.list_gates(total, drift)

    def list_gates(self, flips: list[GateFlips], drift: np.ndarray) -> None:
        config = self.config
        keep, expected_keep = np.zeros((2, len(self.gates)))
        for part in self.parts:
            at_size = config.at(part.images[0].size)
            share = len(part.images) / self.reference.count
            actual, expected = part.selected
            keep += share * np.array(keep_ratios(actual.keep_mask, at_size))
            expected_keep += share * np.array(keep_ratios(expected.keep_mask, at_size))
        for gate in self.gates:
            result = GateResult(
                gate=gate,
                block=config.gate_blocks[gate],
                flips=flips[gate],
                drift=float(drift[gate]),
                rounding=float(self.model.rounding[gate]),
                keep=float(keep[gate]),
                expected_keep=float(expected_keep[gate]),
                target_keep=config.target_keep[gate] if config.target_keep else None,
                margins=margin_histogram(
                    [part.expected.selected for part in self.parts],
                    gate,
                    float(self.model.thresholds[gate]),
                ),
            )
            self.report.gates.append(result)

    def judge_budget(self) -> None:
        """What the budget cuts is counted right, and worth knowing: the model itself would not."""
        if not self.model.bundle.budgets:
            return
        miscounted: set[int] = set()
        cut, told = [], True
        for part in self.parts:
            actual, _ = part.selected
            assert part.rows is not None
            beyond = beyond_budget(actual, part.rows, self.model.thresholds)
            cut.append(beyond)
            if actual.overflow is None:
                told = False
            else:
                differ = (actual.overflow != beyond).any(axis=0)
                miscounted |= set(np.flatnonzero(differ).tolist())
        beyond = np.concatenate(cut)
        if told:
            self.check(
                "overflow counts what the budget cuts",
                not miscounted,
                f"gate {min(miscounted)} miscounts"
                if miscounted
                else number_of(int(beyond.sum()), "token"),
            )
        if beyond.any():
            images = int((beyond > 0).any(axis=1).sum())
            gates = [str(gate) for gate in self.gates if beyond[:, gate].any()]
            self.report.notes.append(
                f"the budgets cut tokens in {images} of {number_of(len(beyond), 'image')} "
                f"(gate{'s' * (len(gates) > 1)} {', '.join(gates)}); the reference was given the "
                "same budgets"
            )

    def judge_outputs(self) -> None:
        """What comes out of the whole model, as the task judges it."""
        task = self.model.task
        shown = [outputs for part in self.parts for outputs in part.actual.outputs]
        forced = [outputs for part in self.parts for outputs in part.forced]
        expected = [outputs for part in self.parts for outputs in part.expected.outputs]
        images = [image for part in self.parts for image in part.images]
        self.report.add(task.judge(shown, self.model.runs(forced, expected)))
        labelled = task.takes_labels and all(image.label is not None for image in images)
        if self.truth is None and not labelled:
            return
        mine, theirs = (task.scores(self.config, self.truth) for _ in range(2))
        for image, own, wanted in zip(images, shown, expected, strict=True):
            mine.add(image, own)
            theirs.add(image, wanted)
        self.report.add(task.judge_scores(mine, theirs))


def contradictions(metadata: Mapping[str, str], manifest: Mapping[str, Any]) -> list[str]:
    """Of what a graph tells of itself (`metadata_props`), what its manifest tells otherwise.

    A file that tells nothing contradicts nothing.
    """
    known = {name: manifest[name] for name in ("model", "preprocess", "gates")}
    told = {name: json.dumps(value, sort_keys=True) for name, value in known.items()}
    told["mode"] = manifest["tokens"]["mode"]
    return [name for name, text in told.items() if metadata.get(name, text) != text]
