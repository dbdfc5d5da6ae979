"""The JSON file beside an engine: what it is, what it was made of, and where it may run.

An engine is native code. Nothing is deserialised before its sidecar says that it is the file that
was built, by this TensorRT, for this GPU. The hash protects against mix-ups and damage, not
against someone who can write both files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from svit_deploy import __version__
from svit_deploy.engines.device.cuda import Gpu
from svit_deploy.errors import InputError
from svit_deploy.io.files import hash_file
from svit_deploy.io.strict_json import read_json, write_json
from svit_deploy.model.profiles import Profile, Shape

SCHEMA_VERSION = 1
BUILD_AGAIN = "build the engine again on this machine: svit-deploy export BUNDLE --target"
_SHAPES = {"min": [int], "opt": [int], "max": [int]}
SCHEMA: dict[str, Any] = {
    "schema_version": int,
    "tool": {"name": str, "version": str},
    "engine": {"name": str, "sha256": str, "size_bytes": int},
    "onnx_sha256": str,
    "target": str,
    "versions": {"tensorrt": str, "cuda": (str, None), "driver": (str, None)},
    "gpu": ({"name": str, "compute_capability": str}, None),
    "precision": str,
    "tokens": str,
    "profiles": [_SHAPES],
    "plugins": [{"name": str, "sha256": str}],
    "settings": dict,
    "build_s": float,
}


@dataclass(frozen=True)
class Sidecar:
    """What `model.fp16-trt10.16-sm90.json` says of `model.fp16-trt10.16-sm90.engine`.

    Attributes:
        engine, engine_sha256, engine_size: the engine's file name, sha256 and size in bytes.
        onnx_sha256: of the graph it was built from.
        target: `tensorrt` or `tensorrt-rtx`.
        tensorrt, cuda, driver: versions; the last two None where the build needed no GPU.
        gpu: the device built for; None if the engine is for any.
        precision, tokens: of the graph.
        profiles: shapes it serves.
        plugins: file name and sha256 of each plugin library it needs.
        settings: of the builder, for the record.
        build_s: seconds the build took.
    """

    engine: str
    engine_sha256: str
    engine_size: int
    onnx_sha256: str
    target: str
    tensorrt: str
    precision: str
    tokens: str
    profiles: tuple[Profile, ...]
    cuda: str | None = None
    driver: str | None = None
    gpu: Gpu | None = None
    plugins: tuple[tuple[str, str], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    build_s: float = 0.0

    def write(self, folder: Path) -> Path:
        """Writes the file beside the engine."""
        path = sidecar_path(folder / self.engine)
        write_json(
            path,
            {
                "schema_version": SCHEMA_VERSION,
                "tool": {"name": "svit-deploy", "version": __version__},
                "engine": {
                    "name": self.engine,
                    "sha256": self.engine_sha256,
                    "size_bytes": self.engine_size,
                },
                "onnx_sha256": self.onnx_sha256,
                "target": self.target,
                "versions": {"tensorrt": self.tensorrt, "cuda": self.cuda, "driver": self.driver},
                "gpu": None if self.gpu is None else asdict(self.gpu),
                "precision": self.precision,
                "tokens": self.tokens,
                "profiles": [asdict(profile) for profile in self.profiles],
                "plugins": [{"name": name, "sha256": sha256} for name, sha256 in self.plugins],
                "settings": dict(self.settings),
                "build_s": round(self.build_s, 3),
            },
        )
        return path


def sidecar_path(engine: Path) -> Path:
    """`model.engine` -> `model.json`"""
    return engine.with_suffix(".json")


def read_sidecar(engine: Path) -> Sidecar:
    """Reads the sidecar of an engine and checks that it is about that very file.

    Raises:
        InputError: no sidecar, a damaged one, one of another engine, or a changed engine.
    """
    if not engine.is_file():
        raise InputError(f"{engine} is not a file", "give the path of an .engine file")
    path = sidecar_path(engine)
    if not path.is_file():
        raise InputError(
            f"{engine} has no sidecar {path.name}, so nothing says what it is; an engine is "
            "native code",
            "copy the sidecar too, or add --allow-foreign-engine if you trust the file",
        )
    record = read_json(path, SCHEMA, SCHEMA_VERSION, "build the engine again")
    about = record["engine"]
    if about["name"] != engine.name:
        raise InputError(
            f"{path} is the sidecar of {about['name']!r:.80}, not of {engine.name}",
            "give both files the names they were built with",
        )
    if engine.stat().st_size != about["size_bytes"] or hash_file(engine) != about["sha256"]:
        raise InputError(
            f"{engine} is not the engine that was built (size or sha256 differs)",
            "copy it again, or build it again",
        )
    try:
        profiles = tuple(_profile(shapes) for shapes in record["profiles"])
        if not profiles:
            raise ValueError("it has no profile")
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error})", "build the engine again") from None
    return Sidecar(
        engine=about["name"],
        engine_sha256=about["sha256"],
        engine_size=about["size_bytes"],
        onnx_sha256=record["onnx_sha256"],
        target=record["target"],
        tensorrt=record["versions"]["tensorrt"],
        cuda=record["versions"]["cuda"],
        driver=record["versions"]["driver"],
        gpu=None if record["gpu"] is None else Gpu(**record["gpu"]),
        precision=record["precision"],
        tokens=record["tokens"],
        profiles=profiles,
        plugins=tuple((plugin["name"], plugin["sha256"]) for plugin in record["plugins"]),
        settings=record["settings"],
        build_s=record["build_s"],
    )


def _profile(shapes: Mapping[str, Sequence[int]]) -> Profile:
    profile = Profile(*(_shape(shapes[key]) for key in _SHAPES))
    if not (profile.covers(profile.min) and profile.covers(profile.opt)):
        raise ValueError(f"the profile {profile} is out of order")
    return profile


def _shape(sizes: Sequence[int]) -> Shape:
    if len(sizes) not in (4, 5) or min(sizes) < 1:
        raise ValueError(f"a profile has the shape {list(sizes)!r:.60}")
    return tuple(sizes)
