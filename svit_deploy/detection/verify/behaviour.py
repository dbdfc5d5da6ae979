"""What must hold of any exported detection model: batches, repeats, all kept, none kept."""

from __future__ import annotations

import dataclasses

import numpy as np

from svit_deploy.compare import token_error
from svit_deploy.detection.bundle import DetectionBundle
from svit_deploy.detection.preprocess import Prepared, feeds_of
from svit_deploy.detection.verify.expected import DetectionExpectations
from svit_deploy.detection.verify.observed import (
    Seen,
    compare_results,
    observe,
    read_outputs,
    shipped,
    shown,
)
from svit_deploy.detection.verify.report import DetectionReport
from svit_deploy.export import names
from svit_deploy.graph_edit import set_scalars
from svit_deploy.verify.behaviour import LARGEST
from svit_deploy.verify.subject import Subject


def check_behaviour(
    bundle: DetectionBundle,
    subject: Subject,
    expectations: DetectionExpectations,
    report: DetectionReport,
) -> None:
    """All checks, on the first image."""
    image = next(expectations.images())
    check = BehaviourCheck(bundle, subject, report)
    check.invariance(image)
    check.determinism(image)
    check.hidden_gates(image)
    check.extremes(image, expectations)


@dataclasses.dataclass
class BehaviourCheck:
    """The checks of one bundle."""

    bundle: DetectionBundle
    subject: Subject
    report: DetectionReport

    def invariance(self, image: Prepared) -> None:
        """An image alone and in a batch with its mirror image: the same result."""
        if self.bundle.manifest["batch"]["max"] < 2:
            return
        mirrored = dataclasses.replace(image, pixels=np.ascontiguousarray(image.pixels[:, :, ::-1]))
        images = [mirrored, image]
        with shipped(self.subject) as engine:
            alone = [observe(self.bundle, self.subject, engine, one) for one in images]
            outputs = engine.run(feeds_of(images, self.bundle.inputs))
        together = read_outputs(self.bundle, self.subject, outputs, images)
        worst = [self.difference(a, b) for a, b in zip(together, alone, strict=True)]
        wrong = [detail for ok, detail in worst if not ok]
        self.report.check("alone = inside a batch", not wrong, (wrong or [worst[0][1]])[0])

    def determinism(self, image: Prepared) -> None:
        """Every output of every repeat equal to the last bit."""
        feeds, repeats = feeds_of([image], self.bundle.inputs), self.subject.settings.repeats
        with self.subject.file() as engine:
            first, *others = [engine.run(feeds) for _ in range(repeats)]
        differ = sorted(
            {n for other in others for n in first if first[n].tobytes() != other[n].tobytes()}
        )
        detail = f"{', '.join(differ)} changed" if differ else f"{repeats} runs, every bit equal"
        self.report.check("deterministic", not differ, detail)

    def hidden_gates(self, image: Prepared) -> None:
        """A file without gate outputs computes what it did with its gates in view."""
        if self.subject.shows_gates:
            return
        with shipped(self.subject) as engine:
            seen = observe(self.bundle, self.subject, engine, image)
        with self.subject.file() as engine:
            plain = observe(self.bundle, self.subject, engine, image)
        result = compare_results(plain, seen, self.bundle.config, self.report.limits)
        self.report.check("alike without its gates in view", *result)

    def extremes(self, image: Prepared, expectations: DetectionExpectations) -> None:
        """Every token kept, then none: thresholds at the ends of the float32 range."""
        for keep, threshold in (("all", -LARGEST), ("none", LARGEST)) if self.subject.gates else ():
            thresholds = {names.threshold_name(gate): threshold for gate in self.subject.gates}
            model = set_scalars(shown(self.subject), thresholds)
            with self.subject.engine(model) as engine:
                seen = observe(self.bundle, self.subject, engine, image)
            expected = expectations.extreme(image, keep)
            tokens = seen.keep_mask.shape[2]
            rows = self.bundle.rows_for(tokens) if keep == "all" else ()
            wanted = rows or ((tokens if keep == "all" else 0),) * len(self.subject.gates)
            kept = seen.keep_mask[0].sum(axis=1)
            wrong = [gate for gate in self.subject.gates if kept[gate] != wanted[gate]]
            assert seen.features is not None
            ok = not wrong and all(np.isfinite(feature).all() for feature in seen.features)
            detail = "runs, as many tokens as there should be, features are finite"
            if wrong:
                detail = f"gate {wrong[0]} keeps {kept[wrong[0]]} tokens, not {wanted[wrong[0]]}"
            elif not ok:
                detail = "features are not finite"
            elif expected is not None and (seen.keep_mask == expected.keep_mask).all():
                pairs = zip(seen.features, expected.features, strict=True)
                error = max(token_error(a.T, b.T) for a, b in pairs)
                ok = error <= self.report.limits.features
                detail = f"features within {error:.2g}, limit {self.report.limits.features:.2g}"
            self.report.check(f"{keep} kept", ok, detail)

    def difference(self, actual: Seen, expected: Seen) -> tuple[bool, str]:
        """Whether two runs of one image agree, and how far."""
        cells = expected.keep_mask.shape[2]
        self.subject.rows = np.array(self.bundle.rows_for(cells)) if self.bundle.shares else None
        _, ok, detail = self.subject.compare_decisions(actual.decided, expected.decided)
        if not ok or (actual.keep_mask != expected.keep_mask).any():
            return ok, detail
        return compare_results(actual, expected, self.bundle.config, self.report.limits)
