"""Packages a bundle: a folder that is complete or absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from svit_deploy import __version__
from svit_deploy.bundle import Bundle
from svit_deploy.errors import ExportError, UsageError
from svit_deploy.inference.engine import tell_run
from svit_deploy.io.folder import check_folder, write_folder
from svit_deploy.io.strict_json import write_json
from svit_deploy.package.docker import write_docker
from svit_deploy.package.kserve import check_kserve, write_kserve
from svit_deploy.package.settings import PackageSettings
from svit_deploy.package.triton import check_triton, write_triton
from svit_deploy.plan import RUN, Plan

ABOUT = "package.json"
"""By it a folder is known as a package."""

Check = Callable[[Bundle, PackageSettings], None]
Write = Callable[[Bundle, str, PackageSettings, Path], None]
"""Writes into a folder that is there; given the model's name."""


def nothing_to_check(bundle: Bundle, settings: PackageSettings) -> None:
    """Whatever the server of this package runs can be packaged with it."""


FORMATS: dict[str, tuple[Check, Write]] = {
    "triton": (check_triton, write_triton),
    "kserve": (check_kserve, write_kserve),
    "docker": (nothing_to_check, write_docker),
}


def package_bundle(
    bundle: Bundle,
    output: Path,
    settings: PackageSettings,
    *,
    force: bool = False,
    plan: Plan = RUN,
) -> Path:
    """Writes a folder to deploy a bundle with; returns it.

    Raises:
        UsageError: an unknown format, a name that cannot be, or an option without a meaning.
        InputError: what runs the bundle cannot run there.
        CapabilityError: a package that the format needs is missing.
        ExportError: `output` is in the way, or cannot be written.
    """
    if settings.format not in FORMATS:
        raise UsageError(
            f"--format {settings.format!r:.40} is unknown", f"use {', '.join(FORMATS)}"
        )
    check, write = FORMATS[settings.format]
    name = settings.name or bundle.name
    if not name or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
        raise UsageError(
            f"{name!r:.80} is no name of a model", "give one with --name, of letters and digits"
        )
    for option in ("image", "storage"):
        if getattr(settings, option) is not None and settings.format != "kserve":
            raise UsageError(f"--{option} has no meaning for {settings.format}", "leave it out")

    def refuse(path: Path) -> None:
        _refuse_to_overwrite(path, force)

    plan.needs(check, bundle, settings)
    plan.needs(check_folder, output, refuse)
    tell_run(plan, bundle, settings)
    plan.tell("package", f"{settings.format}, model {name}")
    plan.writes(output / ABOUT)
    plan.begin()
    with write_folder(output, refuse) as folder:
        write(bundle, name, settings, folder)
        about = {
            "schema_version": 1,
            "tool": {"name": "svit-deploy", "version": __version__},
            "format": settings.format,
            "model": name,
            "model_sha256": bundle.model_sha256,
        }
        write_json(folder / ABOUT, about)
    return output


def _refuse_to_overwrite(output: Path, force: bool) -> None:
    elsewhere = "give another folder with -o"
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if output.is_symlink() or not (output / ABOUT).is_file():
        raise ExportError(f"{output} exists and is no package", elsewhere)
    if not force:
        raise ExportError(f"{output} holds a package already", f"{elsewhere}, or --force")
