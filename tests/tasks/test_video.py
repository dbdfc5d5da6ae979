"""Video Swin and the recognition of videos: views, their average, and where they are read from."""

from __future__ import annotations

import csv
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

pytest.importorskip("torch")

from svit_deploy.backbones.swin.graph import position_index, regions
from svit_deploy.backbones.videoswin import graph, window_of
from svit_deploy.backbones.writer import GraphOptions
from svit_deploy.bench.inputs import Inputs
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bundle import open_bundle
from svit_deploy.cli import main
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import CapabilityError, InputError, SvitDeployError
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images.prepared import Prepared
from svit_deploy.images.source import open_images
from svit_deploy.images.videos import Sampling, Videos
from svit_deploy.loading.layout import expected_shapes, to_official
from svit_deploy.loading.load import build_model, load_model
from svit_deploy.loading.presets import PRESETS
from svit_deploy.loading.serialise import config_from_dict, config_to_dict
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.keys import Tensors
from svit_deploy.progress import SILENT
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.reference import Reference
from svit_deploy.tasks.video import VIEW_LOGITS, averaged, crop_places
from svit_deploy.verify.expected import LiveReference
from svit_deploy.verify.run import verify_against
from svit_deploy.verify.settings import VerifySettings
from tests.told import GOLDEN, SETTINGS, as_options, checkpoint_of

VIDEO = TASKS["video"]
FOLDER = GOLDEN / "video_swin"
CHECKPOINT = str(checkpoint_of("video_swin"))
TOLD = [*as_options(SETTINGS["video_swin"]), "--task", "video"]


@pytest.fixture(scope="module")
def golden():
    model = load_model(Path(CHECKPOINT), task="video", overrides=SETTINGS["video_swin"])
    with np.load(FOLDER / "io.npz") as io:
        return model, {name: io[name] for name in io.files}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video") / "out"
    assert main(["export", CHECKPOINT, "-o", str(folder), *TOLD]) == 0
    return open_bundle(folder)


def test_the_reference_computes_what_the_official_code_does(golden):
    model, found = golden
    images = [Prepared.whole(video) for video in found["input"]]
    (seen,) = (Reference(model, VIDEO).run([image], stages=True) for image in images)
    (outputs,) = seen.outputs
    np.testing.assert_allclose(outputs[VIEW_LOGITS], found["logits"][0], rtol=0, atol=2e-5)
    np.testing.assert_allclose(np.exp(outputs["logits"]), found["prob"][0], rtol=0, atol=1e-6)
    score = averaged(outputs[VIEW_LOGITS], "score")
    np.testing.assert_allclose(score, found["score"][0], rtol=0, atol=2e-5)
    x = seen.stages["block_9.out"].astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * model.weights["norm.weight"] + model.weights["norm.bias"]
    maps = np.moveaxis(found["features"][0], 1, -1)
    np.testing.assert_allclose(x.reshape(maps.shape), maps, rtol=0, atol=2e-5)


def test_the_graph_does_too(golden, bundle):
    _, found = golden
    with OnnxRuntimeEngine(bundle.model_path, threads=1) as engine:
        actual = engine.run({"images": found["input"][0]})["logits"]
    np.testing.assert_allclose(actual, found["logits"][0], rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "wrong", "block"),
    [
        ("regions", lambda stage, shifts: np.zeros_like(regions(stage, shifts)), 1),
        ("position_index", lambda windows: position_index(windows).T, 0),
    ],
)
def test_another_computation(golden, tmp_path, monkeypatch, function, wrong, block):
    """Windows that wrap around, and positions the other way round."""
    monkeypatch.setattr(graph, function, wrong)
    written = export_model(golden[0], tmp_path / "out", ExportSettings(task="video"))
    monkeypatch.undo()
    report = verify_against(written, LiveReference(written, golden[0]), VerifySettings(threads=1))
    assert f"every stage by itself: block {block} is the first" in report.verdict


@pytest.mark.slow
def test_as_a_user_types_it(tmp_path, capsys, golden, bundle):
    """Every command but `serve`, which takes views: see docs/video.md."""
    out, videos = str(bundle.path), tmp_path / "videos.npz"
    rng, labels = np.random.default_rng(0), np.array([3, 1])
    np.savez(videos, videos=rng.integers(0, 256, (2, 30, 50, 60, 3), np.uint8), labels=labels)
    images = ["--images", str(videos)]
    assert main(["verify", out, "--against", CHECKPOINT, *TOLD[:-2], *images]) == 0
    assert main(["verify", out]) == 0
    report = tmp_path / "report.json"
    assert main(["evaluate", out, *images, "--json", str(report)]) == 0
    assert json.loads(report.read_text())["results"]["images"] == 2
    rows = tmp_path / "rows.csv"
    assert main(["predict", out, str(videos), "-o", str(rows), "--top-k", "2"]) == 0
    with rows.open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["videos-00000", "videos-00001"]
    assert main(["bench", out, f"{out}@onnxruntime", *images, "--batch", "2", "--quick"]) == 0
    assert main(["inspect", CHECKPOINT]) == 0
    capsys.readouterr()
    assert main(["inspect", out]) == 0
    told = capsys.readouterr().out
    assert "10 frames of a clip; interval=2 clips=4 crops=3 uniform=false average=prob" in told
    assert "720 patches of 2x4x4 in 5x12x12 (frames x h x w) + 0" in told
    assert "RGB 10x48x48 (frames x h x w), bilinear" in told
    assert main(["visualize", out, *images, "-o", str(tmp_path / "maps")]) == 3
    assert main(["predict", out, str(GOLDEN / "deit"), "-o", str(tmp_path / "x.csv")]) == 3
    assert "holds no videos" in capsys.readouterr().err


@pytest.mark.slow
def test_views_without_an_average(tmp_path, capsys):
    """Each is answered, and counted, by itself."""
    out, videos = str(tmp_path / "out"), tmp_path / "videos.npz"
    settings = ["--set", "average=none", "--set", "clips=1"]
    assert main(["export", CHECKPOINT, "-o", out, *TOLD, *settings]) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (1, 30, 50, 60, 3), np.uint8)
    np.savez(videos, videos=pixels, labels=np.array([3]))
    for name in ("rows.jsonl", "rows.csv"):
        assert main(["predict", out, str(videos), "-o", str(tmp_path / name), "--top-k", "1"]) == 0
    views = json.loads((tmp_path / "rows.jsonl").read_text())["views"]
    assert [len(one) for one in views] == [1, 1, 1]
    with (tmp_path / "rows.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["views_2_label_1"] == str(views[2][0]["label"])
    assert main(["evaluate", out, "--images", str(videos)]) == 0
    assert main(["verify", out, "--against", CHECKPOINT, *TOLD[:-2], *settings]) == 0
    other = str(tmp_path / "other")
    assert main(["export", CHECKPOINT, "-o", other, *TOLD, "--set", "average=most"]) == 3
    assert "average is 'most'; give prob, score, none" in capsys.readouterr().err


def test_clips_of_a_video():
    """Worked out by hand after mmaction2's test mode, and its uniform mode for SSv2."""
    sampling = Sampling(32, 2, 4, False, (224, 224))
    numbers = sampling.numbers(300)
    assert numbers[:, 0].tolist() == [29, 88, 148, 207]
    assert numbers[1].tolist() == list(range(88, 152, 2))
    short = sampling.numbers(10)
    assert (short == np.arange(0, 64, 2) % 10).all() and short.shape == (4, 32)
    assert sampling.numbers(64)[:, 0].tolist() == [0, 0, 0, 0]
    uniform = replace(sampling, clips=1, uniform=True)
    assert uniform.numbers(65).tolist() == [list(range(1, 65, 2))]
    assert uniform.numbers(1).tolist() == [[0] * 32]


def test_crops_of_a_clip():
    assert crop_places((224, 299), (224, 224), 3) == [(0, 0), (0, 74), (0, 37)]
    assert crop_places((299, 224), (224, 224), 3) == [(0, 0), (74, 0), (37, 0)]
    assert crop_places((224, 299), (224, 224), 1) == [(0, 37)]


def test_a_few_videos_are_held_for_a_benchmark(golden, tmp_path):
    """Two views of each; what is not looked at of a video goes."""
    config = golden[0].config
    np.savez(tmp_path / "x.npz", videos=np.zeros((18, 2, 48, 48, 3), np.uint8))
    settings, sizes = BenchSettings(images=tmp_path / "x.npz"), VIDEO.sizes(config, None)
    inputs = Inputs.load(settings, SILENT, VIDEO.reader(config))
    rows = inputs.prepare_for(VIDEO, config, sizes)
    assert len(inputs.images) == Videos.enough and rows.shape == (32, 3, 10, 48, 48)
    seen = VIDEO.excerpt(Prepared.whole(np.zeros((12, 3, 1, 1, 1), np.float32)))
    assert len(seen.pixels) == 2 and seen.pixels.base is None


def test_a_frame_fits_the_size():
    """As OpenCV scales the short side, rounded to the nearest pixel."""
    sampling = Sampling(1, 1, 1, False, (224, 224))
    for size, scaled in (((240, 320), (224, 299)), ((320, 240), (299, 224)), ((9, 9), (224, 224))):
        assert sampling.scale(np.zeros((*size, 3), np.uint8)).shape == (*scaled, 3)


def test_files_folders_and_arrays_are_the_same_video(tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 40, 3), np.uint8)
    (tmp_path / "set" / "b" / "frames").mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "set" / "b" / "frames" / f"{number:03}.png")
    with av.open(str(tmp_path / "set" / "a.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 40, 32, "bgr0"
        for frame in frames:
            file.mux(
                stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="bgr0"))
            )
        file.mux(stream.encode())
    np.savez(tmp_path / "x.npz", videos=frames[None])
    medium = Videos(Sampling(3, 2, 2, False, (16, 16)))
    source = open_images(tmp_path / "set", medium=medium)
    assert source.names == ("a.mkv", "b/frames")
    (array,) = (load() for load in open_images(tmp_path / "x.npz", medium=medium).loaders())
    assert array.shape == (2, 3, 16, 20, 3)
    for load in source.loaders():
        np.testing.assert_array_equal(load(), array)
    assert open_images(tmp_path / "set" / "b" / "frames", medium=medium).names == ("frames",)
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "set" / "a.mkv").read_bytes())
    (load,) = open_images(tmp_path / "broken.mp4", medium=medium).loaders()
    with pytest.raises(InputError, match=r"broken\.mp4 cannot be read .*; replace or remove it"):
        load()
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(CapabilityError, match=r"needs PyAV .* pip install 'svit-deploy\[video\]'"):
        open_images(tmp_path / "set", medium=medium)


AS_IT_IS = (1, 0, 0, 1)
TURNED = {
    (0, 1, -1, 0): lambda frame: np.rot90(frame, -1),  # a phone held upright
    (0, -1, 1, 0): lambda frame: np.rot90(frame, 1),
    (-1, 0, 0, -1): lambda frame: np.rot90(frame, 2),
    (-1, 0, 0, 1): lambda frame: frame[:, ::-1],
    (1, 0, 0, -1): lambda frame: frame[::-1],
    (0, 1, 1, 0): lambda frame: frame.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda frame: np.rot90(frame, 2).transpose(1, 0, 2),
    (2, 0.01, -0.01, 2): lambda frame: frame,
}


def display_matrix(a: float, b: float, c: float, d: float) -> bytes:
    """As an mp4 holds it."""
    return struct.pack(">9i", *(int(65536 * side) for side in (a, b, 0, c, d, 0, 0, 0, 16384)))


def test_a_video_is_turned_as_players_show_it(tmp_path):
    av = pytest.importorskip("av")
    path, medium = tmp_path / "a.mp4", Videos(Sampling(2, 1, 1, False, (32, 32)))
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for frame in np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(stream.encode())
    plain, content = medium.read(path, "a"), path.read_bytes()
    place = content.index(display_matrix(*AS_IT_IS), content.index(b"tkhd"))

    def shown(*matrix: float) -> np.ndarray:
        told = display_matrix(*matrix)
        path.write_bytes(content[:place] + told + content[place + len(told) :])
        return medium.read(path, "a")

    for matrix, turn in TURNED.items():
        expected = [[turn(frame) for frame in clip] for clip in plain]
        np.testing.assert_array_equal(shown(*matrix), expected)
    for matrix in ((0.7, 0.7, -0.7, 0.7), (0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 0, 1)):
        with pytest.raises(InputError, match=r"a\.mp4 turns it by no whole quarters"):
            shown(*matrix)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"frames": "9"}, "9 frames are not a multiple of the 2 of a patch; give .*frames=10"),
        ({"frames": "2000"}, "frames=2000 has a bad value"),
        ({"clips": "0"}, "clips is 0"),
        ({"crops": "2"}, "crops is 2; give 1 or 3"),
        ({"uniform": "true"}, "uniform takes one clip .* clips is 4; add --set clips=1"),
        ({"image_size": "50"}, "not a multiple of the patch size 4"),
        ({"window_size": "8,7,7"}, "window_size is 8,7,7, and the weights tell 4,3,3"),
    ],
)
def test_what_it_cannot_have(golden, settings, words):
    model, _ = golden
    weights = to_official(model.weights, "video_swin", VIDEO)
    with pytest.raises(SvitDeployError, match=words):
        build_model(weights, task="video", overrides={**SETTINGS["video_swin"], **settings})


def test_what_pictures_cannot_have(golden):
    model, _ = golden
    weights = to_official(model.weights, "video_swin", VIDEO)
    with pytest.raises(InputError, match=r"is of Video Swin; use --task video"):
        build_model(weights, task="classify")
    del weights["cls_head.fc_cls.bias"]
    with pytest.raises(InputError, match=r"1 missing \(cls_head.fc_cls.bias\)"):
        build_model(weights, task="video")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("norm.weight", None, r"1 missing \(norm\.weight\)"),
        ("norm3.weight", np.ones(3, np.float32), r"1 unexpected \(norm3\.weight\)"),
        ("patch_embed.proj.weight", np.ones((12, 3, 4, 4), np.float32), "proj.weight has shape"),
        ("patch_embed.proj.weight", None, "proj.weight is missing"),
        (
            "layers.2.blocks.1.attn.relative_position_bias_table",
            np.ones((9, 4), np.float32),
            r"1 misshapen .* not float32\[175, 4\]",
        ),
        (
            "layers.0.blocks.0.attn.relative_position_index",
            np.zeros((20, 20), np.int64),
            "has 175 rows, which is a table of no window",
        ),
    ],
)
def test_a_damaged_checkpoint(golden, key, value, words):
    weights = to_official(golden[0].weights, "video_swin", VIDEO)
    weights[f"backbone.{key}"] = value
    if value is None:
        del weights[f"backbone.{key}"]
    with pytest.raises(InputError, match=words):
        build_model(weights, task="video", overrides=SETTINGS["video_swin"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 0}, "frames is 0; give 1 to 1024"),
        ({"frames": 9}, "9 frames are not a multiple"),
        ({"frames": "10"}, "frames of the model configuration is '10'"),
        ({"average": 1}, "average of the model configuration is 1"),
        ({"clips": 10**9}, "clips is 1000000000; give 1 to 100"),
        ({"window_size": [0, 3, 3]}, r"window_size is \[0, 3, 3\]"),
        ({"window_size": [3, 3]}, r"window_size is \[3, 3\]"),
        ({"patch_frames": 0}, "not a multiple of the 0 of a patch"),
        ({"stage_heads": [1, 2, 4, 7]}, "7 heads do not divide the width 96 of stage 3"),
    ],
)
def test_a_damaged_manifest(golden, changes, words):
    content = config_to_dict(golden[0].config)
    for name, value in changes.items():
        (content["settings"] if name in content["settings"] else content)[name] = value
    with pytest.raises(InputError, match=words):
        config_from_dict(content, VIDEO)


@pytest.mark.parametrize(
    ("rows", "inside", "window"),
    [
        (2535, None, (8, 7, 7)),
        (2535, 392, (8, 7, 7)),
        (5239, 784, (16, 7, 7)),
        (175, 36, (4, 3, 3)),
        (625, 117, (13, 3, 3)),
        (625, None, "625 rows, which is a table of"),
        (2535, 100, "2535 rows, which is a table of no window"),
        (2536, None, "no window"),
    ],
)
def test_windows_by_their_tables(rows, inside, window):
    name = "layers.0.blocks.0.attn.relative_position_"
    arrays = {f"{name}bias_table": np.zeros((rows, 1), np.float32)}
    if inside:
        arrays[f"{name}index"] = np.zeros((inside, inside), np.int64)
    if isinstance(window, tuple):
        assert window_of(Tensors(arrays, "video_swin")) == window
    else:
        with pytest.raises(InputError, match=window):
            window_of(Tensors(arrays, "video_swin"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("video_swin_t", 87.9),
        ("video_swin_s", 165.9),
        ("video_swin_b", 281.6),
        ("video_swin_b_ssv2", 320.6),
    ],
)
def test_operations_of_a_view(preset, published):
    """Multiply-adds of the graph, and five operations for each place of a LayerNorm."""
    assert counted(preset) == pytest.approx(published, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "published"), [("stvit_video_t", 64.4), ("stvit_video_s", 120.5)]
)
def test_operations_with_semantic_tokens(preset, published):
    """The paper counts keys and values for each window that a token is in, the graph has one."""
    again = 16 * (4 * 10 * 10 - 14 * 14) * 2 * 384**2 / 1e9
    assert counted(preset) + again == pytest.approx(published, rel=5e-3)


def counted(preset: str) -> float:
    """In 1e9, of a graph whose weights are zeros."""
    arch = PRESETS[preset]
    family = FAMILIES[arch.family]
    dims = family.dims_from_arch(arch)
    shapes = expected_shapes(dims, VIDEO)
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    model = build_model(to_official(weights, dims.family, VIDEO), task="video", arch=preset)
    writer = family.backbone.graph(model, family.method, GraphOptions(family.modes[0]))
    VIDEO.write(writer)
    return operations(writer.graph.model()) / 1e9


def operations(model: onnx.ModelProto) -> int:
    nodes = model.graph
    large = [tensor for tensor in nodes.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in large}
    for tensor in large:  # shapes are inferred without them
        nodes.initializer.remove(tensor)
        made = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        nodes.input.append(made)
    nodes.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    total = 0
    for node in nodes.node:
        out = int(np.prod(shapes[node.output[0]]))
        if node.op_type in ("Gemm", "Conv"):
            total += out * int(np.prod(shapes[node.input[1]][1:]))
        elif node.op_type == "MatMul":
            total += out * shapes[node.input[0]][-1]
        elif node.op_type == "LayerNormalization":
            total += 5 * out
    return total
