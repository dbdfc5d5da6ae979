"""Real builds: TensorRT-RTX has a real parser and builder that need no GPU.

What an engine computes is for machines with a GPU; that it builds, and from what, is shown here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from svit_deploy.bundle.bundle import MODEL, Bundle
from svit_deploy.engines.tensorrt.build import build_engine
from svit_deploy.engines.tensorrt.settings import BuildSettings
from svit_deploy.engines.tensorrt.sidecar import read_sidecar
from svit_deploy.errors import CapabilityError, ExportError, UsageError
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images import synthetic_images
from svit_deploy.io.files import hash_file
from svit_deploy.model.config import TokenMode
from svit_deploy.model.precision import FORMATS
from svit_deploy.model.profiles import Profile
from svit_deploy.plugins import library_path
from svit_deploy.plugins.build import build_plugins
from tests.engines.tensorrt.shallow import shallow_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="its wheels are for Linux here"),
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="TensorRT-RTX is not installed: pip install 'svit-deploy[tensorrt-rtx]'",
    ),
]


def batches(size: tuple[int, int], *ranges: tuple[int, int, int]) -> tuple[Profile, ...]:
    return tuple(Profile(*((batch, 3, *size) for batch in three)) for three in ranges)


def build(bundle, folder: Path, mode: str, precision: str = "fp32", **fields):
    profiles = batches(bundle.config.image_size, (1, 2, 4))
    known = {"profiles": profiles, "num_heads": bundle.config.num_heads}
    settings = BuildSettings("tensorrt-rtx", precision=precision, tokens=mode, **known | fields)
    return build_engine(bundle.path / MODEL, folder, settings)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory) -> Callable[..., Bundle]:
    """A bundle of a shallow model, each exported once."""

    @cache
    def make(family: str, mode: str, **settings: Any) -> Bundle:
        pytest.importorskip("torch")
        distilled = {"distilled": True} if family == "deit_distilled" else {}
        model = shallow_model(family.removesuffix("_distilled"), **distilled)
        budget = "0.7" if mode == "budget" else None
        chosen = ExportSettings(tokens=TokenMode(mode), budget=budget, **settings)
        return export_model(model, tmp_path_factory.mktemp(family) / "bundle", chosen)

    return make


@pytest.fixture(scope="session")
def plugin_library(tmp_path_factory) -> Path:
    """The library that was built here, or one from the headers in TENSORRT_INCLUDE_DIR."""
    with contextlib.suppress(CapabilityError):
        return library_path()
    headers = os.environ.get("TENSORRT_INCLUDE_DIR")
    if not headers:
        pytest.skip("no plugin library; TENSORRT_INCLUDE_DIR does not say where headers are")
    try:
        folder = tmp_path_factory.mktemp("plugins") / "built"
        return build_plugins(Path(headers.split(os.pathsep)[-1]), folder, sm=(80,))[0]
    except CapabilityError as error:
        pytest.skip(str(error))


def test_two_profiles_and_what_the_sidecar_says(tmp_path, monkeypatch):
    """Of an SViT-S with three of its blocks."""
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "cache"))
    size = {"num_heads": 6, "embed_dim": 384, "patch_size": 16, "image_size": (224, 224)}
    model = shallow_model("svit", **size)
    settings = ExportSettings(tokens=TokenMode.BUDGET, budget="0.7,0.49")
    bundle = export_model(model, tmp_path / "bundle", settings)
    profiles = batches((224, 224), (1, 1, 1), (2, 8, 32))
    sidecar = build(bundle, tmp_path, "budget", profiles=profiles, optimization_level=2)
    engine = tmp_path / sidecar.engine
    assert sidecar.engine.startswith("model.fp32-rtx1.")
    assert sidecar.engine.endswith("-portable.engine")
    assert sidecar.profiles == profiles
    assert sidecar.gpu is None
    assert sidecar.onnx_sha256 == hash_file(bundle.path / MODEL)
    assert read_sidecar(engine) == sidecar
    # The weights are in it.
    assert engine.stat().st_size > sum(array.nbytes for array in model.weights.values()) > 20e6
    assert not (tmp_path / "cache").exists()  # its timing cache does nothing
    assert sidecar.settings["layers"]["fused_attention"] == 0  # float32


@pytest.mark.parametrize(
    ("family", "mode", "precision", "plugins"),
    [
        ("svit", "budget", "fp32", False),
        ("svit", "budget", "fp16", True),  # without library: from the function bodies
        ("svit", "masked", "fp16", False),
        ("svit", "dense", "bf16", False),
        ("deit", "dense", "fp32", False),
        ("deit_distilled", "dense", "fp16", False),
    ],
)
def test_every_static_mode_builds(shallow, tmp_path, family, mode, precision, plugins):
    bundle = shallow(family, mode, precision=precision, plugins=plugins)
    sidecar = build(bundle, tmp_path, mode, precision)
    assert (sidecar.precision, sidecar.tokens, sidecar.plugins) == (precision, mode, ())
    assert sidecar.settings["packed_blocks"] == 0
    assert sidecar.settings["layers"]["total"] > bundle.config.depth
    assert sidecar.settings["layers"]["host_copies"] == 0


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("mode", ["budget", "dense"])
def test_quantised_layers_build(tmp_path, mode, precision):
    """None is widened; the sidecar tells how many multiply numbers of eight bits."""
    model = shallow_model("svit")
    budget = "0.7" if mode == "budget" else None
    images = synthetic_images(2, model.config.image_size)
    settings = ExportSettings(
        tokens=TokenMode(mode), budget=budget, precision=precision, calibration=images
    )
    bundle = export_model(model, tmp_path / "bundle", settings)
    sidecar = build(bundle, tmp_path, mode, precision)
    assert sidecar.engine.startswith(f"model.{precision}-rtx1.")
    assert (sidecar.precision, sidecar.tokens) == (precision, mode)
    assert sidecar.settings["layers"]["quantised"] == len(bundle.steps) == 6 * bundle.config.depth
    assert sidecar.settings["layers"]["host_copies"] == 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_dynamic_builds_with_the_plugin_library(
    shallow, tmp_path, plugin_library, precision, caplog
):
    """Packed attention is written into the network; no RTX release so far has a kernel for it."""
    caplog.set_level(logging.INFO)
    bundle = shallow("svit", "dynamic", precision=precision, plugins=True)
    sidecar = build(bundle, tmp_path, "dynamic", precision, plugin_library=plugin_library)
    assert sidecar.plugins == ((plugin_library.name, hash_file(plugin_library)),)
    assert sidecar.settings["layers"]["host_copies"] == 2 * bundle.config.num_gates
    packed = sidecar.settings["packed_blocks"]
    assert packed in (0, bundle.config.num_gates)
    assert ("the padded one is built instead" in caplog.text) == (packed == 0)


def test_budget_builds_with_the_plugin_library(shallow, tmp_path, plugin_library):
    bundle = shallow("svit", "budget", precision="fp16", plugins=True)
    assert build(bundle, tmp_path, "budget", "fp16", plugin_library=plugin_library).plugins


def test_dynamic_without_the_plugin_library_says_which_operator(shallow, tmp_path):
    """RTX imports NonZero as a plugin that its wheels lack."""
    bundle = shallow("svit", "dynamic", plugins=True)
    with pytest.raises(ExportError, match=r"cannot read .*: node .*\(NonZero\).*not found"):
        build(bundle, tmp_path, "dynamic")
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_no_library(shallow, tmp_path):
    library = tmp_path / "lib.so"
    library.write_text("not ELF")
    with pytest.raises(CapabilityError, match=r"cannot use the plugin library lib\.so: "):
        build(shallow("deit", "dense"), tmp_path, "dense", plugin_library=library)


def test_a_profile_of_another_image_size(shallow, tmp_path):
    with pytest.raises(UsageError, match="does not fit the graph's input 'images' Nx3x"):
        build(shallow("deit", "dense"), tmp_path, "dense", profiles=batches((32, 32), (1, 1, 1)))


def test_the_onnx_attention_operator_builds(graph, tmp_path):
    """Where no fused kernel takes it, here for its float32, it must be decomposable."""
    names = {"Relu": "query", "Neg": "key", "Abs": "value"}
    nodes = [helper.make_node(op_type, ["images"], [name]) for op_type, name in names.items()]
    nodes.append(helper.make_node("Attention", names.values(), ["logits"], name="attention"))
    settings = BuildSettings("tensorrt-rtx", batches((4, 4), (1, 2, 4)), "fp32", "dense")
    assert build_engine(graph(*nodes), tmp_path, settings).engine_size


def test_an_unknown_operator_is_named(graph, tmp_path):
    node = helper.make_node("Strange", ["images"], ["logits"], name="a node", domain="fault")
    settings = BuildSettings("tensorrt-rtx", batches((4, 4), (1, 2, 4)), "fp32", "dense")
    with pytest.raises(ExportError, match=r"cannot read model.onnx: node 'a node' \(Strange\): "):
        build_engine(graph(node), tmp_path, settings)
