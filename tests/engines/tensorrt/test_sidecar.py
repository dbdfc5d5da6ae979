"""The file beside an engine: what is written is read, and anything else is one sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from svit_deploy.engines.device.cuda import Gpu
from svit_deploy.engines.tensorrt.sidecar import Sidecar, read_sidecar, sidecar_path
from svit_deploy.errors import InputError
from svit_deploy.io.files import hash_file
from svit_deploy.model.profiles import Profile

CONTENT = b"an engine"


@pytest.fixture
def engine(tmp_path) -> Path:
    path = tmp_path / "model.fp16-trt10.16-sm90.engine"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def sidecar(engine) -> Sidecar:
    one, many = ((batch, 3, 224, 224) for batch in (1, 32))
    return Sidecar(
        engine=engine.name,
        engine_sha256=hash_file(engine),
        engine_size=len(CONTENT),
        onnx_sha256="0" * 64,
        target="tensorrt",
        tensorrt="10.16.1.11",
        precision="fp16",
        tokens="budget",
        profiles=(Profile(one, one, one), Profile(one, many, many)),
        cuda="13.0",
        driver="13.2",
        gpu=Gpu("NVIDIA H100", "9.0"),
        plugins=(("libsvit_trt.so", "1" * 64),),
        settings={"tf32": False},
        build_s=12.5,
    )


def test_what_is_written_is_read(engine, sidecar):
    assert sidecar.write(engine.parent) == sidecar_path(engine)
    assert read_sidecar(engine) == sidecar
    portable = dataclasses.replace(sidecar, gpu=None, cuda=None, driver=None, plugins=())
    portable.write(engine.parent)
    assert read_sidecar(engine) == portable


def edit(engine: Path, *keys, value) -> None:
    path = sidecar_path(engine)
    record = place = json.loads(path.read_text())
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("engine", "name"), "other.engine", "is the sidecar of 'other.engine', not of model"),
        (("engine", "sha256"), "2" * 64, "is not the engine that was built"),
        (("engine", "size_bytes"), 8, "is not the engine that was built"),
        (("schema_version",), 2, "written by a newer version"),
        (("precision",), None, "is damaged"),
        (("gpu",), {"name": "x"}, "is damaged"),
        (("profiles", 0, "min"), [1, 3, 224], "is damaged .*build the engine again"),
        (("profiles", 0, "min"), [0, 3, 224, 224], "is damaged"),
        (("profiles", 0, "opt"), [64, 3, 224, 224], "is damaged"),
        (("profiles", 0, "max"), [1, 3, 224, 112], "is damaged"),
    ],
)
def test_a_sidecar_that_does_not_fit(engine, sidecar, keys, value, message):
    sidecar.write(engine.parent)
    edit(engine, *keys, value=value)
    with pytest.raises(InputError, match=message):
        read_sidecar(engine)


def test_a_changed_engine(engine, sidecar):
    sidecar.write(engine.parent)
    engine.write_bytes(CONTENT[::-1])
    with pytest.raises(InputError, match=r"is not the engine that was built \(size or sha256"):
        read_sidecar(engine)


def test_missing_files(engine):
    with pytest.raises(InputError, match=r"has no sidecar .*--allow-foreign-engine"):
        read_sidecar(engine)
    with pytest.raises(InputError, match=r"is not a file; give the path of an \.engine file"):
        read_sidecar(engine.with_name("absent.engine"))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"schema_version": 1}', b"\xff"])
def test_a_damaged_sidecar(engine, content):
    sidecar_path(engine).write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged .*; build the engine again"):
        read_sidecar(engine)


def test_a_sidecar_without_profiles_is_damaged(tmp_path):
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"plan")
    written = Sidecar(
        engine=engine.name,
        engine_sha256=hash_file(engine),
        engine_size=4,
        onnx_sha256="0" * 64,
        target="tensorrt",
        tensorrt="10.16.1.11",
        precision="fp16",
        tokens="budget",
        profiles=(),
    )
    written.write(tmp_path)
    with pytest.raises(InputError, match="is damaged \\(it has no profile\\)"):
        read_sidecar(engine)
