"""Every stage of a detection model by itself."""

from __future__ import annotations

import onnx

from svit_deploy.compare import margin_error, token_error
from svit_deploy.detection.bundle import DetectionBundle, subsample
from svit_deploy.detection.config import Task
from svit_deploy.detection.postprocess import Detections, split_images
from svit_deploy.detection.preprocess import feeds_of
from svit_deploy.detection.verify.expected import Expectation
from svit_deploy.detection.verify.observed import guided, masks_for
from svit_deploy.detection.verify.report import DetectionReport
from svit_deploy.engines.base import Engine
from svit_deploy.export import names
from svit_deploy.graph_edit import FED, feed_values
from svit_deploy.verify.report import Stage
from svit_deploy.verify.subject import Subject


class Stages:
    """The largest error of each stage, on the reference's keep masks and, if known, its values.

    Args:
        alone: whether the reference's values are known, so that each stage runs by itself.
    """

    def __init__(
        self, bundle: DetectionBundle, subject: Subject, report: DetectionReport, alone: bool
    ) -> None:
        self.bundle, self.subject, self.report, self.alone = bundle, subject, report, alone
        self.errors: dict[str, float] = {}

    def graph(self) -> onnx.ModelProto:
        """The graph with these for inputs."""
        model = guided(self.subject)
        if self.alone:
            width = self.bundle.config.embed_dim
            model = feed_values(model, dict.fromkeys(self.bundle.stages, ("rows", width)))
            if self.bundle.task is Task.DETECT:
                maps = {
                    name: ("batch", width, f"rows_{name}", f"columns_{name}")
                    for name in self.bundle.features
                }
                model = feed_values(model, maps)
        return model

    def run(self, engine: Engine, part: Expectation) -> Detections | None:
        """Adds the errors of one image's stages; returns what its heads make of the reference's."""
        feeds = feeds_of([part.image], self.bundle.inputs) | masks_for(part.keep_mask)
        feeds |= {name + FED: rows for name, rows in part.stages.items()}
        if part.stages and self.bundle.task is Task.DETECT:
            feeds |= {n + FED: m for n, m in zip(self.bundle.features, part.maps, strict=True)}
        outputs = engine.run(feeds)
        for gate in self.subject.gates:
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

    def judge(self) -> None:
        """Lists the stages in the order they run and names the first that differs."""
        limits, scales, alone = self.report.limits, self.subject.scales, self.alone
        gate_of = {names.block_name(b): gate for b, gate in self.bundle.config.gate_of.items()}
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


def _label(name: str) -> str:
    """`block_3.out` -> `block 3`"""
    return name.removesuffix(".out").replace("_", " ")
