"""One lookup for TensorRT 10, 11 and RTX."""

from __future__ import annotations

import sys

import pytest

from svit_deploy.errors import CapabilityError, UsageError
from svit_deploy.machine.tensorrt import Library, load_library, one_line
from tests.engines.tensorrt.fake import make_module


@pytest.mark.parametrize(
    ("name", "version", "short", "title"),
    [
        ("tensorrt", "10.3.0", "trt10.3", "TensorRT 10.3.0"),
        ("tensorrt", "11.4.0.106", "trt11.4", "TensorRT 11.4.0.106"),
        ("tensorrt_rtx", "1.7.1.116", "rtx1.7", "TensorRT-RTX 1.7.1.116"),
    ],
)
def test_loads_and_names(monkeypatch, name, version, short, title):
    monkeypatch.setitem(sys.modules, name, make_module(version, name))
    library = load_library(name.replace("_", "-"))
    assert (library.short_version, library.name, library.version) == (short, title, version)


def test_members_are_found_by_name_whatever_their_number():
    old, new = (Library("tensorrt", make_module(version)) for version in ("10.3.0", "11.4.0"))
    flag = ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    assert (old.bit(*flag), new.bit(*flag)) == (2, 1)
    assert old.member("BuilderFlag", "FP16") is not None
    assert new.member("BuilderFlag", "FP16") is None
    assert new.bit("BuilderFlag", "FP16") == 0
    assert old.member("NoSuchEnum", "TF32") is None


@pytest.mark.parametrize("version", ["8.6.1", "10.0.1", "10.2.0"])
def test_too_old(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "tensorrt", make_module(version))
    with pytest.raises(CapabilityError, match=f"TensorRT {version} is too old.*; upgrade TensorRT"):
        load_library("tensorrt")


@pytest.mark.parametrize(
    ("target", "extra"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt-rtx")]
)
def test_not_installed(monkeypatch, target, extra):
    monkeypatch.setitem(sys.modules, target.replace("-", "_"), None)
    with pytest.raises(CapabilityError, match=rf"cannot be imported.*svit-deploy\[{extra}\]"):
        load_library(target)


def test_unknown_target():
    with pytest.raises(UsageError, match="use one of tensorrt, tensorrt-rtx"):
        load_library("onnx")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n  b.", "a b"),
        ("x.cpp:12: no kernel", "no kernel"),
        ("Error Code 1: Myelin ([a.cpp:4: run] no. In f at /b/c.cpp:9)",
         "Error Code 1: Myelin ([a.cpp:4: run] no.)"),
        ("Code 2 (Assertion p failed.  In q at /x/y.cpp:149)", "Code 2 (Assertion p failed.)"),
        ("Assertion failed: a && b::c: it is missing.", "it is missing"),
        ("Assertion failed: a && b", "Assertion failed: a && b"),
        ("w" * 400, "w" * 297 + "..."),
    ],
)  # fmt: skip
def test_a_message_in_one_line(text, expected):
    assert one_line(text) == expected
