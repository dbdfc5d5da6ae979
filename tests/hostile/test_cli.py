"""Options, files and machines that every command must survive.

A refusal is one line that starts with "error: " and names the fix, with the documented exit code,
and leaves nothing half-written.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from svit_deploy import api
from svit_deploy.backbones.vit.graph import VitGraph
from svit_deploy.bench.durations import parse_seconds
from svit_deploy.bench.settings import parse_limits, parse_whole_numbers
from svit_deploy.bundle import MANIFEST, MODEL
from svit_deploy.cli import main
from svit_deploy.errors import UsageError
from svit_deploy.export.engine_settings import parse_bytes
from svit_deploy.loading.settings import parse_overrides
from svit_deploy.model.config import BatchRange, parse_image_size, parse_ratios
from svit_deploy.model.profiles import parse_batches, parse_shape
from svit_deploy.model.sizes import SizeRange
from tests.result import Result
from tests.told import checkpoint_of

pytest.importorskip("torch")

DIGITS = Path(__file__).parent.parent.parent / "examples" / "digits"
CHECKPOINT, ARCH, HELDOUT = (DIGITS / n for n in ("svit_digits.pth", "arch.yaml", "heldout.npz"))
EXPORT = ("export", CHECKPOINT, "--arch", ARCH)
QUICK = ("--warmup", "0", "--duration", "0", "--min-samples", "1", "--threads", "1")
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals, pipes or devices")


@pytest.fixture
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Runs a command line in this process, without progress and notes."""
    return partial(cli, "-q")


@pytest.fixture
def refused(cli: Callable[..., Result], tmp_path: Path) -> Callable[..., str]:
    """Runs a command line that must be refused with an exit code, and returns the sentence."""

    def run(code: int, *args: Any) -> str:
        before = snapshot(tmp_path)
        result = cli(*args)
        assert (result.code, result.out) == (code, ""), result
        assert_sentence(result.err)
        assert snapshot(tmp_path) == before
        return result.err

    return run


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits model in token modes dense and dynamic."""
    folder = tmp_path_factory.mktemp("bundles")
    for mode in ("dense", "dynamic"):
        api.export(CHECKPOINT, folder / mode, arch=str(ARCH), tokens=mode, batch="1:2:4")
    return folder


def assert_sentence(err: str) -> None:
    assert err.startswith("error: "), err
    assert err.count("\n") == 1 and err.endswith(".\n"), err
    assert "; " in err, "no fix is named"
    assert "Traceback" not in err and "bug" not in err
    assert len(err) < 600


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def start(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
    """The program in a process of its own, with Ctrl-C as a terminal has it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment.update(options.pop("env", {}))
    return subprocess.Popen(
        [sys.executable, "-m", "svit_deploy", *map(str, args)],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=options.pop("stderr", subprocess.PIPE),
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def finish(process: subprocess.Popen[bytes], encoding: str = "utf-8") -> Result:
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, (out or b"").decode(encoding), (err or b"").decode(encoding))


# --- checkpoints and settings that contradict each other ----------------------------------------


def test_dense_weights_given_as_pruned(refused, tmp_path):
    weights = checkpoint_of("deit")
    message = refused(3, "export", weights, "--arch", "svit_s", "-o", tmp_path / "out")
    assert "its gates would be random" in message
    heads = ("--set", "num_heads=6")
    message = refused(2, "export", weights, *heads, "-o", tmp_path / "out")
    assert "use --tokens dense" in message
    family = ("--set", "family=svit")
    assert "random" in refused(3, "export", weights, *heads, *family, "-o", tmp_path / "out")


def test_other_number_of_classes(refused, tmp_path):
    message = refused(3, *EXPORT, "--set", "num_classes=1000", "-o", tmp_path / "out")
    assert "num_classes 1000 (the checkpoint has 10)" in message


@pytest.mark.slow
def test_position_embedding_of_another_size(cli, tmp_path):
    output = tmp_path / "out"
    done = cli(*EXPORT, "--set", "image_size=96", "-o", output)
    assert done.code == 0
    notes = json.loads((output / MANIFEST).read_text())["notes"]
    assert "position embedding resized from 48x48 to 96x96 pixels" in notes
    assert cli("verify", output, "--against", CHECKPOINT).code == 0


@pytest.mark.parametrize(
    ("size", "nearest"), [("47", "48x48"), ("50", "48x48"), ("48x52", "48x54"), ("1", "6x6")]
)
def test_image_size_that_patches_do_not_tile(refused, tmp_path, size, nearest):
    """Typed, it is an option's value; in a file or as a setting it is a bad configuration."""
    message = refused(2, *EXPORT, "--image-size", size, "-o", tmp_path / "out")
    assert f"not a multiple of the patch size 6; use --image-size {nearest}." in message
    message = refused(3, *EXPORT, "--set", f"image_size={size}", "-o", tmp_path / "out")
    assert f"use --image-size {nearest}." in message


@pytest.mark.parametrize(
    ("size", "meant"),
    [
        ("big", "224 or 224x320"),
        ("48x48x3", "224 or 224x320"),
        ("1e3", "224 or 224x320"),
        ("", "224 or 224x320"),
        ("48x", "48"),
        ("48px", "48"),
        ("-48", "48"),
        ("48*60", "48x60"),
        ("48,60", "48x60"),
        ("48 x 60 px", "48x60"),
        ("0", "224"),
        ("48x9999999", "224"),
    ],
)
def test_image_size_that_is_none(refused, tmp_path, size, meant):
    message = refused(2, *EXPORT, f"--image-size={size}", "-o", tmp_path / "out")
    assert f"--image-size {size!r} is " in message
    assert message.rstrip().endswith(f"give pixels, for example {meant}.")


@pytest.mark.slow
def test_image_size_that_a_bundle_does_not_run(refused, cli, tmp_path):
    assert cli(*EXPORT, "-o", tmp_path / "out").code == 0
    message = refused(2, "bench", tmp_path / "out", "--image-size", "47")
    assert "out runs images of 48x48 pixels, and not of 47x47" in message
    assert "leave --image-size out, or bench --image-size 48x48." in message


@pytest.mark.parametrize("what", [MemoryError(), RuntimeError("x: can't allocate memory: y")])
def test_out_of_memory(refused, tmp_path, monkeypatch, what):
    def fail(*args):
        raise what

    monkeypatch.setattr(VitGraph, "run", fail)
    assert "--image-size" in refused(4, *EXPORT, "-o", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["36", "60x36"])
def test_sizes_other_than_224_work(cli, tmp_path, size):
    output = tmp_path / "out"
    assert cli(*EXPORT, "--image-size", size, "-o", output, "--tokens", "masked").code == 0
    assert cli("verify", output).code == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("0", "out of range"),
        ("1.5", "out of range"),
        ("-0.5", "out of range"),
        ("65", "from 1 to 64"),
        ("40,30,20", "3 values for a model with 4 gates"),
        ("40,30,20,10,5", "5 values for a model with 4 gates"),
        ("nan", "neither a count nor a ratio"),
        ("", "neither a count nor a ratio"),
        ("many", "neither a count nor a ratio"),
        ("auto", "--calibration"),
    ],
)
def test_budgets(refused, tmp_path, values, words):
    args = (*EXPORT, "--tokens", "budget", f"--budget={values}", "-o", tmp_path / "out")
    assert words in refused(2, *args)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("0", "a keep ratio of 0"),
        ("1.5", "a keep ratio of 1.5"),
        ("-0.5", "a keep ratio of -0.5"),
        ("nan", "a keep ratio of nan"),
        ("0.7,0.5,0.3", "3 values for a model with 4 gates"),
        ("", "not a list of numbers"),
        ("many", "not a list of numbers"),
    ],
)
def test_target_keep(refused, tmp_path, values, words):
    gates = ("--calibrate-gates", HELDOUT, "--max-images", "2")
    args = (*EXPORT, *gates, f"--target-keep={values}", "-o", tmp_path / "out")
    assert words in refused(2, *args)


@pytest.mark.parametrize("values", ["0", "1.5", "0.7,0.5", "many"])
def test_keep_ratio_of_random_weights(refused, tmp_path, values):
    message = refused(2, "init", "svit_s", "-o", tmp_path / "x.pth", f"--keep-ratio={values}")
    assert "--keep-ratio" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tokens", "budget"], "add --budget"),
        (["--tokens", "gather"], "dynamic, budget, masked, dense"),
        (["--budget", "0.5"], "--tokens budget"),
        (["--target-keep", "0.5"], "--calibrate-gates"),
        (["--tokens", "dense", "--calibrate-gates", HELDOUT], "no meaning with --tokens dense"),
        (["--tokens", "budget", "--budget", "auto", "--budget-percentile", "0"], "(0, 100]"),
        (["--opset", "17"], "20 to 23"),
        (["--set", "num_heads"], "KEY=VALUE"),
        (["--set", "nonsense=1"], "use one of"),
        (["--set", "mean=1,2"], "mean"),
        (["--set", "std=0,1,1"], "std"),
        (["--set", "num_heads=5"], "not divisible"),
        (["--arch", "svit_x"], "neither a known architecture nor a file"),
        (["--arch", CHECKPOINT], "YAML"),
        (["--calibration", "absent.npz"], "absent.npz does not exist"),
    ],
)
def test_export_options(cli, tmp_path, options, words):
    result = cli(*EXPORT, *options, "-o", tmp_path / "out")
    assert result.code in (2, 3)
    assert_sentence(result.err)
    assert words in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "batch",
    ["0", "-1", "8:4:2", "0:1:2", "1:8", "1:2:3:4", "1x3x224x224", "many", "", "9" * 30, "²"],
)
def test_export_batches(refused, tmp_path, batch):
    message = refused(2, *EXPORT, f"--batch={batch}", "-o", tmp_path / "out")
    assert "MIN:OPT:MAX" in message


@pytest.mark.parametrize("batch", ["0", "-1", "1:8", "1x3x224x224", "", "1,", "many", "1.5"])
def test_bench_batches(refused, bundles, batch):
    assert (
        "give 1 or more" in (said := refused(2, "bench", bundles / "dense", f"--batch={batch}"))
        or "--batch 1,8" in said
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch", "8"], "range 1 to 4"),
        (["--duration", "-1"], "5s or 500ms"),
        (["--duration", "soon"], "5s or 500ms"),
        (["--warmup", "nan"], "5s or 500ms"),
        (["--warmup", "inf"], "5s or 500ms"),
        (["--fail-above", "p99"], "p99=12"),
        (["--fail-above", "p42=1"], "p50"),
        (["--fail-above", "p50=-1"], "positive"),
        (["--fail-above", "p50=nan"], "p99=12"),
        (["--fail-above", "p50=1e999"], "p99=12"),
        (["--threads", "9999999"], "--threads"),
        (["--provider", "abacus"], "cpu, cuda"),
        (["--random", "--images", HELDOUT], "leave one out"),
        (["--sweep-tokens", "sweep.docx"], ".png"),
    ],
)
def test_bench_options(refused, bundles, options, words):
    assert words in refused(2, "bench", bundles / "dense", *QUICK, *options)


def test_sweep_without_a_target_that_can(refused, bundles, tmp_path):
    pytest.importorskip("matplotlib")
    plot = ("--sweep-tokens", tmp_path / "sweep.png")
    message = refused(2, "bench", bundles / "dense", "--duration", "1000", *plot)
    assert "token mode dynamic" in message


def test_comparison_on_different_images(refused, bundles, tmp_path):
    other = tmp_path / "other"
    api.export(CHECKPOINT, other, arch=str(ARCH), tokens="dense", calibration=HELDOUT)
    assert "--images" in refused(2, "bench", bundles / "dynamic", other)


def test_too_few_images_for_a_batch(refused, bundles):
    images = ("--images", HELDOUT, "--max-images", "2")
    message = refused(3, "bench", bundles / "dense", *images, "--batch", "4")
    assert "2 images cannot fill a batch of 4" in message


@pytest.mark.parametrize("count", [1, 3])
def test_labels_that_do_not_fit(refused, bundles, tmp_path, count):
    labels = tmp_path / "labels.txt"
    labels.write_text("1\n" * count)
    data = ("--images", HELDOUT, "--labels", labels)
    message = refused(3, "verify", bundles / "dense", "--against", CHECKPOINT, *data)
    assert f"{count} labels for 360 images" in message


def test_options_of_verify_that_need_a_checkpoint(refused, bundles):
    for option in (["--arch", ARCH], ["--set", "a=1"]):
        assert "add --against CHECKPOINT" in refused(2, "verify", bundles / "dense", *option)
    message = refused(2, "verify", bundles / "dense", "--against", CHECKPOINT, "--labels", "x")
    assert "add --images" in message


@pytest.mark.slow
def test_everything_pruned(cli, tmp_path):
    output = tmp_path / "out"
    gates = ("--calibrate-gates", HELDOUT, "--max-images", "8", "--target-keep", "1e-9")
    assert cli(*EXPORT, *gates, "-o", output).code == 0
    described = json.loads((output / MANIFEST).read_text())["gates"]
    assert [gate["measured_keep"] for gate in described] == [0] * 4
    assert cli("verify", output, "--against", CHECKPOINT, "--arch", ARCH).code == 0
    measured = cli("bench", output, *QUICK, "--json", "-")
    kept = json.loads(measured.out)["results"][0]["kept"]
    assert kept["per_gate_mean"] == [1, 1, 1, 0]  # the class token, but for the last gate
    maps = ("-o", tmp_path / "maps", "--max-images", "2")
    assert cli("visualize", output, "--images", HELDOUT, *maps).code == 0


# --- foreign and strange models -----------------------------------------------------------------


def foreign(path: Path, *nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT) -> Path:
    """Images `x` to `y` through the nodes and a sum over every image."""
    end = nodes[-1].output[0] if nodes else "x"
    axes = helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3])
    graph = helper.make_graph(
        [*nodes, helper.make_node("ReduceSum", [end, "axes"], ["y"], keepdims=0)],
        "foreign",
        [helper.make_tensor_value_info("x", kind, ["N", 3, 48, 48])],
        [helper.make_tensor_value_info("y", kind, ["N"])],
        [axes],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.slow
def test_foreign_model(cli, refused, bundles, tmp_path):
    model = foreign(tmp_path / "foreign.onnx")
    assert "foreign model" in cli("inspect", model).out
    images = ("--images", HELDOUT, "--max-images", "8")
    assert cli("bench", model, bundles / "dynamic", *images, *QUICK).code == 0
    for command in (
        ("verify", model),
        ("verify", model, "--against", CHECKPOINT),
        ("visualize", model, "--images", HELDOUT, "-o", tmp_path / "maps"),
    ):
        assert "`svit-deploy export`" in refused(3, *command)


def test_model_with_random_operators(cli, refused, tmp_path):
    noise = helper.make_node("RandomUniformLike", ["x"], ["noise"], name="gumbel")
    model = foreign(tmp_path / "sampled.onnx", noise)
    assert "draws random numbers" in cli("inspect", model).out
    message = refused(3, "bench", model, "--random", *QUICK)
    assert "gumbel (RandomUniformLike)" in message
    assert "deterministic gates" in message


def test_model_with_custom_operators(cli, refused, tmp_path):
    model = foreign(
        tmp_path / "custom.onnx", helper.make_node("Magic", ["x"], ["z"], domain="acme")
    )
    assert "not standard ONNX" in cli("inspect", model).out
    assert "custom.onnx" in refused(3, "bench", model, "--random", *QUICK)


def test_names_in_a_model_do_not_steer_the_terminal(refused, tmp_path):
    """The reason is ONNX Runtime's, with the name of the node that fails."""
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[7, 1, 1, 1])
    fails = helper.make_node(
        "Reshape", ["x", "shape"], ["z"], name="\x1b]0;owned\x07\x1b[2J\x1b[31mgate"
    )
    model = foreign(tmp_path / "steering.onnx", shape, fails)
    message = refused(3, "bench", model, "--random", *QUICK)
    assert message[:-1].isprintable()
    assert "Reshape" in message and "gate" in message and "shape" in message


def test_model_that_does_not_take_images(refused, tmp_path):
    half = foreign(tmp_path / "half.onnx", kind=TensorProto.FLOAT16)
    assert "one float32 input" in refused(3, "bench", half, "--random", *QUICK)


def test_damaged_metadata_of_a_model(refused, bundles, tmp_path):
    model = onnx.load(bundles / "dense" / MODEL)
    for entry in model.metadata_props:
        if entry.key == "svit_deploy.model":
            entry.value = entry.value[:-1]
    onnx.save(model, tmp_path / "model.onnx")
    message = refused(3, "bench", tmp_path / "model.onnx", "--images", HELDOUT)
    assert "metadata" in message


@pytest.mark.parametrize(
    "command",
    [("verify",), ("bench",), ("inspect",), ("visualize", "--images", HELDOUT, "-o", "maps")],
)
def test_targets_that_are_none(refused, tmp_path, command):
    text = tmp_path / "notes.txt"
    text.write_text("not a model")
    empty = tmp_path / "empty"
    empty.mkdir()
    for target in (tmp_path / "absent", empty, text):
        assert refused(3, *command[:1], target, *command[1:])


def test_provider_that_is_not_here(refused, bundles):
    for provider in ("openvino", "QNNExecutionProvider"):
        for command in ("verify", "bench"):
            message = refused(4, command, bundles / "dense", "--provider", provider)
            assert "--provider cpu" in message


def test_arch_file_that_nests(refused, tmp_path):
    arch = tmp_path / "arch.yaml"
    ones = "&v0 [x, x, x, x, x, x, x, x, x]"
    more = [f"&v{i} [{', '.join([f'*v{i - 1}'] * 9)}]" for i in range(1, 20)]
    arch.write_text(f"family: svit\nnum_heads: 4\nimage_size: [{', '.join([ones, *more])}]\n")
    message = refused(3, "export", CHECKPOINT, "--arch", arch, "-o", tmp_path / "out")
    assert "image_size is nested" in message


def test_unknown_family(refused, tmp_path):
    arch = tmp_path / "arch.yaml"
    arch.write_text(ARCH.read_text().replace("family: svit", "family: vit"))
    words = "family=vit has a bad value; give one of dynamicvit_lvvit, multiscale_lvvit,"
    assert words in refused(3, "init", arch, "-o", tmp_path / "x.pth")
    assert words in refused(3, "export", CHECKPOINT, "--arch", arch, "-o", tmp_path / "out")
    assert words in refused(2, *EXPORT, "--set", "family=vit", "-o", tmp_path / "out")


TEXTS = st.text(st.characters(codec="utf-8")) | st.text("0123456789.,:x=-+eEinfa ms²٣_")


@given(text=TEXTS)
@example("²")
@example("9" * 5000)
def test_values_of_options_parse_or_are_refused(text):
    parsers: list[Callable[[str], Any]] = [
        BatchRange.parse,
        parse_batches,
        parse_image_size,
        SizeRange.parse,
        parse_seconds_of_option,
        lambda text: parse_shape(text, "--option"),
        lambda text: parse_bytes(text, "--option"),
        lambda text: parse_ratios(text, "--option"),
        lambda text: parse_whole_numbers(text, "--option"),
        lambda text: parse_limits([text]),
        lambda text: parse_overrides([text]),
    ]
    for parse in parsers:
        try:
            value = parse(text)
        except UsageError as error:
            assert error.fix
        else:
            assert value is not None


def parse_seconds_of_option(text: str) -> float:
    seconds = parse_seconds(text, "--option")
    assert 0 <= seconds < 1e7
    return seconds


# --- disks --------------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_full_disk(refused, bundles, tiny_disk):
    for command in (
        (*EXPORT, "-o", tiny_disk / "out"),
        ("init", "deit_tiny", "-o", tiny_disk / "random.safetensors"),
        ("init", "deit_tiny", "-o", tiny_disk / "random.pth"),
    ):
        assert "No space left on device" in refused(5, *command)
    maps = ("--images", HELDOUT, "--max-images", "40", "-o", tiny_disk / "maps")
    assert "No space left on device" in refused(5, "visualize", bundles / "dynamic", *maps)
    with pytest.raises(OSError, match="No space"), (tiny_disk / "ballast").open("wb") as ballast:
        while True:
            ballast.write(bytes(4096))
            ballast.flush()
    for command in (("inspect", bundles / "dense"), ("verify", bundles / "dense")):
        before = snapshot(tiny_disk)
        assert main(["-q", *map(str, command), "--json", str(tiny_disk / "report.json")]) == 5
        assert snapshot(tiny_disk) == before


def test_full_disk_while_writing_a_report(cli, bundles, tmp_path, monkeypatch):
    def full(self, text, **options):
        with self.open("w") as file:
            file.write(text[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    report = tmp_path / "report.json"
    report.write_text("an earlier one")
    monkeypatch.setattr(Path, "write_text", full)
    result = cli("inspect", bundles / "dense", "--json", report)
    monkeypatch.undo()
    assert result.code == 5
    assert_sentence(result.err)
    assert snapshot(tmp_path) == {"report.json": b"an earlier one"}


def test_full_disk_while_exporting(refused, tmp_path, monkeypatch):
    def full(model, path):
        path.write_bytes(bytes(1000))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx, "save", full)
    assert "No space left" in refused(5, *EXPORT, "-o", tmp_path / "out")


@pytest.mark.slow
def test_full_standard_output(bundles):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with Path("/dev/full").open("wb") as full:
        result = finish(start("inspect", bundles / "dense", stdout=full))
    assert result.code == 5
    assert_sentence(result.err)


@pytest.mark.slow
def test_outputs_that_cannot_be_written(refused, bundles, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert "-o" in refused(5, *EXPORT, "-o", file)
    assert "-o" in refused(5, *EXPORT, "-o", file / "below")
    assert "-o" in refused(2, "init", "deit_tiny", "-o", file / "below.pth")
    images = ("--images", HELDOUT, "--max-images", "1")
    assert "-o" in refused(5, "visualize", bundles / "dynamic", *images, "-o", file / "below")
    for report in (file / "below.json", tmp_path):
        # Found out before the measurement, not after it.
        late = ("bench", bundles / "dense", "--duration", "1000", "--json", report)
        assert "--json" in refused(2, *late)
    pytest.importorskip("matplotlib")
    plot = (
        "bench",
        bundles / "dynamic",
        "--duration",
        "1000",
        "--sweep-tokens",
        tmp_path / "x.png",
    )
    (tmp_path / "x.png").mkdir()
    assert "--sweep-tokens" in refused(2, *plot)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_read_only_folder(refused, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    assert "Permission denied" in refused(5, *EXPORT, "-o", closed / "out")
    assert "Permission denied" in refused(2, "init", "deit_tiny", "-o", closed / "x.pth")


@POSIX
def test_report_to_a_device(cli, bundles):
    assert cli("inspect", bundles / "dense", "--json", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()


@POSIX
def test_report_through_a_link(cli, bundles, tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "report.json")
    assert cli("inspect", bundles / "dense", "--json", tmp_path / "link.json").code == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "report.json").read_text())["kind"] == "bundle"


# --- the end of a process -----------------------------------------------------------------------


def wait_for(process: subprocess.Popen[bytes], words: bytes) -> None:
    """Returns when a line with these words has come on standard error."""
    assert process.stderr is not None
    assert any(words in line for line in iter(process.stderr.readline, b""))


def export_slowly(output: Path) -> subprocess.Popen[bytes]:
    """An export that has begun to write and is far from its end."""
    process = start(*EXPORT, "--calibrate-gates", HELDOUT, "-o", output)
    wait_for(process, b"calibrating the gates")
    assert list(output.parent.glob(f".{output.name}.partial-*"))
    return process


@pytest.mark.slow
@POSIX
def test_killed_export_leaves_nothing_at_its_target(cli, tmp_path):
    output = tmp_path / "out"
    process = export_slowly(output)
    process.kill()
    assert finish(process).code == -signal.SIGKILL
    assert not output.exists()
    assert cli(*EXPORT, "-o", output).code == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "terminated"),
    ],
)
def test_interrupted_export(tmp_path, number, code, word):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"what started these tests ignores {number.name}")
    process = export_slowly(tmp_path / "out")
    process.send_signal(number)
    result = finish(process)
    assert result.code == code
    assert result.err.splitlines()[-1].startswith(f"error: {word}, ")
    assert "Traceback" not in result.err
    assert not list(tmp_path.iterdir())


@POSIX
def test_signals_are_handled_by_a_command_alone(cli, tmp_path, monkeypatch):
    """Whoever calls `main` gets its handlers back; one who ignores a signal goes on to."""
    seen = []
    monkeypatch.setattr(
        "svit_deploy.api.inspect",
        lambda path: seen.extend(map(signal.getsignal, (signal.SIGTERM, signal.SIGHUP))),
    )
    before = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_IGN}
    kept = {number: signal.signal(number, handler) for number, handler in before.items()}
    try:
        cli("inspect", tmp_path)
        assert {number: signal.getsignal(number) for number in before} == before
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert callable(seen[0]) and seen[1] is signal.SIG_IGN


@pytest.mark.slow
@POSIX
def test_interrupted_bench(bundles, tmp_path):
    report = tmp_path / "report.json"
    process = start("bench", bundles / "dense", "--duration", "300", "--json", report)
    wait_for(process, b"timing dense")
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert (result.code, result.out) == (130, "")
    assert result.err.startswith("error: interrupted, ")
    assert result.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("what", ["inspect", "--help"])
def test_reader_of_standard_output_goes_away(bundles, what):
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*((what, bundles / "dynamic") if what == "inspect" else (what,)), stdout=writer)
    os.close(writer)
    result = finish(process)
    assert result.code == 141  # as a shell reports SIGPIPE
    assert result.err == ""


@pytest.mark.slow
@POSIX
def test_no_standard_streams_at_all(bundles):
    shell = f'"{sys.executable}" -m svit_deploy verify "{bundles / "dense"}" >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell]).returncode == 0


# --- consoles and names -------------------------------------------------------------------------


@pytest.mark.slow
def test_names_with_spaces_and_any_script(cli, tmp_path):
    folder = tmp_path / "my models é" / "模型 [bold]"
    weights, arch = folder / "Gewichte ü.pth", folder / "arch 1.yaml"
    folder.mkdir(parents=True)
    shutil.copy(CHECKPOINT, weights)
    shutil.copy(ARCH, arch)
    output = folder / "größe"
    assert cli("export", weights, "--arch", arch, "-o", output).code == 0
    assert cli("verify", output, "--against", weights, "--json", folder / "ü.json").code == 0
    assert json.loads((folder / "ü.json").read_text())["inputs"][0]["name"] == "größe"
    measured = cli("bench", output, *QUICK)
    assert "größe" in measured.out
    assert "Gewichte ü.pth" in cli("inspect", output).out
    images = ("--images", HELDOUT, "--max-images", "1")
    assert cli("visualize", output, *images, "-o", folder / "Karten ü").code == 0
    assert "模型 [bold]" in cli("inspect", folder / "absent").err


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize(
    ("encoding", "shown"), [("cp1252", "größe ??"), ("ascii", "gr??e ??"), ("utf-8", "größe 模型")]
)
def test_console_of_any_encoding(bundles, tmp_path, encoding, shown):
    target = tmp_path / "größe 模型"
    shutil.copytree(bundles / "dense", target)
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    result = finish(start("bench", target, *QUICK, env=environment), encoding)
    assert result.code == 0, result.err
    assert shown in " ".join(result.out.split())
    assert f"timing {shown}" in result.err


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize(
    ("environment", "colours", "moves"),
    [
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, True),
        ({"TERM": "dumb", "NO_COLOR": ""}, False, False),
    ],
)
def test_terminals(bundles, environment, colours, moves):
    import pty
    import re

    ours, theirs = pty.openpty()
    process = start("verify", bundles / "dense", env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            part = b""
        if not part:
            break
        text += part
    os.close(ours)
    assert process.wait() == 0
    assert b"PASS dense" in text
    assert bool(re.search(rb"\x1b\[[\d;]*3[1-7]m", text)) == colours
    assert bool(re.search(rb"\x1b\[[\d;?]*[A-HJKhl]", text)) == moves
