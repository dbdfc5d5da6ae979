"""examples/cpp, built with ONNX Runtime's headers and its package's own library, and run.

Its inputs are held to those of `svit-deploy` bit for bit, its outputs to the same runtime's in
Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from svit_deploy import api
from svit_deploy.bundle import Bundle
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.images import read_picture, synthetic_images
from tests.conftest import DIGITS
from tests.told import SETTINGS, checkpoint_of

SOURCE = Path(__file__).parents[2] / "examples" / "cpp"
TOLD = {"crop_ratio": "0.8", "mean": "0.4,0.5,0.6", "std": "0.2,0.3,0.25"}
ORIENTATION = 0x0112  # EXIF
pytestmark = pytest.mark.slow


def folders(variable: str, header: str) -> list[Path]:
    """Include folders that a variable names; skips the test where the header is in none."""
    found = [Path(p) for p in os.environ.get(variable, "").split(os.pathsep) if p]
    if not any((folder / header).is_file() for folder in found):
        pytest.skip(f"{variable} names no folder with {header}")
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (include,) = folders("ONNXRUNTIME_INCLUDE_DIR", "onnxruntime_cxx_api.h")
    onnxruntime = pytest.importorskip("onnxruntime")
    capi = Path(onnxruntime.__file__).parent / "capi"
    libraries = sorted(capi.glob("libonnxruntime.so.*"))
    if not libraries:
        pytest.skip(f"{capi} has no libonnxruntime.so")
    if shutil.which("cmake") is None:
        pytest.skip("no CMake")
    build = tmp_path_factory.mktemp("cpp")
    library = build / "libonnxruntime.so"
    library.symlink_to(libraries[0])
    (build / "libonnxruntime.so.1").symlink_to(libraries[0])  # the name that is looked for
    options = {"ONNXRUNTIME_INCLUDE_DIR": include, "ONNXRUNTIME_LIBRARY": library}
    options |= {"CMAKE_BUILD_RPATH": build, "CMAKE_CXX_FLAGS": "-Werror"}
    given = [f"-D{name}={value}" for name, value in options.items()]
    done = subprocess.run(
        ["cmake", "-S", SOURCE, "-B", build, *given], capture_output=True, text=True
    )
    if missing := re.search(r'provided by\s+"(\w+)"|Could NOT find (JPEG|PNG)', done.stderr):
        pytest.skip(f"CMake does not find {missing[1] or missing[2]}")
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["cmake", "--build", build], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return build / "svit_run"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """Bundles whose crop, interpolation, mean and standard deviation are nobody's defaults."""
    made: dict[str, Bundle] = {}

    def export(interpolation: str) -> Bundle:
        if interpolation not in made:
            made[interpolation] = api.export(
                DIGITS / "svit_digits.pth",
                tmp_path_factory.mktemp(interpolation) / "bundle",
                arch=str(DIGITS / "arch.yaml"),
                overrides={**TOLD, "interpolation": interpolation},
                image_size="48x72",
            )
        return made[interpolation]

    return export


def save(file: Path, size: tuple[int, int], orientation: int = 1, mode: str = "RGB") -> Path:
    (picture,) = synthetic_images(1, size, seed=sum(size)).arrays
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(picture).convert(mode).save(file, exif=exif)
    return file


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True)


def check(program: Path, bundle: Bundle, picture: Path, folder: Path) -> str:
    """Holds all that goes in and comes out to Python's; gives what was printed."""
    done = run(program, bundle.path, picture, "--tensors", folder)
    assert done.returncode == 0, done.stderr
    image = bundle.task.prepare(read_picture(picture), bundle.config, bundle.sizes)
    feeds = bundle.task.feeds([image])
    with OnnxRuntimeEngine(bundle.model_path, precision=bundle.precision) as engine:
        outputs = engine.run(feeds)
    assert {file.stem for file in folder.iterdir()} == {*feeds, *outputs}
    for name, wanted in {**feeds, **outputs}.items():
        found = np.fromfile(folder / f"{name}.bin", wanted.dtype).reshape(wanted.shape)
        if name in feeds or wanted.dtype != np.float32:
            np.testing.assert_array_equal(found, wanted, err_msg=name)
        else:
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6, err_msg=name)
    return done.stdout


SIZES = [(90, 91), (50, 300), (300, 50), (31, 17), (60, 90), (48, 72), (1, 1), (7, 400)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_inputs_and_outputs_are_pythons(interpolation, program, digits, tmp_path):
    for size in SIZES:
        picture = save(tmp_path / "picture.png", size)
        check(program, digits(interpolation), picture, tmp_path / "tensors")


def test_fp8(program, tmp_path):
    """ONNX Runtime must be told to leave such a graph as it is."""
    bundle = api.export(
        DIGITS / "svit_digits.pth",
        tmp_path / "bundle",
        arch=str(DIGITS / "arch.yaml"),
        precision="fp8",
        calibration=synthetic_images(2, (64, 64)),
    )
    picture = save(tmp_path / "picture.png", (90, 91))
    check(program, bundle, picture, tmp_path / "tensors")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_are_turned_upright(suffix, program, digits, tmp_path):
    for orientation in range(1, 9):
        picture = save(tmp_path / f"picture.{suffix}", (60, 90), orientation)
        check(program, digits("bicubic"), picture, tmp_path / "tensors")


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("png", "L"), ("png", "P"), ("png", "1"), ("png", "RGBA"), ("png", "LA"), ("jpg", "L")],
)
def test_pictures_of_other_kinds(suffix, mode, program, digits, tmp_path):
    picture = save(tmp_path / f"picture.{suffix}", (60, 90), mode=mode)
    check(program, digits("bicubic"), picture, tmp_path / "tensors")


def test_a_detector(program, tmp_path):
    bundle = api.export(
        checkpoint_of("svit_mask_rcnn"),
        tmp_path / "bundle",
        task="detect",
        overrides=SETTINGS["svit_mask_rcnn"],
        image_size="64x64:96x128:128x160",
    )
    for size in [(60, 80), (200, 150), (128, 160)]:
        picture = save(tmp_path / "picture.png", size)
        check(program, bundle, picture, tmp_path / "tensors")
    printed = run(program, bundle.path, picture, "--min-score", "0").stdout.splitlines()
    scores = np.fromfile(tmp_path / "tensors" / "scores.bin", np.float32)
    assert len(scores) and len(printed) == len(scores) + bundle.config.num_gates


def test_what_is_printed(program, digits, tmp_path):
    """The same classes and probabilities as `predict`, the same tokens as `visualize`."""
    bundle, picture = digits("bicubic"), save(tmp_path / "picture.png", (60, 90))
    printed = run(program, bundle.path, picture, "--top", "3").stdout.splitlines()
    api.predict(bundle.path, tmp_path / "classes.csv", images=picture, top_k=3)
    cells = (tmp_path / "classes.csv").read_text().splitlines()[1].split(",")
    for line in printed[:3]:
        probability, label, _, _ = line.split()
        assert label in cells
        assert any(abs(float(probability) - number) < 2e-6 for number in map(_number, cells))
    check(program, bundle, picture, tmp_path / "tensors")
    masks = np.fromfile(tmp_path / "tensors" / "keep_mask.bin", bool).reshape(4, -1)
    assert printed[3:] == [
        f"gate {gate}, block {gate + 2}: {mask.sum()} of {mask.size} tokens"
        for gate, mask in enumerate(masks)
    ]


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return np.nan


def test_failures_are_sentences(program, digits, tmp_path):
    bundle, picture = digits("bicubic").path, save(tmp_path / "picture.png", (60, 90))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:200])
    (tmp_path / "manifest.json").write_text("{}")
    for words, code, told in [
        ((tmp_path / "nix", picture), 1, "cannot be read: give the folder of an export"),
        ((tmp_path, picture), 1, "is no manifest of a bundle"),
        ((bundle, tmp_path / "nix.png"), 1, "No such file"),
        ((bundle, tmp_path / "text.png"), 1, "neither a JPEG nor a PNG file"),
        ((bundle, tmp_path / "cut.png"), 1, "picture "),
        ((bundle, picture, "--tensorrt"), 1, "-DWITH_TENSORRT=ON"),
        ((bundle,), 2, "give a bundle and a picture"),
        ((bundle, picture, "--nix"), 2, "there is no option --nix"),
    ]:
        done = run(program, *words)
        assert (done.returncode, done.stdout) == (code, ""), words
        assert done.stderr.startswith("error: ") and told in done.stderr


def test_the_tensorrt_part_is_valid_for_its_headers(tmp_path):
    """Read by a compiler; the libraries are not needed."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    cuda = folders("CUDA_INCLUDE_DIR", "cuda_runtime_api.h")
    for tensorrt in folders("TENSORRT_INCLUDE_DIR", "NvInferRuntime.h"):
        includes = [f"-isystem{folder}" for folder in (tensorrt, *cuda)]
        flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
        done = subprocess.run(
            [compiler, *flags, *includes, SOURCE / "source" / "tensorrt.cpp"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
