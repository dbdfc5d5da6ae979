"""The whole job once, on the trained digits model that comes with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from svit_deploy import api
from svit_deploy.bench.printing import render
from svit_deploy.bench.report import BenchReport
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.commands.common import dated, write_html
from svit_deploy.commands.console import headline
from svit_deploy.engines.onnxruntime import require_provider
from svit_deploy.engines.providers import CPU
from svit_deploy.errors import ExportError, InputError, VerificationFailed
from svit_deploy.io.folder import check_folder
from svit_deploy.machine.packages import require_torch
from svit_deploy.pages.bench import bench_sections, fastest
from svit_deploy.pages.page import render_page
from svit_deploy.pages.verify import verify_sections
from svit_deploy.plan import RUN, Plan
from svit_deploy.progress import Progress
from svit_deploy.verify.report import VerifyReport

BENCH = BenchSettings(batches=(1, 32), warmup_s=0.5, duration_s=3.0, threads=1)
PICTURES = 24


def digits_folder() -> Path:
    """Where the digits model is: inside the installed package, or examples/ of a checkout.

    Raises:
        InputError: neither is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "digits", package.parent / "examples" / "digits"):
        if (folder / "svit_digits.pth").is_file():
            return folder
    raise InputError("the digits model is not installed", "install svit-deploy again")


def _refuse_to_overwrite(output: Path, force: bool) -> None:
    if output.exists() and not force and not (output.is_dir() and not any(output.iterdir())):
        raise ExportError(f"{output} exists", "give another folder with -o, or --force")


def run_quickstart(
    output: Path, console: Console, progress: Progress, plan: Plan = RUN, *, force: bool = False
) -> None:
    """Exports the digits model and its dense twin, verifies, benches and draws token maps.

    Raises:
        ExportError: `output` exists; with `force` the bundles and maps in it are replaced.
        VerificationFailed: an export is not equal to its checkpoint.
    """
    plan.needs(require_torch, "quickstart", "the reference forward pass")
    plan.needs(require_provider, CPU)
    plan.needs(check_folder, output, lambda path: _refuse_to_overwrite(path, force))
    digits = digits_folder()
    for step in ("export", "verify"):
        plan.tell(step, "the digits model, dense and dynamic")
    plan.tell(
        "bench", f"both, batch {' and '.join(map(str, BENCH.batches))}; about a minute in all"
    )
    plan.tell("visualize", f"the tokens kept of {PICTURES} digits")
    plan.writes(*(output / name for name in ("dense", "dynamic", "maps", "report.html")))
    plan.begin()
    checkpoint, heldout = digits / "svit_digits.pth", digits / "heldout.npz"
    arch = str(digits / "arch.yaml")
    reports = []
    for mode in ("dense", "dynamic"):
        headline(console, f"{mode}: export and verify")
        bundle = api.export(
            checkpoint,
            output / mode,
            arch=arch,
            tokens=mode,
            calibration=digits / "calibration.npz",
            force=force,
            command=["svit-deploy", "quickstart"],
            progress=progress,
        )
        report = api.verify(
            bundle.path, against=checkpoint, images=heldout, arch=arch, progress=progress
        )
        report.render(console)
        if not report.passed:
            raise VerificationFailed(report.verdict, "please report this")
        reports.append((mode, report))
    headline(console, "latency, dense against dynamic")
    targets = [output / mode for mode, _ in reports]
    measured = api.bench(targets, images=heldout, settings=BENCH, progress=progress)
    render(measured, console)
    maps = api.visualize(
        output / "dynamic",
        output / "maps",
        images=heldout,
        max_images=PICTURES,
        progress=progress,
    )
    headline(console, "summary")
    labels = np.load(heldout)["labels"]
    console.print(f"top-1 on {len(labels)} held-out digits", highlight=False)
    for mode, report in reports:
        theirs, mine = (report.results[f"{who}top1_accuracy"] for who in ("reference_", ""))
        console.print(f"  {mode:8} PyTorch {theirs:.2%}, exported {mine:.2%}", highlight=False)
    page = output / "report.html"
    write_html(page, lambda: _page(reports, measured), "-o")
    console.print(f"bundles {', '.join(map(str, targets))}; {len(maps)} files in {output / 'maps'}")
    console.print(f"report  {page}", highlight=False)


def _page(reports: Sequence[tuple[str, VerifyReport]], measured: BenchReport) -> str:
    """What was verified and measured, on one page."""
    command = ["svit-deploy", "quickstart"]
    verified = {mode: report.to_dict(command) for mode, report in reports}
    benched = measured.to_dict(command, raw=True)
    sections = bench_sections(benched)
    for mode, report in reports:
        sections += verify_sections(verified[mode], report.maps(), f"{mode}: ")
    record = dated({**benched, "verify": verified})
    return render_page("The digits model", True, fastest(benched), sections, record)
