"""Writing a folder for Polygraphy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnx

from svit_deploy.bundle import Bundle
from svit_deploy.debug.graphs import part_of, same, written_anew
from svit_deploy.debug.readme import INPUTS, MODEL, README, REFERENCE, SOUND, Contents
from svit_deploy.debug.settings import DebugSettings
from svit_deploy.debug.stage import Found, expected_values, found_in, read_report
from svit_deploy.engines.onnxruntime import require_provider
from svit_deploy.engines.providers import CPU
from svit_deploy.errors import ExportError, UsageError
from svit_deploy.io.folder import check_folder, write_folder
from svit_deploy.loading.settings import LoadSettings
from svit_deploy.machine.packages import require
from svit_deploy.model.precision import FP8
from svit_deploy.plan import RUN, Plan
from svit_deploy.progress import SILENT, Progress
from svit_deploy.tasks import Part
from svit_deploy.verify.expected import ExpectedResults, LiveReference, StoredReference
from svit_deploy.verify.run import require_reference, tell_reference, verify_against
from svit_deploy.verify.settings import VerifySettings

Arrays = Mapping[str, np.ndarray]


def debug_bundle(
    bundle: Bundle,
    output: Path,
    settings: DebugSettings | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
    plan: Plan = RUN,
) -> Contents:
    """Writes what Polygraphy needs to find the node of a graph that goes wrong.

    That is the graph up to the first stage that differs from the reference, whole if none does;
    sample inputs; what the reference gives; a sound graph where one can be written; and a page
    with the commands.

    Args:
        force: replace such a folder at `output`.
        plan: is asked for what is needed before anything is read.

    Raises:
        UsageError: only a checkpoint tells what the wrong stage should give, or the bundle is fp8.
        InputError: the report, the checkpoint or the bundle cannot be read.
        CapabilityError: Polygraphy is missing, ONNX Runtime, or what the reference needs.
        ExportError: `output` is in the way, or cannot be written.
    """
    settings = settings or DebugSettings()
    if bundle.precision == FP8.name:
        raise UsageError(
            "Polygraphy cannot tell ONNX Runtime to leave an fp8 graph as it is",
            "debug an export of the same model in fp32 or int8",
        )
    plan.needs(require, "polygraphy", "debug", "files in its formats", extra="debug")
    if settings.report is None:
        plan.needs(require_provider, CPU)
    plan.needs(check_folder, output, lambda path: _refuse_to_overwrite(path, force))
    found = None if settings.report is None else read_report(settings.report, bundle)
    reference = _reference(bundle, settings, plan)
    plan.tell("bundle", f"{bundle.name}, token mode {bundle.mode.value}, {bundle.precision}")
    tell_reference(plan, reference)
    if found is None:
        plan.tell("first", "a verification")
    if settings.against is not None:
        plan.tell("where wrong", "a sound graph is written anew from the checkpoint, too")
    plan.writes(*(output / name for name in (MODEL, INPUTS, REFERENCE, README)))
    plan.begin()
    if found is None:
        on_cpu = VerifySettings(provider=CPU)
        found = found_in(verify_against(bundle, reference, on_cpu, progress).to_dict())
    return _write(bundle, output, found, reference, settings.max_images, force)


def _reference(bundle: Bundle, settings: DebugSettings, plan: Plan) -> ExpectedResults:
    """What the checkpoint gives if there is one, else what was recorded of it."""
    if settings.against is None:
        return StoredReference(bundle)
    require_reference(bundle, plan, "debug --against")
    from svit_deploy.verify.checkpoint import load_reference_model

    shared = {one.name: getattr(settings, one.name) for one in fields(LoadSettings)}
    return LiveReference(bundle, load_reference_model(bundle, settings.against, **shared))


def _write(
    bundle: Bundle,
    output: Path,
    found: Found,
    reference: ExpectedResults,
    images: int | None,
    force: bool,
) -> Contents:
    model = part_of(bundle.load_model(), found.value)
    shown = [one.name for one in model.graph.output]
    parts = list(_first(reference.parts(), images or bundle.manifest["batch"]["min"]))
    known = [expected_values(bundle, part.result, shown) for part in parts]
    expected = known if known[0] else []
    if found.value and not reference.has_stages and not expected:
        raise UsageError(
            f"only the checkpoint tells what {found.stage} should give", "add --against CHECKPOINT"
        )
    sound = _sound(bundle, found, reference)
    contents = Contents(bundle, found, bool(expected), sound is not None)
    with write_folder(output, lambda path: _refuse_to_overwrite(path, force)) as folder:
        onnx.save(model, folder / MODEL)
        if sound is not None:
            onnx.save(sound, folder / SOUND)
        _save(folder, [bundle.task.feeds(part.images) for part in parts], expected)
        text = contents.readme()
        (folder / README).write_text(text, encoding="utf-8", newline="\n")
    return contents


def _first(parts: Iterator[Part], images: int) -> Iterator[Part]:
    """The first so many images, in their parts."""
    for part in parts:
        some = part.images[:images]
        yield replace(part, images=some, result=part.result[: len(some)])
        images -= len(some)
        if images <= 0:
            return


def _sound(bundle: Bundle, found: Found, reference: ExpectedResults) -> onnx.ModelProto | None:
    """A graph to compare inner values with; None where this version writes what the bundle has."""
    if not found.value or reference.model is None:
        return None
    sound = part_of(written_anew(bundle, reference.model), found.value)
    return None if same(sound, part_of(bundle.load_model(), found.value)) else sound


def _save(folder: Path, feeds: Sequence[Arrays], expected: Sequence[Arrays]) -> None:
    """Writes both in Polygraphy's own formats, a list of dictionaries each."""
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):  # it tells of each file on standard output
        save_json(list(feeds), str(folder / INPUTS))
        if expected:
            results = RunResults()
            results.add(list(expected), runner_name="reference")
            results.save(str(folder / REFERENCE))


def _refuse_to_overwrite(output: Path, force: bool) -> None:
    elsewhere = "give another folder with -o"
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    ours = (MODEL, INPUTS, README)
    if output.is_symlink() or not all((output / name).is_file() for name in ours):
        raise ExportError(f"{output} exists and is no folder that debug wrote", elsewhere)
    if not force:
        raise ExportError(f"{output} was written before", f"{elsewhere}, or --force")
