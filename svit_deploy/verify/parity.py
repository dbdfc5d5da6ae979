"""Parity with the reference: every stage by itself, then the file as it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx

from svit_deploy.compare import (
    effective_keep,
    keep_ratios,
    logits_error,
    margin_error,
    rms,
    token_error,
)
from svit_deploy.config import TokenMode
from svit_deploy.engines.base import Engine
from svit_deploy.errors import InputError
from svit_deploy.export import names
from svit_deploy.graph_edit import FED, add_outputs, feed_values, read_scalar
from svit_deploy.onnx_file import random_operators
from svit_deploy.progress import Progress
from svit_deploy.verify.expected import Expectations, Expected
from svit_deploy.verify.guided import decided, forced, guided_logits
from svit_deploy.verify.report import GateResult, Stage
from svit_deploy.verify.subject import Observed, Subject


class Parity:
    """Compares a subject with what is expected of it, adding to the subject's report."""

    def __init__(self, subject: Subject, expectations: Expectations) -> None:
        self.subject, self.expectations = subject, expectations
        self.config, self.limits, self.report = subject.config, subject.limits, subject.report
        self.gates, self.check = subject.gates, subject.report.check

    def check_file(self) -> None:
        """What can be said without running: settings, random operators, thresholds."""
        for name, differences in self.expectations.differences.items():
            self.check(name, not differences, ", ".join(differences) or "as the reference's")
        random = random_operators(self.subject.model)
        self.check(
            "no random operator",
            not random,
            f"the graph samples in {', '.join(random[:3])}" if random else "none in the graph",
        )
        if self.config.thresholds:
            self.check_thresholds()

    def check_thresholds(self) -> None:
        wrong = []
        for gate, expected in zip(self.gates, self.subject.thresholds, strict=True):
            threshold = np.float32(read_scalar(self.subject.model, names.threshold_name(gate)))
            # The slack of one ulp-scale step lets a threshold pass through decimal text.
            if not abs(threshold - expected) <= 1e-7 + 2 * np.spacing(abs(expected)):
                wrong.append(f"gate {gate} has {threshold:g}, not {expected:g}")
        self.check("thresholds", not wrong, ", ".join(wrong) or "as the manifest says")

    def compare(self, progress: Progress) -> Expected:
        """Runs the graph with forced masks and as shipped beside the reference.

        Returns:
            The first part of the reference's outputs, for the behaviour checks.
        """
        subject = self.subject
        errors: dict[str, float] = {}
        expected: list[Expected] = []
        actual: list[Observed] = []
        with subject.engine(self.staged()) as staged, subject.shipped() as shipped:
            self.report.engine = shipped.description
            for part in self.expectations.parts():
                refuse_non_finite(part, subject.method.removes)
                done = sum(len(past.inputs) for past in expected) / self.expectations.count
                progress.update("comparing with the reference", 0.7 * done)
                for stage, error in self.stage_errors(staged, part).items():
                    errors[stage] = max(errors.get(stage, 0.0), error)
                actual.append(subject.observe(shipped, part.inputs))
                chosen = {name: part.values[name] for name in decided(subject)}
                expected.append(dataclasses.replace(part, features=[], values=chosen))
        whole = Observed.concatenate(
            [
                Observed(
                    part.logits, part.keep_mask, part.margin, source=part.source, lead=part.lead
                )
                for part in expected
            ]
        )
        finite = np.where(np.isfinite(whole.margin), whole.margin, 0)
        unit = subject.method.margin_unit
        subject.scales = np.array([unit or max(1.0, rms(finite[:, g])) for g in self.gates])
        self.judge_stages(errors)
        shown = Observed.concatenate(actual)
        self.judge_decisions(shown, whole)
        self.judge_budget(shown)
        self.judge_logits(
            shown.logits, guided_logits(subject, shown, whole, expected), whole.logits
        )
        return expected[0]

    @property
    def packs(self) -> bool:
        """Whether the graph's feature maps hold only the tokens that are still there."""
        return self.subject.method.removes and self.subject.bundle.mode is TokenMode.DYNAMIC

    def staged(self) -> onnx.ModelProto:
        """The graph with the reference's decisions and, if known, feature maps for inputs."""
        values, chosen = self.subject.values, decided(self.subject)
        model = add_outputs(forced(self.subject), [name for name in values if name not in chosen])
        if not self.expectations.has_features:
            return model
        shapes = {name: (f"{name}.rows", f"{name}.width") for name in self.subject.bundle.stages}
        return feed_values(model, shapes)

    def stage_errors(self, staged: Engine, part: Expected) -> dict[str, float]:
        """Error of each value of the graph that the reference knows."""
        feeds = {names.INPUT: part.inputs}
        ranked = []
        for name, (kind, _) in self.subject.values.items():
            if kind is np.float32:
                ranked.append(name)
            else:
                feeds[name] = np.ascontiguousarray(part.values[name])
        maps = list(zip(self.subject.bundle.stages, part.features, strict=False))
        there = [~np.isnan(features[..., 0]) for _, features in maps]
        for (name, features), tokens in zip(maps, there, strict=True):
            rows = features[tokens] if self.packs else np.nan_to_num(features)
            feeds[name + FED] = rows.reshape(-1, features.shape[-1])
        actual = staged.run(feeds)
        errors = {names.LOGITS: logits_error(actual[names.LOGITS], part.logits)}
        for name in ranked:
            errors[name] = margin_error(actual[name], part.values[name])
        for (name, features), tokens in zip(maps, there, strict=True):
            rows = actual[name] if self.packs else actual[name].reshape(features.shape)[tokens]
            errors[name] = token_error(rows, features[tokens])
        return errors

    def judge_stages(self, errors: dict[str, float]) -> None:
        """Lists the stages in the order they run and names the first that differs."""
        limits, stages, scales = self.limits, self.report.stages, self.subject.scales
        alone = self.expectations.has_features  # else errors add up from stage to stage
        gate_of = self.config.gate_of
        margin = limits.margin
        if self.subject.method.ranks_inside:
            margin = max(margin, limits.block)
        order = [("embedding", names.EMBEDDING, limits.embedding)]
        for block in range(self.config.depth):
            if (gate := gate_of.get(block)) is not None:
                limit = (margin if alone else limits.rounding) * scales[gate]
                order.append((f"gate {gate}", names.margin_name(gate), limit))
            order.append((f"block {block}", names.block_name(block), limits.block))
        order.append(("head", names.LOGITS, limits.head if alone else limits.logits))
        stages += [Stage(n, errors[v], float(limit)) for n, v, limit in order if v in errors]
        wrong = [stage for stage in stages if not stage.error <= stage.limit]
        detail = f"largest error is {max(s.error / s.limit for s in stages):.0%} of its limit"
        if wrong:
            first = wrong[0]
            by = f"by {first.error:.2g} (limit {first.limit:.2g})"
            if np.isinf(first.error):
                by = "by NaN, infinity or a token that only one of them always keeps"
            rest = f" of {len(wrong)}" if len(wrong) > 1 else ""
            detail = f"{first.name} is the first{rest} to differ from the reference, {by}"
        self.check("every stage by itself" if alone else "gates and logits", not wrong, detail)

    def judge_decisions(self, actual: Observed, expected: Observed) -> None:
        """The decisions of the file as it is, gate by gate."""
        if not self.gates:
            return
        subject, config = self.subject, self.config
        decision = actual.margin > subject.thresholds[None, :, None]
        honest = actual.keep_mask == effective_keep(decision, actual.margin, subject.rows)
        wrong = [gate for gate in self.gates if not honest[:, gate].all()]
        self.check(
            "keep mask follows the margins",
            not wrong,
            f"gate {wrong[0]} does not keep by {self.subject.rule}" if wrong else self.subject.rule,
        )
        flips, explained, detail = subject.compare_decisions(actual, expected)
        self.check("gate decisions", explained, detail)
        self.check("few decisions turn", *subject.count_turned(flips))
        drift = margin_drift(actual, expected)
        wrong = [gate for gate in self.gates if not drift[gate] <= subject.rounding[gate]]
        self.check(
            "margins",
            not wrong,
            f"those of gate {wrong[0]} differ by {drift[wrong[0]]:.2g} where rounding explains "
            f"{subject.rounding[wrong[0]]:.2g}"
            if wrong
            else f"differ by at most {np.max(drift / subject.scales):.2g}, in units of "
            "max(1, rms of the gate)",
        )
        ratios = keep_ratios(actual.keep_mask, config)
        expected_ratios = keep_ratios(expected.keep_mask, config)
        for gate in self.gates:
            result = GateResult(
                gate=gate,
                block=config.gate_blocks[gate],
                flips=flips[gate],
                drift=float(drift[gate]),
                rounding=float(subject.rounding[gate]),
                keep=ratios[gate],
                expected_keep=expected_ratios[gate],
                target_keep=config.target_keep[gate] if config.target_keep else None,
            )
            self.report.gates.append(result)

    def judge_budget(self, actual: Observed) -> None:
        """What the budget cuts is counted right, and worth knowing: the model itself would not."""
        subject, rows = self.subject, self.subject.rows
        if rows is None or not subject.bundle.budgets:
            return
        wanted = (actual.margin > subject.thresholds[None, :, None]).sum(axis=2)
        beyond = np.maximum(wanted - rows, 0)
        if actual.overflow is not None:
            wrong = [g for g in self.gates if (actual.overflow[:, g] != beyond[:, g]).any()]
            self.check(
                "overflow counts what the budget cuts",
                not wrong,
                f"gate {wrong[0]} miscounts" if wrong else f"{int(beyond.sum())} tokens",
            )
        if beyond.any():
            images = (beyond > 0).any(axis=1)
            gates = [str(gate) for gate in self.gates if beyond[:, gate].any()]
            self.report.notes.append(
                f"the budgets cut tokens in {images.sum()} of {len(images)} images (gates "
                f"{', '.join(gates)}); the reference was given the same budgets"
            )

    def judge_logits(self, shown: np.ndarray, actual: np.ndarray, expected: np.ndarray) -> None:
        """Logits and classes of the whole model.

        Args:
            shown, actual, expected: `[n, classes]`, of the file as it is, the same on the
                reference's decisions, and of the reference.
        """
        broken = ~np.isfinite(shown).all(axis=1)
        error = logits_error(actual, expected)
        self.report.logits_error = error
        self.check(
            "logits",
            error <= self.limits.logits and not broken.any(),
            f"NaN or infinity in {broken.sum()} of {len(broken)} images"
            if broken.any()
            else f"error {error:.2g}, limit {self.limits.logits:.2g}",
        )
        top1, expected_top1 = shown.argmax(1), expected.argmax(1)
        agree = actual.argmax(1) == expected_top1
        # Two classes within rounding of each other are a coin toss too.
        ranked = np.sort(expected, axis=1)
        lead = ranked[:, -1] - ranked[:, -2] if ranked.shape[1] > 1 else np.inf
        clear = np.broadcast_to(
            lead > 2 * self.limits.logits * max(1.0, rms(expected)), agree.shape
        )
        self.check(
            "top-1 agreement",
            bool(agree[clear].mean() >= self.limits.top1) if clear.any() else True,
            f"{(top1 == expected_top1).mean():.2%} of {len(agree)} images, {agree[clear].sum()} "
            f"of {clear.sum()} with a clear winner",
        )
        labels = self.expectations.labels
        if labels is not None:
            self.report.accuracy = float((top1 == labels).mean())
            self.report.reference_accuracy = float((expected_top1 == labels).mean())


def margin_drift(actual: Observed, expected: Observed) -> np.ndarray:
    """Largest difference of the margins of each gate `[G]`, where all decisions before it agree."""
    late = np.zeros(len(actual.logits), bool)
    drift = []
    for gate in range(actual.margin.shape[1]):
        drift.append(margin_error(actual.margin[~late, gate], expected.margin[~late, gate]))
        late |= (actual.decisions[:, gate] != expected.decisions[:, gate]).any(axis=1)
    return np.array(drift)


def refuse_non_finite(part: Expected, removes: bool) -> None:
    """Raises InputError where the reference itself computes nothing that could be compared.

    Args:
        removes: whether a token may be gone, its margin -inf.
    """
    broken = np.isnan(part.margin) | (np.isneginf(part.margin) & (not removes))
    if broken.any() or not np.isfinite(part.logits).all():
        raise InputError(
            "the reference's own logits or margins are not finite",
            "check the checkpoint and the images: nothing can be compared with NaN",
        )
