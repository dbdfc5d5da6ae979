"""Graphs to build from, and a process that builds with the fake library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from svit_deploy.engines.tensorrt.settings import BuildSettings
from svit_deploy.model.profiles import Profile

SHAPE = ("B", 3, 4, 4)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is kept between runs goes to a folder of the test."""
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def graph(tmp_path: Path) -> Callable[..., Path]:
    """Writes a graph `images` -> `logits` and gives its path.

    Args:
        nodes: instead of the one that it has, with `images` in and `logits` out.
        fault: operator and text of a node of the domain `fault` in front of them.
    """

    def write(
        *nodes: onnx.NodeProto,
        fault: tuple[str, str] | None = None,
        name: str = "model.onnx",
        inputs: tuple[str, ...] = ("images",),
        values: Any = (),
    ) -> Path:
        made = [*nodes] or [helper.make_node("Relu", ["images"], ["logits"], name="relu")]
        if fault:
            kind, text = fault
            domain = "parser fault" if kind == "Parser" else "fault"
            made.insert(
                0,
                helper.make_node(
                    kind, ["images"], ["broken"], name="block_3/Strange", domain=domain, text=text
                ),
            )
        given = [helper.make_tensor_value_info(i, TensorProto.FLOAT, SHAPE) for i in inputs]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, SHAPE)
        content = helper.make_graph(made, "test", given, [logits], value_info=list(values))
        opsets = [helper.make_opsetid(domain, 1) for domain in ("fault", "parser fault")]
        opsets.append(helper.make_opsetid("", 23))
        model = helper.make_model(content, opset_imports=opsets, ir_version=10)
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def settings() -> Callable[..., BuildSettings]:
    """Settings for the fake library, with fields of their own."""

    def make(**fields: Any) -> BuildSettings:
        profile = Profile((1, 3, 4, 4), (2, 3, 4, 4), (8, 3, 4, 4))
        known = {"target": "tensorrt", "profiles": (profile,), "precision": "fp16"}
        return BuildSettings(**{**known, "tokens": "dense", **fields})

    return make
