"""What there is to try: exports of a checkpoint, and how each can run here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from svit_deploy.bundle import MODEL
from svit_deploy.engines.runtimes import ONNXRUNTIME, RUNTIMES, Runtime, runtime_named
from svit_deploy.engines.settings import PRECISIONS as COMPUTED_IN
from svit_deploy.engines.settings import EngineChoice
from svit_deploy.engines.tensorrt.build import require_builder
from svit_deploy.errors import CapabilityError, SvitDeployError, UsageError
from svit_deploy.export.engine_settings import GRAPH_ONLY
from svit_deploy.export.settings import AUTO_BUDGET, ExportSettings
from svit_deploy.export.shapes import GRAPH_BATCH
from svit_deploy.graph.builder import PRECISIONS
from svit_deploy.io.hub import spelled
from svit_deploy.loading.settings import LoadSettings
from svit_deploy.methods.families import family_of
from svit_deploy.model.config import TokenMode
from svit_deploy.model.model import Model
from svit_deploy.model.profiles import parse_batches, whole_range
from svit_deploy.options import part_of, read_options, words_of
from svit_deploy.tasks import Task, task_named
from svit_deploy.tune.settings import TuneSettings

FINEST = "fp32"


@dataclass(frozen=True)
class Variant:
    """A way to export the checkpoint.

    Attributes:
        name: of its folder among the candidates.
        options: of `ExportSettings`, by name, as typed.
    """

    name: str
    options: dict[str, Any] = field(hash=False)

    @property
    def settings(self) -> ExportSettings:
        return read_options(ExportSettings, None, self.options)

    def command(self, source: Path, output: Path) -> list[str]:
        """The command line that exports it."""
        words = words_of(ExportSettings, self.options)
        return ["svit-deploy", "export", spelled(source), "-o", str(output), *words]


@dataclass(frozen=True)
class Candidate:
    """An export, and how it is run."""

    variant: Variant
    choice: EngineChoice = field(hash=False)

    @property
    def name(self) -> str:
        """As a target of `bench`, where that can tell it."""
        return f"{self.variant.name}@{name_of(self.choice)}"

    @property
    def run_options(self) -> dict[str, Any]:
        """By the names of the fields that every command has which runs a model."""
        return dict(vars(self.choice))


@dataclass(frozen=True)
class Found:
    """What there is to try.

    Attributes:
        base: the checkpoint in its method's own token mode in float32 on ONNX Runtime: what the
            others are compared with. It may be none of the candidates.
        left_out: what is not tried, and why.
        labelled: whether something may tell how good a candidate is.
    """

    base: Candidate
    candidates: tuple[Candidate, ...]
    left_out: tuple[tuple[str, str], ...]
    labelled: bool

    @property
    def all(self) -> tuple[Candidate, ...]:
        """The base first, each once."""
        others = (one for one in self.candidates if one.name != self.base.name)
        return (self.base, *others)


def name_of(choice: EngineChoice) -> str:
    """`openvino:bf16`, `onnxruntime, cuda`."""
    precision = choice.engine_precision
    computed = f":{COMPUTED_IN[precision]}" if precision else ""
    place = f", {choice.provider or choice.device}" if choice.provider or choice.device else ""
    return f"{choice.engine}{computed}{place}"


def find_candidates(model: Model, settings: TuneSettings) -> Found:
    """All that make sense for a model, on this machine, within what the settings narrow.

    Raises:
        UsageError: a mode, precision or engine that there is not.
        CapabilityError: nothing that is asked for can run here.
    """
    task = task_named(settings.task)
    labelled = task.takes_labels or (task.takes_truth and settings.annotations is not None)
    own = modes_of(model)
    modes = _asked("--modes", settings.modes, [mode.value for mode in own])
    precisions = _asked("--precisions", settings.precisions, list(PRECISIONS))
    engines = [runtime_named(name) for name in settings.engines or RUNTIMES]
    base = Candidate(
        _variant(own[0], FINEST, GRAPH_ONLY, None, settings), EngineChoice(engine=ONNXRUNTIME.name)
    )
    left_out: list[tuple[str, str]] = []
    forms = list(_forms([TokenMode(mode) for mode in modes], own[0], labelled, settings, left_out))
    found = [
        Candidate(_variant(mode, precision, target, percentile, settings), choice)
        for runtime in engines
        for target, precision, choice in _runs(runtime, task, precisions, left_out)
        for mode, percentile in forms
    ]
    if not found:
        what, why = left_out[0]
        raise CapabilityError(
            f"there is nothing to try here: {what}: {why}",
            "leave --modes, --precisions or --engines out, or install what is missing",
        )
    return Found(base, tuple(found), tuple(dict.fromkeys(left_out)), labelled)


def modes_of(model: Model) -> tuple[TokenMode, ...]:
    """The token modes in which a model can be exported; its own comes first."""
    return (TokenMode.DENSE,) if model.candidates else family_of(model.config).modes


def _asked(flag: str, names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Those asked for, in the order of what there is."""
    for name in names or ():
        if name not in known:
            raise UsageError(f"{flag} {name} is none of this model's", f"use {', '.join(known)}")
    return [name for name in known if names is None or name in names]


def _forms(
    modes: Sequence[TokenMode],
    own: TokenMode,
    labelled: bool,
    settings: TuneSettings,
    left_out: list[tuple[str, str]],
) -> Iterator[tuple[TokenMode, float | None]]:
    """Token modes, and the percentages of the images that fit the budgets.

    Where nothing tells how good a candidate is, it must compute what the checkpoint computes.
    """
    for mode in modes:
        if mode is TokenMode.DENSE and mode is not own and not labelled:
            left_out.append((mode.value, "nothing tells what leaving the gates out costs"))
        elif mode is TokenMode.BUDGET:
            for percentile in settings.budget_percentiles:
                if percentile == 100 or labelled:
                    yield mode, percentile
                else:
                    why = "nothing tells what tokens beyond a budget cost"
                    left_out.append((f"{mode.value} of {percentile:g} %", why))
        else:
            yield mode, None


def _runs(
    runtime: Runtime, task: Task, precisions: Sequence[str], left_out: list[tuple[str, str]]
) -> Iterator[tuple[str, str, EngineChoice]]:
    """What a runtime can run here: target, precision of the graph, and how."""
    ways = list(_ways(runtime, left_out))
    for target in (runtime.builds or (GRAPH_ONLY,)) if ways else ():
        try:
            if target != GRAPH_ONLY:
                require_builder(target)
        except SvitDeployError as error:
            left_out.append((target, error.message))
            continue
        for precision in precisions:
            for choice in ways:
                if why := _refusal(runtime, task, precision, choice):
                    place = replace(choice, engine_precision=None)
                    left_out.append((f"{precision} on {name_of(place)}", why))
                else:
                    yield target, precision, choice


def _ways(runtime: Runtime, left_out: list[tuple[str, str]]) -> Iterator[EngineChoice]:
    """How a runtime can run models here."""
    try:
        ways = list(runtime.ways())
    except SvitDeployError as error:
        left_out.append((runtime.name, error.message))
        return
    for choice in ways:
        try:
            if runtime.runs_graphs:
                runtime.require(Path(MODEL), choice)
        except SvitDeployError as error:
            left_out.append((name_of(choice), error.message))
        else:
            yield choice


def _refusal(runtime: Runtime, task: Task, precision: str, choice: EngineChoice) -> str | None:
    """Why a precision is not tried with an engine, if it is not."""
    if precision not in task.limits:
        return f"--task {task.name} is not exported in it"
    for one in (precision, choice.engine_precision):
        try:
            if one is not None:
                task.check_precision(one)
        except UsageError as error:
            return error.message
    return runtime.passes_over(precision, choice)


def _variant(
    mode: TokenMode,
    precision: str,
    target: str,
    percentile: float | None,
    settings: TuneSettings,
) -> Variant:
    """An export, by a name that tells it from the others."""
    options: dict[str, Any] = {"tokens": mode.value, "precision": precision, "target": target}
    name = [mode.value, precision]
    if percentile is not None:
        options |= {"budget": AUTO_BUDGET, "budget_percentile": f"{percentile:g}"}
        name[0] += "" if percentile == 100 else f"{percentile:g}"
    if target != GRAPH_ONLY:
        name.append(target)
        options["batch"] = ",".join(map(str, sorted(set(settings.batches))))
    elif set(settings.batches) == {1}:
        options["batch"] = "1"  # spares dynamic graphs the slots of attention
    elif max(settings.batches) > whole_range(parse_batches(GRAPH_BATCH)).max:
        options["batch"] = f"1:1:{max(settings.batches)}"
    options["calibration"] = settings.calibration or settings.images
    options |= {key: getattr(settings, key) for key in ("max_images", "class_names", "task")}
    return Variant("-".join(name), options | vars(part_of(settings, LoadSettings)))
