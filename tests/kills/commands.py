"""The commands that write: what they write, over what, and how to tell that it is whole."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from svit_deploy.bundle import open_bundle
from svit_deploy.io.checkpoint import read_checkpoint
from tests.fuzz.sound import QUICK, Sound

MANY = 60
FAKES = Path(__file__).parent.parent / "engines" / "tensorrt" / "packages"
TOOL = """#!/bin/sh
case "$1" in
  --list-gpu-arch) echo compute_80 ;;
  --version) echo Cuda compilation tools, release 12.6, V12.6.20 ;;
  --build) sleep 0.05; echo $$ > "$2/libsvit_trt.so"; echo 1 > "$2/libsvit_trt_autoreg.so" ;;
esac
"""
VERSION = "".join(
    f"#define NV_TENSORRT_{part} {number}\n"
    for part, number in (("MAJOR", 10), ("MINOR", 9), ("PATCH", 0), ("BUILD", 34))
)


@dataclass(frozen=True)
class Writing:
    """A command that writes.

    Attributes:
        args: makes the command line, which writes `out` in the folder that it runs in.
        whole: raises an exception unless what it is given was written to its end.
        before: the command line that writes what is there before, if there is anything.
        prepare: what is to be done in the process first.
        others: what it also writes, by name, and may leave.
        journal: what it leaves when it is ended, for the next run to go on from.
    """

    args: Callable[[Sound], Sequence[Any]]
    whole: Callable[[Path], object]
    before: Callable[[Sound], Sequence[Any]] | None = None
    prepare: Callable[[], object] = lambda: None
    others: frozenset[str] = field(default_factory=frozenset)
    journal: str | None = None


def _whole_bundle(path: Path) -> None:
    bundle = open_bundle(path)
    bundle.load_samples()
    listed = {"manifest.json", *bundle.manifest["files"]}
    assert {file.name for file in path.iterdir()} == listed


def _whole_bundles(path: Path) -> None:
    for bundle in path.glob("[!.]*"):  # what is hidden is not there yet
        _whole_bundle(bundle)


def _whole_pictures(path: Path) -> None:
    (numbers,) = path.glob("*.json")
    listed = {entry["file"] for entry in json.loads(numbers.read_text())["images"]}
    pictures = {file.name for file in path.glob("*.png")}
    assert listed <= pictures
    for name in pictures:
        _whole_picture(path / name)


def _whole_picture(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def _whole_report(path: Path) -> None:
    assert json.loads(path.read_text())["schema_version"] == 1


def _whole_plugins(path: Path) -> None:
    found = {file.name for file in path.iterdir()}
    assert found == {"libsvit_trt.so", "libsvit_trt_autoreg.so", "build.json"}, found
    json.loads((path / "build.json").read_text())


def _whole_rows(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["image"] for row in rows] == [f"images-{i:05d}" for i in range(MANY)]


def _export(*options: Any) -> Callable[[Sound], Sequence[Any]]:
    return lambda s: ["export", s.checkpoint(), *s.options(), *options, "-o", "out"]


def _use_fakes() -> None:
    """TensorRT's fake, for this process and those that it starts; caches go to its folder."""
    for folder in (FAKES.parent.parent.parent.parent, FAKES):
        sys.path.insert(0, str(folder))
    os.environ["SVIT_DEPLOY_CACHE"] = str(Path.cwd() / "cache")


def _use_tools() -> None:
    """Compilers that make nothing of nothing, and headers that say no more than their version."""
    from svit_deploy.plugins import build

    for name in ("cmake", "nvcc", "c++"):
        tool = Path.cwd() / "tools" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(TOOL)
        tool.chmod(0o755)
    include = Path("include")
    include.mkdir(exist_ok=True)
    (include / "NvInferRuntime.h").touch()
    (include / "NvInferVersion.h").write_text(VERSION)
    os.environ["PATH"] = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["TMPDIR"] = str(Path.cwd())
    build.find_cmake = lambda: str(tool.parent / "cmake")


def _detector(s: Sound) -> Path:
    return s.bundle("svit_adapter", "detect")


ENGINE = ["--target", "tensorrt", "--tokens", "budget", "--budget", "1.0", "--batch", "1:2:4"]
TUNE = [
    *("--modes", "dynamic,dense", "--engines", "onnxruntime", "--precisions", "fp32"),
    *("--verify-images", "2"),
    *QUICK, "--max-accuracy-drop", "100%", "--force", "-o", "out",
]  # fmt: skip
PLUGINS = ["plugins", "build", "--tensorrt-include", "include", "-o", "out"]

WRITINGS = {
    "export": Writing(_export(), _whole_bundle),
    "export --force": Writing(
        _export("--force", "--tokens", "masked"), _whole_bundle, before=_export("--tokens", "dense")
    ),
    "export --target": Writing(
        _export("--force", *ENGINE),
        _whole_bundle,
        before=_export("--tokens", "dense"),
        prepare=_use_fakes,
        others=frozenset({"cache"}),
    ),
    "run": Writing(
        lambda s: ["run", s.pipeline(), "--state", "state"],
        _whole_bundles,
        others=frozenset({"state"}),
    ),
    "predict": Writing(
        lambda s: ["predict", _detector(s), s.photos(), "-o", "out"],
        _whole_pictures,
        before=lambda s: ["predict", _detector(s), s.photos(), "-o", "out", "--max-images", "1"],
    ),
    "predict, rows": Writing(
        lambda s: ["predict", s.bundle(), s.images(MANY), "-o", "out.jsonl", "--batch", "4"],
        _whole_rows,
        before=lambda s: ["predict", s.bundle(), s.images(), "-o", "out.jsonl"],
        journal="out.jsonl.partial",
    ),
    "tune": Writing(
        lambda s: ["tune", s.checkpoint(), *s.options(), "--images", s.images(), *TUNE],
        _whole_bundle,
        before=_export("--tokens", "masked"),
        journal="out.tune",
    ),
    "visualize": Writing(
        lambda s: ["visualize", s.bundle(), "--images", s.images(), "-o", "out"],
        _whole_pictures,
        before=lambda s: ["visualize", s.bundle(), "--images", s.photos(), "-o", "out"],
    ),
    "init": Writing(
        lambda s: ["init", s.arch_file(), "-o", "out.pth", "--force"],
        read_checkpoint,
        before=lambda s: ["init", s.arch_file(), "-o", "out.pth", "--seed", "1"],
    ),
    "inspect --json": Writing(
        lambda s: ["inspect", s.bundle(), "--json", "out.json"],
        _whole_report,
        before=lambda s: ["inspect", s.checkpoint(), "--json", "out.json"],
    ),
    "verify --json": Writing(
        lambda s: ["verify", s.bundle(), "--repeats", "2", "--json", "out.json"],
        _whole_report,
        before=lambda s: ["inspect", s.checkpoint(), "--json", "out.json"],
    ),
    "bench --sweep-tokens": Writing(
        lambda s: [
            "bench",
            s.bundle(),
            "--random",
            "--allow-noise",
            *QUICK,
            "--sweep-tokens",
            "out.png",
        ],
        _whole_picture,
    ),
    "plugins build": Writing(
        lambda s: PLUGINS,
        _whole_plugins,
        before=lambda s: PLUGINS,
        prepare=_use_tools,
        others=frozenset({"tools", "include"}),
    ),
}
