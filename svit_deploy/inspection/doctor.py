"""What is installed here, which commands will work, and what to type for the others."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from svit_deploy import __version__
from svit_deploy.errors import SvitDeployError
from svit_deploy.inspection.nvidia import COMMANDS, examine_nvidia
from svit_deploy.inspection.openvino import ON_OPENVINO, examine_openvino
from svit_deploy.machine.environment import (
    cpu_model,
    installed_version,
    physical_cores,
    release,
    usable_cores,
)

SCHEMA_VERSION = 1
State = Literal["ok", "missing", "too old", "broken", "unusable"]

RUNTIMES = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino",
    "onnxruntime-migraphx", "onnxruntime-qnn",
)  # fmt: skip
FROM_HUBS = ("export hf://", "export timm:")
DETECTORS = ("export --task detect", "verify --against, detect")
ANNOTATED = ("verify --annotations", "evaluate --annotations", "predict --format coco")
ON_RAY = ("--ray: verify, evaluate, predict, serve",)
OF_VIDEOS = ("--images: files of videos",)
EVERY = (
    "export", *FROM_HUBS, "verify", "verify --against", *DETECTORS, "debug", "evaluate",
    *ANNOTATED, "bench", "bench --sweep-tokens", "tune", "predict", "predict --format parquet",
    "visualize", "serve", *ON_RAY, *OF_VIDEOS, "package", "package --format triton", "inspect",
    "init", "quickstart",
)  # fmt: skip
WITHOUT_RUNNING = (
    "package",
    "package --format triton",
    "inspect",
    "export",
    *FROM_HUBS,
    "export --task detect",
    "init",
)
RUNNING = tuple(command for command in EVERY if command not in WITHOUT_RUNNING)
WITH_CHECKPOINT = (
    "export", *FROM_HUBS, *DETECTORS, "verify --against", "tune", "init", "quickstart",
)  # fmt: skip
RUNTIME_MINIMUM = "1.21"
CPU_FLAGS = {  # in /proc/cpuinfo: what matters to the kernels of ONNX Runtime
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI",
    "avx512_bf16": "AVX-512 BF16", "amx_tile": "AMX", "asimd": "NEON", "asimdhp": "NEON FP16",
    "asimddp": "NEON dot product", "i8mm": "I8MM", "sve": "SVE",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that commands need.

    Attributes:
        needed_for: the commands that do not work without it; empty for facts about the machine.
        fix: what to type, if it is not ok.
    """

    name: str
    state: State
    detail: str
    needed_for: tuple[str, ...] = ()
    fix: str = ""


@dataclass(frozen=True)
class Requirement:
    """A package: its distribution, smallest version, and the commands that need it.

    Attributes:
        reason: why no older version will do.
        advice: the version to prefer, and why.
    """

    name: str
    minimum: str
    needed_for: tuple[str, ...]
    reason: str = ""
    advice: tuple[str, str] = ("0", "")


REQUIREMENTS = (
    Requirement("numpy", "1.26", EVERY),
    Requirement("onnx", "1.21", EVERY, "older versions follow links out of model files"),
    Requirement("pillow", "10.0", EVERY),
    Requirement("pyyaml", "6.0", EVERY),
    Requirement("safetensors", "0.4.3", (*WITH_CHECKPOINT, "inspect")),
    Requirement(
        "torch",
        "2.6",
        WITH_CHECKPOINT,
        "older versions run code out of weight files (CVE-2025-32434)",
        ("2.10", "hostile weight files can corrupt memory before it (CVE-2026-24747)"),
    ),
    Requirement("torchvision", "0.21", DETECTORS),
    Requirement("pycocotools", "2.0.8", ANNOTATED),
    Requirement("polygraphy", "0.53.4", ("debug",)),
    Requirement("pyarrow", "15.0", ("predict --format parquet",)),
    Requirement("kserve", "0.21", ("serve",)),
    Requirement("ray", "2.60", ON_RAY),
    Requirement("tritonclient", "2.40", ("package --format triton",)),
    Requirement("huggingface-hub", "0.25", FROM_HUBS),
    Requirement("timm", "1.0", ("export timm:",)),
    Requirement("matplotlib", "3.8", ("bench --sweep-tokens",)),
    Requirement("av", "12.0", OF_VIDEOS),
)


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and for each command what stands in its way (empty: it works)."""

    findings: tuple[Finding, ...]
    commands: dict[str, tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able record."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "svit-deploy", "version": __version__},
            "findings": [
                asdict(finding) | {"needed_for": list(finding.needed_for)}
                for finding in self.findings
            ],
            "commands": {
                command: {"works": not reasons, "reasons": list(reasons)}
                for command, reasons in self.commands.items()
            },
        }

    def render(self, console: Console) -> None:
        """Prints findings, commands and what to type; fits 80 columns, ASCII only."""
        table = Table(box=None, pad_edge=False)
        for heading in ("found", "state", "detail"):
            table.add_column(heading, overflow="fold")
        for finding in self.findings:
            style = "" if finding.state == "ok" else "bold red"
            table.add_row(finding.name, Text(finding.state, style), Text(_ascii(finding.detail)))
        console.print(table)
        console.print()
        table = Table(box=None, pad_edge=False)
        for heading in ("command", "works"):
            table.add_column(heading, overflow="fold")
        for command, reasons in self.commands.items():
            table.add_row(command, Text(f"no: {', '.join(reasons)}" if reasons else "yes"))
        console.print(table)
        for finding in self.findings:
            if finding.fix:
                console.print(f"{finding.name}: {finding.fix}", markup=False, highlight=False)


def examine() -> Diagnosis:
    """Looks at this machine; it imports ONNX Runtime and OpenVINO only, for what they run on."""
    findings: tuple[Finding, ...] = (
        _python(),
        *map(_package, REQUIREMENTS),
        *_runtime(),
        *_machine(),
    )
    findings += tuple(Finding(*found) for found in (examine_openvino(), *examine_nvidia()))
    commands = {
        command: tuple(
            f"{finding.name} is {finding.state}"
            for finding in findings
            if finding.state != "ok" and command in finding.needed_for
        )
        for command in (*EVERY, ON_OPENVINO, *COMMANDS)
    }
    return Diagnosis(findings, commands)


def _python() -> Finding:
    state: State = "ok" if sys.version_info >= (3, 10) else "too old"
    fix = "" if state == "ok" else "install Python 3.10 or newer"
    return Finding("python", state, platform.python_version(), EVERY, fix)


def _package(wanted: Requirement) -> Finding:
    install = f'pip install --upgrade "{wanted.name}>={wanted.minimum}"'
    version = installed_version(wanted.name)
    if version is None:
        return Finding(wanted.name, "missing", "not installed", wanted.needed_for, install)
    if release(version) < release(wanted.minimum):
        reason = f"; {wanted.reason}" if wanted.reason else ""
        detail = f"{version}, needs {wanted.minimum}{reason}"
        return Finding(wanted.name, "too old", detail, wanted.needed_for, install)
    better, why = wanted.advice
    advice = f", {better} is safer: {why}" if release(version) < release(better) else ""
    return Finding(wanted.name, "ok", version + advice, wanted.needed_for)


def _runtime() -> Iterator[Finding]:
    """ONNX Runtime comes in several distributions that overwrite each other's files."""
    installed = {name: version for name in RUNTIMES if (version := installed_version(name))}
    found = ", ".join(f"{name} {version}" for name, version in installed.items())
    install = f'pip install --upgrade "{next(iter(installed), "onnxruntime")}>={RUNTIME_MINIMUM}"'

    def finding(state: State, detail: str, fix: str = install) -> Finding:
        return Finding("onnxruntime", state, detail, RUNNING, fix)

    if not installed:
        install = "pip install 'svit-deploy[cpu]', or 'svit-deploy[gpu]' for NVIDIA GPUs"
        yield finding("missing", "not installed", install)
        return
    if len(installed) > 1:
        detail = f"{found}: these overwrite each other, keep one"
        yield finding("broken", detail, f"pip uninstall {' '.join(installed)}, then {install}")
        return
    if any(release(version) < release(RUNTIME_MINIMUM) for version in installed.values()):
        yield finding("too old", f"{found}, needs {RUNTIME_MINIMUM}")
        return
    try:
        refusals = try_providers()
    except Exception as error:  # native libraries fail to load in many ways
        yield finding("broken", f"{found}: {_one_line(error)}")
        return
    usable = ", ".join(name for name, refusal in refusals.items() if refusal is None)
    if usable:
        yield finding("ok", f"{found}; providers that start: {usable}", "")
    else:
        yield finding("broken", f"{found}: none of its providers starts")
    for name, refusal in refusals.items():
        if refusal is not None:
            fix = refusal.fix.removeprefix("run: ")
            yield Finding(f"provider {name}", "unusable", refusal.message, (), fix)


def try_providers() -> dict[str, SvitDeployError | None]:
    """Starts each of ONNX Runtime's providers on a tiny graph.

    Returns:
        By what is typed after --provider: None, or why it does not start.
    """
    from svit_deploy.engines.onnxruntime import available_providers, require_provider
    from svit_deploy.engines.providers import PROVIDERS

    short = {full: name for name, full in PROVIDERS.items()}
    tried: dict[str, SvitDeployError | None] = {}
    for provider in available_providers():
        name = short.get(provider, provider)
        try:
            require_provider(provider)
            tried[name] = None
        except SvitDeployError as error:
            tried[name] = error
    return tried


def _machine() -> Iterator[Finding]:
    features = ", ".join(_cpu_features()) or "features unknown"
    yield Finding("cpu", "ok", f"{cpu_model()}; {features}")
    cores, quota = physical_cores() or "unknown", _cpu_quota()
    limit = f"; limited to {quota:g} of them by the container" if quota else ""
    yield Finding("threads", "ok", f"{usable_cores()} usable, {cores} physical cores{limit}")


def _cpu_features() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return []
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = set(line[1].split()) if line else set()
    return [name for flag, name in CPU_FLAGS.items() if flag in flags]


def _cpu_quota() -> float | None:
    """Processors that a container may use in the mean, if it is limited (cgroup version 2)."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _ascii(text: str) -> str:
    return text.encode("ascii", errors="replace").decode()
