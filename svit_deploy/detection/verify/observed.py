"""What runs of an exported detection model show, image by image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from svit_deploy.compare import effective_keep, token_error
from svit_deploy.detection.bundle import DetectionBundle, subsample
from svit_deploy.detection.config import STRIDES, AdapterConfig, Task
from svit_deploy.detection.postprocess import Detections, split_images
from svit_deploy.detection.preprocess import Prepared, feeds_of
from svit_deploy.detection.verify.detections import compare_detections, faults, in_words
from svit_deploy.detection.verify.limits import DetectionLimits
from svit_deploy.engines.base import Engine
from svit_deploy.export import names
from svit_deploy.graph_edit import add_outputs, force_values
from svit_deploy.verify.subject import Observed, Subject


@dataclass(frozen=True)
class Seen:
    """What a run of one image shows.

    Attributes:
        features: per stride `[C, cells]`, at the places that a bundle records; None where the
            graph does not show them.
        keep_mask, margin: `[1, G, N]`; G is 0 where the graph does not show its gates.
    """

    features: tuple[np.ndarray, ...] | None
    keep_mask: np.ndarray
    margin: np.ndarray
    detections: Detections | None
    overflow: np.ndarray | None = None

    @property
    def decided(self) -> Observed:
        return decisions_of(self.keep_mask, self.margin)


def decisions_of(keep_mask: np.ndarray, margin: np.ndarray) -> Observed:
    """Masks and margins alone, as `Subject.compare_decisions` takes them."""
    return Observed(np.empty((len(keep_mask), 0), np.float32), keep_mask, margin)


def shown(subject: Subject) -> onnx.ModelProto:
    """The graph with its gates and its feature maps in view."""
    return add_outputs(subject.observable(subject.model), subject.bundle.features)


def shipped(subject: Subject) -> Engine:
    """The file as it is; of a graph that hides some of them, its gates and features in view."""
    whole = subject.runs_engine or set(subject.bundle.features) <= set(subject.bundle.task_outputs)
    if subject.shows_gates and whole:
        return subject.file()
    return subject.engine(shown(subject))


def guided(subject: Subject) -> onnx.ModelProto:
    """The graph with its decisions for inputs, its margins and its feature maps in view."""
    shape: tuple[int | str, ...] = ("batch", "tokens")
    decisions = {names.decision_name(gate): shape for gate in subject.gates}
    model = add_outputs(force_values(subject.model, decisions), subject.bundle.features)
    return add_outputs(model, [names.margin_name(gate) for gate in subject.gates])


def masks_for(keep_mask: np.ndarray) -> dict[str, np.ndarray]:
    """Keep masks `[B, G, N]` as they are fed to it."""
    return {
        names.decision_name(gate): np.ascontiguousarray(keep_mask[:, gate])
        for gate in range(keep_mask.shape[1])
    }


def observe(bundle: DetectionBundle, subject: Subject, engine: Engine, image: Prepared) -> Seen:
    """Runs one image by itself."""
    outputs = engine.run(feeds_of([image], bundle.inputs))
    return read_outputs(bundle, subject, outputs, [image])[0]


def read_outputs(
    bundle: DetectionBundle,
    subject: Subject,
    outputs: dict[str, np.ndarray],
    images: list[Prepared],
) -> list[Seen]:
    """A batch's outputs, image by image."""
    cells = bundle.config.tokens_of(images[0].size)
    gates = subject.gates
    if not gates or not {names.MARGIN, names.margin_name(0)} & set(outputs):
        margin = np.zeros((len(images), 0, cells), np.float32)
        keep = margin.astype(bool)
    elif names.MARGIN in outputs:
        keep, margin = outputs[names.KEEP_MASK], outputs[names.MARGIN]
    else:
        margin = np.stack([outputs[names.margin_name(gate)] for gate in gates], 1)
        decision = np.stack([outputs[names.decision_name(gate)] for gate in gates], 1)
        rows = bundle.rows_for(cells)
        keep = effective_keep(decision, margin, np.array(rows) if rows else None)
    found: list[Detections | None] = [None] * len(images)
    if bundle.task is Task.DETECT:
        found = list(split_images(outputs, len(images)))
    overflow = outputs.get(names.OVERFLOW)
    features = [outputs.get(name) for name in bundle.features]
    seen = []
    for i, image in enumerate(images):
        maps = [feature[i] for feature in features if feature is not None]
        seen.append(
            Seen(
                subsample(maps, image.size) if len(maps) == len(STRIDES) else None,
                keep[i : i + 1],
                margin[i : i + 1],
                found[i],
                None if overflow is None else overflow[i : i + 1],
            )
        )
    return seen


def compare_results(
    actual: Seen, expected: Seen, config: AdapterConfig, limits: DetectionLimits
) -> tuple[bool, str]:
    """Whether two runs of one image on the same masks find the same, as far as both show it."""
    words, wrong = [], []
    if actual.features is not None and expected.features is not None:
        pairs = zip(actual.features, expected.features, strict=True)
        error = max(token_error(a.T, b.T) for a, b in pairs)
        words.append(f"features within {error:.2g}, limit {limits.features:.2g}")
        if not error <= limits.features:
            wrong.append(f"features differ by {error:.2g} (limit {limits.features:.2g})")
    if actual.detections is not None and expected.detections is not None:
        found = compare_detections([(actual.detections, expected.detections)], config, limits)
        words.append(in_words(found, limits))
        wrong += faults(found, limits, config)
    return not wrong, ", ".join(wrong or words)
