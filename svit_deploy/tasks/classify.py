"""Classification: a class for each image of one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svit_deploy import names
from svit_deploy.backbones.writer import GraphWriter
from svit_deploy.graph.builder import FLOAT
from svit_deploy.images.prepared import Prepared, stacked
from svit_deploy.images.preprocess import normalise, resize_and_crop
from svit_deploy.methods.families import family_of
from svit_deploy.model.class_names import ClassNames
from svit_deploy.model.config import ModelConfig, parse_image_size
from svit_deploy.model.result import Outputs, Result, stack
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks.accuracy import Accuracy
from svit_deploy.tasks.distance import logits_error, rms
from svit_deploy.tasks.limits import LIMITS
from svit_deploy.tasks.recorded import (
    COMPUTED,
    ROUNDED,
    Wanted,
    check_array,
    named,
    record_selection,
    restore_selection,
    rounded_runs,
    wanted_selection,
    with_rounded,
)
from svit_deploy.tasks.runs import Judgement, Part, Runs, Show, StageLimit
from svit_deploy.tasks.scores import Scores
from svit_deploy.tasks.task import Arrays, Task

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference


LABELS, PROBABILITIES = "labels", "probabilities"


class Classify(Task):
    """Logits of an image.

    Attributes:
        compared: the output by which two runs are compared.
    """

    name, noun = "classify", "logits"
    compared: ClassVar[str] = names.LOGITS
    staged = "logits"
    many_sizes = False
    samples = painted = 16
    together = 16
    engine_batch = "1:1:32"
    limits = LIMITS
    formats, shown_by = ("csv", "jsonl", "parquet"), ("top_k",)
    takes_labels = True
    no_results: ClassVar[Mapping[str, Any]] = {
        "logits_error": None,
        "top1_accuracy": None,
        "reference_top1_accuracy": None,
    }

    # Images.

    def parse_sizes(self, text: str | None) -> SizeRange | None:
        return None if text is None else SizeRange.single(parse_image_size(text))

    def sizes(self, config: ModelConfig, wanted: SizeRange | None) -> SizeRange:
        return SizeRange.single(config.image_size)

    def prepare(self, picture: np.ndarray, config: ModelConfig, sizes: SizeRange) -> Prepared:
        height, width = picture.shape[:2]
        cropped = resize_and_crop(picture, config.preprocess, sizes.opt)
        pixels = normalise(cropped, config.preprocess)
        return Prepared(pixels, sizes.opt, (1.0, 1.0, 1.0, 1.0), (height, width))

    def feeds(self, images: Sequence[Prepared]) -> Arrays:
        return {names.INPUT: stacked(images)}

    # The graph and the reference.

    def write(self, writer: GraphWriter) -> None:
        head = family_of(writer.config).head
        assert head is not None
        tokens = writer.run(writer.image_input())
        logits = head.write(tokens)
        writer.graph.output(logits, FLOAT, (writer.batch, writer.config.num_classes))
        writer.add_gate_outputs(tokens.decided)

    def outputs(self) -> tuple[str, ...]:
        return (names.LOGITS,)

    def reference_outputs(
        self, backbone: BackboneReference, output: Any, images: Sequence[Prepared], see: Any
    ) -> list[Outputs]:
        head = family_of(backbone.config).head
        assert head is not None
        return [{names.LOGITS: logits} for logits in head.reference(backbone, output).numpy()]

    # Results.

    def read(
        self, outputs: Mapping[str, np.ndarray], images: Sequence[Prepared], config: ModelConfig
    ) -> list[Outputs]:
        return [{names.LOGITS: logits} for logits in outputs[names.LOGITS]]

    def label(self, outputs: Outputs) -> int:
        return int(np.argmax(outputs[names.LOGITS]))

    def sample_shape(self, config: ModelConfig) -> tuple[int, ...]:
        """Of an image as it is recorded; -1 is any length."""
        return config.input_shape

    def wanted(self, config: ModelConfig) -> Wanted:
        """Type and shape of each output of an image."""
        return {names.LOGITS: (np.float32, (config.num_classes,))}

    def record(self, parts: Sequence[Part], config: ModelConfig) -> Arrays:
        """All images stacked: `images`, the outputs, `keep_mask`, `margin`, values, `labels`."""
        images = [image for part in parts for image in part.images]
        arrays = {"images": stacked(images)}
        arrays |= self._record(Result.concatenate([part.result for part in parts]), config)
        rounded = [rounded_runs(part) for part in parts]
        for prefix in rounded[0]:
            whole = Result.concatenate([runs[prefix] for runs in rounded])
            arrays |= named(prefix, self._record(whole, config))
        if all(image.label is not None for image in images):
            arrays["labels"] = np.array([image.label for image in images], np.int64)
        return arrays

    def _record(self, result: Result, config: ModelConfig) -> Arrays:
        outputs = {name: stack(result.outputs, name) for name in self.wanted(config)}
        return outputs | record_selection(config, result)

    def restore(
        self,
        load: Callable[[Sequence[str]], Arrays],
        count: int,
        config: ModelConfig,
        sizes: SizeRange,
        together: int,
    ) -> list[Part]:
        images = {"images": (np.float32, self.sample_shape(config))}
        labels: Wanted = {"labels": (np.int64, ())}
        result = self.wanted(config) | wanted_selection(config)
        rounded = {prefix: named(prefix, result) for prefix in (ROUNDED, COMPUTED)}
        wanted: Wanted = {**images, **labels, **result, **rounded[ROUNDED], **rounded[COMPUTED]}
        arrays = load(list(wanted))
        there = [prefix for prefix, own in rounded.items() if any(name in arrays for name in own)]
        needed = {*images, *result}.union(*(rounded[prefix] for prefix in there))
        for name, (dtype, shape) in wanted.items():
            if name in arrays or name in needed:
                check_array(name, arrays.get(name), dtype, (count, *shape))
        known = arrays["labels"].tolist() if "labels" in arrays else [None] * count
        prepared = [
            Prepared.whole(pixels, f"sample-{i}", label)
            for i, (pixels, label) in enumerate(zip(arrays["images"], known, strict=True))
        ]
        exact = self._restore(arrays, config, count)
        for image, outputs in zip(prepared, exact.outputs, strict=True):
            self.check_sample(image, outputs)
        runs = {
            prefix: self._restore({name: arrays[prefix + name] for name in result}, config, count)
            for prefix in there
        }
        places = [slice(i, i + together) for i in range(0, count, together)]
        return [
            with_rounded(
                Part(tuple(prepared[at]), exact[at]), {name: run[at] for name, run in runs.items()}
            )
            for at in places
        ]

    def check_sample(self, image: Prepared, outputs: Outputs) -> None:
        """Raises ValueError where what is recorded of an image does not fit together."""

    def _restore(self, arrays: Arrays, config: ModelConfig, count: int) -> Result:
        found = [{name: arrays[name][i] for name in self.wanted(config)} for i in range(count)]
        return Result(found, *restore_selection(config, arrays, count))

    # Parity.

    def widened(self, limits: Any, exact: Any, allowed: Mapping[str, float]) -> Any:
        return replace(limits, logits=exact.logits + allowed[names.LOGITS])

    def stages(self, limits: Any, alone: bool) -> list[StageLimit]:
        return [StageLimit("head", names.LOGITS, limits.head if alone else limits.logits)]

    def stage_errors(self, runs: Runs) -> dict[str, float]:
        return {names.LOGITS: self.error(runs)}

    def error(self, runs: Runs) -> float:
        """The largest of what is compared, of all images."""
        if not runs.expected:
            return 0.0
        pairs = zip(runs.actual, runs.expected, strict=True)
        mine, theirs = zip(*((a[self.compared], b[self.compared]) for a, b in pairs), strict=True)
        return logits_error(np.stack(mine), np.stack(theirs))

    def compare(self, runs: Runs) -> tuple[bool, str]:
        error = self.error(runs)
        if error > runs.limits.logits:
            return False, f"logits differ by {error:.2g} (limit {runs.limits.logits:.2g})"
        return True, f"logits within {error:.2g}, limit {runs.limits.logits:.2g}"

    def finite(self, outputs: Outputs) -> bool:
        return bool(np.isfinite(outputs[self.compared]).all())

    def judge(self, shown: Sequence[Outputs], runs: Runs) -> Judgement:
        """Logits and classes of the whole model."""
        broken = np.array([not self.finite(outputs) for outputs in shown])
        error = self.error(runs)
        classes = runs.config.num_classes
        wanted, actual, seen = (
            stack(run, names.LOGITS).reshape(-1, classes)
            for run in (runs.expected, runs.actual, shown)
        )
        result = Judgement(results={"logits_error": error})
        detail = f"error {error:.2g}, limit {runs.limits.logits:.2g}"
        if broken.any():
            detail = f"NaN or infinity in {broken.sum()} of {len(broken)} images"
        result.checks.append(("logits", error <= runs.limits.logits and not broken.any(), detail))
        top1 = wanted.argmax(1)
        agree = actual.argmax(1) == top1
        shown_agree = seen.argmax(1) == top1
        # Two classes within rounding of each other are a near tie too.
        ranked = np.sort(wanted, axis=1)
        lead = ranked[:, -1] - ranked[:, -2] if ranked.shape[1] > 1 else np.inf
        clear = np.broadcast_to(lead > 2 * runs.limits.logits * max(1.0, rms(wanted)), agree.shape)
        holds = bool(agree[clear].mean() >= runs.limits.top1) if clear.any() else True
        detail = (
            f"{shown_agree.mean():.2%} of {len(agree)} image{'s' * (len(agree) > 1)}, "
            f"{agree[clear].sum()} of {clear.sum()} with a clear winner"
        )
        result.checks.append(("top-1 agreement", holds, detail))
        return result

    # How good a model is.

    def scores(self, config: ModelConfig, truth: Any = None) -> Scores:
        return Accuracy(config.num_classes)

    def judge_scores(self, mine: Scores, theirs: Scores) -> Judgement:
        exported, reference = mine.values(), theirs.values()
        top1 = exported["top1_accuracy"], reference["top1_accuracy"]
        return Judgement(
            results=exported | {f"reference_{key}": value for key, value in reference.items()},
            summary=[f"top-1 accuracy {top1[0]:.2%}, reference {top1[1]:.2%}"],
        )

    # What `predict` shows.

    def shown(self, outputs: Outputs, show: Show) -> Outputs:
        """The first classes, most probable first, and their probabilities."""
        logits = outputs[names.LOGITS].astype(np.float64)
        first = np.argsort(-logits, axis=-1, kind="stable")[..., : show.top_k]
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares = powers / powers.sum(axis=-1, keepdims=True)
        return {LABELS: first, PROBABILITIES: np.take_along_axis(shares, first, axis=-1)}

    def describe(self, shown: Outputs, classes: ClassNames) -> dict[str, Any]:
        return {
            "classes": [
                {"label": label, "name": classes.title(label), "probability": round(share, 6)}
                for label, share in zip(
                    shown[LABELS].tolist(), shown[PROBABILITIES].tolist(), strict=True
                )
            ]
        }
