"""The steps of a choice: each goes through the function of the command of its name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from svit_deploy.bench.durations import TimingSettings
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bench.targets import Candidate as Target
from svit_deploy.bench.targets import bench_candidates, find_candidate
from svit_deploy.bundle import Bundle, open_bundle
from svit_deploy.errors import SvitDeployError, VerificationFailed
from svit_deploy.evaluate.labelled import with_labels
from svit_deploy.evaluate.run import evaluate_bundle, evenly_spread
from svit_deploy.evaluate.settings import EvaluateSettings
from svit_deploy.export.pipeline import export_model
from svit_deploy.images import source_of
from svit_deploy.inference.places import open_run
from svit_deploy.inference.stream import Seen as Looked
from svit_deploy.inference.stream import Stream
from svit_deploy.loading.settings import LoadSettings
from svit_deploy.model.model import Model
from svit_deploy.options import part_of
from svit_deploy.progress import Progress
from svit_deploy.tasks import Task
from svit_deploy.tune.candidates import Candidate, Found, Variant
from svit_deploy.tune.report import Outcome, Seen, TuneReport, make_report
from svit_deploy.tune.settings import TuneSettings
from svit_deploy.tune.work import Step, Work
from svit_deploy.verify.run import verify_bundle
from svit_deploy.verify.settings import VerifySettings

log = logging.getLogger(__name__)

EXPORT, VERIFY, ANSWERS = "exporting", "verifying", "recording the answers of"
EVALUATE, BENCH = "evaluating", "measuring"
ANSWERS_FILE = "answers.npy"


@dataclass
class Tuner:
    """Takes the steps, as far as they are not done."""

    model: Model
    source: Path
    output: Path
    settings: TuneSettings
    found: Found
    work: Work
    task: Task
    answers: Path | None = None

    def report(self) -> TuneReport:
        """All steps, and what they come to."""
        seen = {self.found.base.name: self._see(self.found.base)}
        for candidate in self.found.all[1:]:
            try:
                seen[candidate.name] = self._see(candidate)
            except SvitDeployError as error:
                if isinstance(error.__cause__, OSError):  # no other would fare better
                    raise
                self._drop(candidate, error.message)
                seen[candidate.name] = Seen(candidate, failed=error.message)
        passed = [one for one in seen.values() if one.failed is None]
        benchmarks = [self._bench(passed, batch) for batch in self.settings.batches]
        agreement = self.answers is not None
        chosen = Outcome(self.settings, self.found, list(seen.values()), benchmarks, agreement)
        return make_report(chosen, self.model, self.source, self.output, self.work.seconds)

    def _see(self, candidate: Candidate) -> Seen:
        """Exports, verifies and evaluates; raises SvitDeployError where it does not pass."""
        self._once(EXPORT, candidate.variant.name, partial(self._export, candidate.variant))
        verified = self._once(VERIFY, candidate.name, partial(self._verify, candidate))
        if not verified["passed"]:
            if candidate == self.found.base:
                raise VerificationFailed(
                    f"not even the base is equal to its checkpoint: {verified['verdict']}",
                    "run svit-deploy verify of such an export to see more",
                )
            self._drop(candidate, verified["verdict"])
            return Seen(candidate, verified, failed=verified["verdict"])
        if not self.found.labelled:
            return Seen(candidate, verified)
        if candidate == self.found.base:
            self._find_answers(candidate)
        evaluated = self._once(EVALUATE, candidate.name, partial(self._evaluate, candidate))
        return Seen(candidate, verified, evaluated)

    def _once(self, kind: str, of: str, do: Callable[[Progress], Any]) -> Any:
        return self.work.once(Step(kind, of), do)

    def _drop(self, candidate: Candidate, why: str) -> None:
        self.work.drop(candidate.name)
        log.warning("%s is dropped: %s", candidate.name, why)

    def _bundle(self, variant: Variant) -> Bundle:
        return open_bundle(self.work.folder / variant.name)

    def _export(self, variant: Variant, progress: Progress) -> None:
        folder = self.work.folder / variant.name
        command = variant.command(self.source, self.output)
        export_model(
            self.model, folder, variant.settings, force=True, command=command, progress=progress
        )

    def _verify(self, candidate: Candidate, progress: Progress) -> dict[str, Any]:
        settings = VerifySettings(
            against=self.source,
            images=self.settings.images,
            max_images=self.settings.verify_images,
            **vars(part_of(self.settings, LoadSettings)),
            **candidate.run_options,
        )
        report = verify_bundle(self._bundle(candidate.variant), settings, progress)
        flips = [gate.flips for gate in report.gates]
        return {
            "passed": report.passed,
            "verdict": report.verdict,
            "images": report.images,
            "decisions": sum(one.tokens for one in flips),
            "turned": sum(one.flips + one.consequences for one in flips),
            "faults": sum(one.faults for one in flips),
        }

    def _evaluate(self, candidate: Candidate, progress: Progress) -> dict[str, Any]:
        settings = self._evaluation(candidate, self.answers or self.settings.labels)
        bundle = self._bundle(candidate.variant)
        return evaluate_bundle(bundle, settings, progress).results()

    def _evaluation(self, candidate: Candidate, labels: Path | None) -> EvaluateSettings:
        return EvaluateSettings(
            images=self.settings.images,
            labels=labels,
            annotations=self.settings.annotations,
            max_images=self.settings.max_images,
            **candidate.run_options,
        )

    def _find_answers(self, base: Candidate) -> None:
        """Where nothing tells the classes of the images, those that the base gives count."""
        bundle, settings = self._bundle(base.variant), self._evaluation(base, self.settings.labels)
        if self.task.takes_labels and with_labels(bundle, settings) is None:
            self.answers = self.work.folder / ANSWERS_FILE
            self._once(ANSWERS, base.name, partial(self._save_answers, bundle, settings))

    def _save_answers(self, bundle: Bundle, settings: EvaluateSettings, progress: Progress) -> None:
        source = source_of(settings.images, self.task.reader(bundle.config))
        chosen = evenly_spread(len(source), settings.max_images)
        answers = np.zeros(len(source), np.int64)

        def answer(seen: Looked) -> tuple[int, int]:
            return seen.number, self.task.label(seen.outputs)

        with open_run(bundle, settings, answer) as opened:
            for number, label in Stream(opened, bundle, source, progress, chosen):
                answers[number] = label
        assert self.answers is not None
        np.save(self.answers, answers)

    def _bench(self, passed: Sequence[Seen], batch: int) -> dict[str, Any]:
        """The report of one interleaved benchmark of all that passed, the base first."""
        settings, limit_s = self.settings, self.settings.max_time_s
        timing = vars(part_of(settings, TimingSettings))
        bench = BenchSettings(
            images=settings.images,
            max_images=settings.max_images,
            batches=(batch,),
            worst_case=False,
            **timing | {"max_time_s": limit_s and limit_s / len(settings.batches)},
        )
        lanes = [
            (seen.candidate, threads, seen.label(threads))
            for seen in passed
            for threads in settings.threads
        ]
        targets = [self._target(*lane, bench) for lane in lanes]
        return self.work.once(
            Step(BENCH, f"batch {batch}"),
            lambda progress: bench_candidates(targets, bench, progress).to_dict(),
            among=f"{', '.join(label for _, _, label in lanes)}; {timing}",
        )

    def _target(
        self, candidate: Candidate, threads: int, label: str, bench: BenchSettings
    ) -> Target:
        own = replace(bench, **candidate.run_options | {"threads": threads})
        found = find_candidate(self.work.folder / candidate.variant.name, own)
        return replace(
            found,
            prepare=lambda inputs: [
                replace(target, label=label) for target in found.prepare(inputs)
            ],
        )
