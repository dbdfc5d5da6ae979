"""The build itself, with the fake library in this process: what it asks for and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys

import onnx
import pytest
from onnx import TensorProto, helper

from svit_deploy.engines.device.cuda import Gpu
from svit_deploy.engines.tensorrt import worker
from svit_deploy.engines.tensorrt.gpu import Versions
from svit_deploy.engines.tensorrt.settings import BuildSettings
from svit_deploy.engines.tensorrt.sidecar import read_sidecar
from svit_deploy.errors import CapabilityError, ExportError, UsageError
from svit_deploy.io.files import hash_file
from svit_deploy.model.profiles import Profile
from tests.engines.tensorrt.fake import make_module
from tests.engines.tensorrt.fake.cuda import Device, make_cuda
from tests.engines.tensorrt.fake.runtime import Plan

VERSIONS = ["10.3.0", "10.16.1.11", "11.4.0.106"]


class Channel:
    """Keeps what a build tells."""

    def __init__(self) -> None:
        self.is_open = True
        self.errors: list[str] = []
        self.layers = ""
        self.sent: list[tuple[str, object]] = []

    def send(self, kind, content) -> None:
        self.sent.append((kind, content))

    def progress(self, description, fraction) -> None:
        self.sent.append(("progress", (description, fraction)))


@pytest.fixture
def device(monkeypatch, tmp_path) -> Device:
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "cache"))
    device = Device()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda(device))
    monkeypatch.setitem(sys.modules, "tensorrt", make_module("10.16.1.11", device=device))
    return device


@pytest.fixture(params=VERSIONS)
def trt(request, monkeypatch, device):
    module = make_module(request.param, device=device)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def build(onnx_path, settings, channel=None):
    folder = onnx_path.parent / "out"
    folder.mkdir(exist_ok=True)
    return folder / worker.build(onnx_path, folder, settings, channel or Channel())


def test_an_engine_and_what_its_sidecar_says(graph, settings, trt):
    model = graph()
    engine = build(model, settings(precision="fp16", tokens="budget"))
    major_minor = ".".join(trt.__version__.split(".")[:2])
    assert engine.name == f"model.fp16-trt{major_minor}-sm90.engine"
    plan = Plan.from_bytes(engine.read_bytes())
    assert plan.onnx == model.read_bytes()
    sidecar = read_sidecar(engine)
    assert (sidecar.target, sidecar.tensorrt) == ("tensorrt", trt.__version__)
    assert (sidecar.precision, sidecar.tokens) == ("fp16", "budget")
    assert sidecar.onnx_sha256 == hash_file(model)
    assert sidecar.gpu == Gpu("NVIDIA Fake 9000", "9.0")
    assert (sidecar.cuda, sidecar.driver) == ("13.0", "13.0")
    assert sidecar.profiles == settings().profiles
    assert sidecar.plugins == ()
    assert sidecar.settings == {
        "optimization_level": None, "workspace_bytes": 0, "tf32": False, "packed_attention": True,
        "packed_blocks": 0, "plugin_form": None, "user_allocation": False, "layers": None,
    }  # fmt: skip
    assert sidecar.build_s > 0


def test_what_tensorrt_is_asked_for(graph, settings, trt):
    profiles = (
        Profile((1, 3, 4, 4), (1, 3, 4, 4), (1, 3, 4, 4)),
        Profile((2, 3, 4, 4), (8, 3, 4, 4), (32, 3, 4, 4)),
    )
    build(graph(), settings(profiles=profiles, optimization_level=5, workspace_bytes=1 << 30))
    config, network = trt.Builder.made
    assert network.strongly_typed
    assert trt.BuilderFlag.TF32 not in config.flags
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert config.builder_optimization_level == 5
    assert config.pools == {trt.MemoryPoolType.WORKSPACE: 1 << 30}
    assert [made.shapes["images"] for made in config.profiles] == [
        [profile.min, profile.opt, profile.max] for profile in profiles
    ]


def test_defaults_stay_tensorrts(graph, settings, trt):
    build(graph(), settings())
    config, _ = trt.Builder.made
    assert (config.builder_optimization_level, config.pools) == (3, {})


def test_tf32_only_if_asked_for(graph, settings, trt):
    build(graph(), settings(tf32=True))
    assert trt.Builder.made[0].flags == {trt.BuilderFlag.TF32}


def test_the_onnx_attention_operator_may_be_decomposed(graph, settings, device, monkeypatch):
    node = helper.make_node("Attention", ["images"] * 3, ["logits"], name="attention")
    for version in ("10.16.1", "11.4.0"):
        monkeypatch.setitem(sys.modules, "tensorrt", make_module(version, device=device))
        build(graph(node), settings())  # the fake library refuses it otherwise
        (layer,) = sys.modules["tensorrt"].Builder.made[1].layers
        assert layer.attention.decomposable


def test_progress_goes_from_0_to_1_and_never_back(graph, settings, device, monkeypatch):
    monkeypatch.setattr("svit_deploy.engines.tensorrt.channel.INTERVAL_S", -1)
    channel = Channel()
    build(graph(), settings(), channel)
    told = [content for kind, content in channel.sent if kind == "progress"]
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert len(set(fractions)) > 8
    assert dict(told).keys() == {
        "starting the builder", "reading the graph", "building the engine"
    }  # fmt: skip


def test_a_build_that_nobody_waits_for_ends(graph, settings, device):
    channel = Channel()
    channel.is_open = False
    with pytest.raises(ExportError, match="BuildCanceled"):
        build(graph(), settings(), channel)


def test_the_library_is_too_old_or_missing(graph, settings, device, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", make_module("8.6.1", device=device))
    with pytest.raises(CapabilityError, match=r"TensorRT 8\.6\.1 is too old, 10\.3 is the first"):
        build(graph(), settings())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(CapabilityError, match=r"pip install 'svit-deploy\[tensorrt\]'"):
        build(graph(), settings())


@pytest.mark.parametrize(
    ("changes", "visible", "message"),
    [
        ({"count": 0}, None, r"no NVIDIA GPU was found; build on the machine .* bundles travel: "
         r"svit-deploy export BUNDLE --target tensorrt"),
        ({"driver": 0}, None, "there is no NVIDIA driver on this machine; build on the machine"),
        ({"driver": 12040}, None, r"the NVIDIA driver is too old: it supports CUDA 12\.4"),
        ({"count": 0}, "", "CUDA_VISIBLE_DEVICES is '', which hides every GPU; unset it"),
    ],
)  # fmt: skip
def test_tensorrt_needs_a_gpu_to_build(
    graph, settings, device, monkeypatch, changes, visible, message
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    vars(device).update(changes)
    with pytest.raises(CapabilityError, match=message) as caught:
        build(graph(), settings())
    assert caught.value.message.startswith("TensorRT builds an engine on the GPU that will run it")


def test_products_that_the_gpu_lacks(graph, settings, device, monkeypatch):
    """Told before the build, and before an export begins."""
    old = Gpu("NVIDIA Fake 3000", "8.6"), Versions("13.0", "13.0")
    monkeypatch.setattr(worker, "require_gpu", lambda: old)
    with pytest.raises(
        CapabilityError, match=r"Fake 3000 \(compute capability 8\.6\) has no .*fp8"
    ):
        build(graph(), settings(precision="fp8"))
    with pytest.raises(CapabilityError, match="fp8"):
        worker.look_around(settings(precision="fp8"))
    assert build(graph(), settings(precision="int8")).is_file()


def test_tensorrt_that_does_not_start(graph, settings, device, monkeypatch):
    """The driver may do for cuda-bindings and be too old for TensorRT."""
    monkeypatch.setattr(worker, "require_gpu", lambda: (Gpu("NVIDIA Fake 9000", "9.0"), None))
    device.count = 0
    with pytest.raises(CapabilityError, match=r"cannot start, the NVIDIA driver is too old.*35"):
        build(graph(), settings())


def test_the_parsers_first_error_names_its_node(graph, settings, device):
    text = "Assertion failed: axis < rank && a::b: the axis is\n out of range. (In x at /y/z.cpp:7)"
    with pytest.raises(ExportError) as caught:
        build(graph(fault=("Parser", text)), settings())
    assert caught.value.message == (
        "TensorRT 10.16.1.11 cannot read model.onnx: node 'block_3/Strange' (Parser): the axis is "
        "out of range"
    )
    assert "--target tensorrt" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("IBuilder::x: Error Code 10: no kernel for node {relu}. In f at /a/b.cpp:3", None,
         r"cannot build the engine: IBuilder::x: Error Code 10: no kernel for node \{relu\}"),
        ("Error Code 2: OutOfMemory (Requested size was 9 bytes.)", None,
         "out of memory: .*; lower --workspace or the largest --batch"),
        ("CUDA driver version is insufficient", CapabilityError, "driver is too old"),
    ],
)  # fmt: skip
def test_the_builders_first_error(graph, settings, device, text, kind, message):
    with pytest.raises(kind or ExportError, match=message) as caught:
        build(graph(fault=("Fail", text)), settings())
    assert "\n" not in str(caught.value)
    assert ".cpp" not in str(caught.value)


def test_a_profile_must_fit_the_graph(graph, settings, device):
    wide = Profile((1, 3, 4, 4), (1, 3, 4, 8), (1, 3, 4, 8))
    with pytest.raises(UsageError, match="does not fit the graph's input 'images' Nx3x4x4"):
        build(graph(), settings(profiles=(wide,)))


@pytest.mark.parametrize("inputs", [("pixels",), ("images", "mask")])
def test_the_one_input_is_the_images(graph, settings, device, inputs):
    with pytest.raises(UsageError, match=f"inputs are {', '.join(map(repr, inputs))}, .*'images'"):
        build(graph(inputs=inputs), settings())


def test_a_profile_that_tensorrt_refuses(graph, settings, device):
    mixed = Profile((4, 3, 4, 4), (2, 3, 4, 4), (8, 3, 4, 4))
    with pytest.raises(UsageError, match="refuses the profile 4x3x4x4 to 8x3x4x4"):
        build(graph(), settings(profiles=(mixed,)))


def plugin_node() -> onnx.NodeProto:
    return helper.make_node("SvitGather", ["images"], ["logits"], domain="trt.plugins")


def test_plugins_are_loaded_and_recorded(graph, settings, device, tmp_path):
    model = graph(plugin_node())
    with pytest.raises(ExportError, match=r"\(SvitGather\): Plugin not found"):
        build(model, settings())
    library = tmp_path / "libsvit_trt.so"
    library.write_text("fake plugins: SvitGather SvitScatter")
    engine = build(model, settings(plugin_library=library))
    assert read_sidecar(engine).plugins == (("libsvit_trt.so", hash_file(library)),)
    assert Plan.from_bytes(engine.read_bytes()).plugins == ["libsvit_trt.so"]


def with_function(model):
    """The node's function body in the file, as `export --plugins` writes it."""
    made = onnx.load(model)
    body = helper.make_node("Relu", ["x"], ["y"])
    opset = [helper.make_opsetid("", 20)]
    function = helper.make_function("trt.plugins", "SvitGather", ["x"], ["y"], [body], opset)
    made.functions.append(function)
    onnx.save(made, model)
    return model


@pytest.fixture
def plugins(tmp_path):
    library = tmp_path / "libsvit_trt.so"
    library.write_text("fake plugins: SvitGather SvitCompact")
    return library


def test_a_plugin_is_built_where_functions_come_first(graph, settings, trt, plugins):
    """As up to TensorRT 10.6; the graph that is recorded is the one that was given."""
    model = with_function(graph(plugin_node()))
    engine = build(model, settings(plugin_library=plugins))
    assert [layer.type.name for layer in trt.Builder.made[1].layers] == ["PLUGIN_V3"]
    assert read_sidecar(engine).onnx_sha256 == hash_file(model)
    build(model, settings())  # of its function body, without the library
    assert [layer.type.name for layer in trt.Builder.made[1].layers] == ["IDENTITY"]


def test_plugin_nodes_that_became_something_else(graph, settings, device, plugins, monkeypatch):
    monkeypatch.setattr("tests.engines.tensorrt.fake.builder.OnnxParser._add", lambda *_: None)
    with pytest.raises(ExportError, match="made no plugin of the graph's 1 plugin nodes"):
        build(graph(plugin_node()), settings(plugin_library=plugins))


def compact_nodes(*faults):
    domain = {"domain": "trt.plugins"}
    made = [
        helper.make_node("Greater", ["images", "images"], ["mask"]),
        helper.make_node("SvitCompact", ["mask"], ["logits"], name="compact", **domain),
    ]
    return [*faults, *made]


@pytest.mark.parametrize("size_bits", [32, 64])
@pytest.mark.parametrize("mask", ["BOOL", "INT8"])
def test_plugins_in_the_one_form_that_a_release_takes(
    graph, settings, device, plugins, size_bits, mask, caplog
):
    text = f"size_bits={size_bits} mask={mask}"
    model = graph(*compact_nodes(), fault=("NoPluginForm", text))
    caplog.set_level(logging.INFO)
    sidecar = read_sidecar(build(model, settings(plugin_library=plugins)))
    assert sidecar.settings["plugin_form"] == {"size_bits": size_bits, "mask": mask}
    first = size_bits == 32 and mask == "BOOL"
    assert ("the plugins are not taken as" in caplog.text) != first


@pytest.mark.parametrize(
    ("tokens", "largest", "expected"),
    [("budget", 4, True), ("budget", 8, False), ("dense", 4, True), ("dynamic", 4, False)],
)
def test_memory_is_the_runners_where_shapes_are_static(
    graph, settings, device, monkeypatch, tokens, largest, expected
):
    """TensorRT-RTX may else allocate during a run, which cannot be captured."""
    fake = make_module("1.7.1.116", "tensorrt_rtx", device)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    profile = Profile((1, 3, 4, 4), (2, 3, 4, 4), (8, 3, largest, 4))
    source = graph()
    model = onnx.load(source)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[2].dim_param = "H"
    onnx.save(model, source)
    engine = build(source, settings(target="tensorrt-rtx", tokens=tokens, profiles=(profile,)))
    flag = fake.BuilderFlag.REQUIRE_USER_ALLOCATION
    assert (flag in fake.Builder.made[0].flags) == expected
    assert read_sidecar(engine).settings["user_allocation"] == expected


def test_no_form_is_taken(graph, settings, device, plugins):
    """The first refusal is told; out of memory, none but the first is tried."""
    model = graph(*compact_nodes(), fault=("NoPluginForm", "size_bits=16"))
    with pytest.raises(ExportError, match="unsupported format combination"):
        build(model, settings(plugin_library=plugins))
    model = graph(*compact_nodes(), fault=("Refuse", "Error Code 2: OutOfMemory (nothing left)"))
    channel = Channel()
    with pytest.raises(ExportError, match="out of memory"):
        build(model, settings(plugin_library=plugins), channel)
    assert [what for what in channel.sent if what[1] == ("reading the graph", 0.025)][1:] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("fake plugins: ", "cannot use the plugin library lib.so: it registers no plugin"),
        ("<html>", "cannot use the plugin library lib.so: Unable to open library.*not ELF"),
        (None, "the plugin library .*lib.so is not a file"),
    ],
)
def test_a_plugin_library_that_is_none(graph, settings, device, tmp_path, content, message):
    library = tmp_path / "lib.so"
    if content is not None:
        library.write_text(content)
    with pytest.raises(CapabilityError, match=f"{message}.*; build it.*plugins build"):
        build(graph(), settings(plugin_library=library))


def test_a_full_disk(graph, settings, device, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    model = graph()
    monkeypatch.setattr(worker.Path, "write_bytes", full)
    with pytest.raises(ExportError, match=r"cannot write the engine \(No space left on device\)"):
        build(model, settings())


def timings(tmp_path):
    return sorted((tmp_path / "cache" / "timings").glob("*.cache"))


def test_timings_are_kept_and_used_again(graph, settings, device, tmp_path):
    model = graph()
    build(model, settings())
    (file,) = timings(tmp_path)
    assert len(file.stem) == 64
    assert file.read_bytes() == b"timings of NVIDIA Fake 9000"
    build(model, settings())
    assert timings(tmp_path) == [file]


@pytest.mark.parametrize("change", ["graph", "settings", "profile", "gpu", "driver", "version"])
def test_another_build_has_its_own_timings(graph, settings, device, monkeypatch, tmp_path, change):
    build(graph(), settings())
    model, fields = graph(), {}
    if change == "graph":
        model = graph(helper.make_node("Neg", ["images"], ["logits"]))
    elif change == "settings":
        fields = {"optimization_level": 1}
    elif change == "profile":
        fields = {"profiles": (Profile((1, 3, 4, 4), (1, 3, 4, 4), (8, 3, 4, 4)),)}
    elif change == "gpu":
        device.name = "NVIDIA Fake 1"
    elif change == "driver":
        device.driver = 14000
    else:
        monkeypatch.setitem(sys.modules, "tensorrt", make_module("10.16.1.12", device=device))
    build(model, settings(**fields))
    assert len(timings(tmp_path)) == 2


def test_a_plugin_library_changes_the_timings(graph, settings, device, tmp_path):
    library = tmp_path / "lib.so"
    for names in ("SvitGather", "SvitGather SvitScatter"):
        library.write_text(f"fake plugins: {names}")
        build(graph(plugin_node()), settings(plugin_library=library))
    assert len(timings(tmp_path)) == 2


def test_no_timing_cache(graph, settings, device, tmp_path):
    build(graph(), settings(timing_cache="none"))
    assert not (tmp_path / "cache").exists()


def test_no_home_folder(graph, settings, device, monkeypatch, caplog):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    for name in ("SVIT_DEPLOY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(worker.Path, "home", fail)
    assert build(graph(), settings()).exists()
    assert caplog.messages == [
        "no timing cache: there is no home folder to keep timings in; "
        "set SVIT_DEPLOY_CACHE to a folder."
    ]


@pytest.mark.parametrize("content", [b"garbage", b"timings of another GPU"])
def test_timings_that_cannot_be_used_are_put_aside(
    graph, settings, device, tmp_path, caplog, content
):
    file = tmp_path / "my.cache"
    file.write_bytes(content)
    build(graph(), settings(timing_cache=file))
    assert (tmp_path / "my.cache.bad").read_bytes() == content
    assert file.read_bytes() == b"timings of NVIDIA Fake 9000"
    assert "renamed to my.cache.bad" in caplog.text


def test_packed_attention_without_a_kernel_becomes_padded(
    graph, settings, device, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    trt = make_module("11.4.0", device=device)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    model = packed_graph(graph, "no fused kernel is available on this target. In a at /b.cpp:1")
    engine = build(model, settings(num_heads=2))
    assert read_sidecar(engine).settings["packed_blocks"] == 0
    assert "the padded one is built instead: no fused kernel is available on this" in caplog.text
    kinds = [layer.type for layer in trt.Builder.made[1].layers]
    assert trt.LayerType.ATTENTION_INPUT not in kinds
    assert (
        read_sidecar(build(packed_graph(graph), settings(num_heads=2))).settings["packed_blocks"]
        == 1
    )
    unpacked = settings(num_heads=2, packed_attention=False)
    assert read_sidecar(build(packed_graph(graph), unpacked)).settings["packed_blocks"] == 0


def packed_graph(graph, failure=""):
    """A block that names its packed tensors; its padded attention is a sum."""
    names = [f"block_0.{part}" for part in ("query", "key", "value", "lengths")]
    nodes = [helper.make_node("Relu", ["images"], [name]) for name in names]
    nodes.append(helper.make_node("Sum", names[:3], ["block_0.mixed"]))
    nodes.append(helper.make_node("Relu", ["block_0.mixed"], ["logits"]))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["T", 8]) for n in names]
    fault = ("NoPackedKernel", failure) if failure else None
    return graph(*nodes, fault=fault, values=values)


def test_settings_survive_the_way_to_the_process(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sent = settings(plugin_library=tmp_path / "é.so", optimization_level=2, device=1)
    assert BuildSettings.from_json(sent.to_json()) == sent
    relative = dataclasses.replace(sent, timing_cache="my.cache")
    got = BuildSettings.from_json(relative.to_json())
    assert got.timing_cache == str(tmp_path / "my.cache")
    none = BuildSettings.from_json(settings(timing_cache="none").to_json())
    assert none.timing_cache == "none"
    assert json.loads(sent.to_json())["profiles"][0]["opt"] == [2, 3, 4, 4]
