"""`debug`: what it writes, and that the commands that it writes find a seeded fault."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")
pytest.importorskip("polygraphy", reason="pip install 'svit-deploy[debug]'")
pytest.importorskip("onnx_graphsurgeon", reason="pip install 'svit-deploy[debug]'")

from svit_deploy import api
from svit_deploy.bundle import MANIFEST, MODEL, Bundle, open_bundle
from svit_deploy.cli import main
from svit_deploy.debug.graphs import same, written_anew
from svit_deploy.debug.readme import INPUTS, README, REDUCED, REFERENCE, SOUND
from svit_deploy.debug.stage import expected_values
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import ExportError, InputError, UsageError
from svit_deploy.graph.edit import add_outputs
from svit_deploy.images import synthetic_images
from svit_deploy.io.files import hash_file
from svit_deploy.verify.expected import LiveReference
from tests.conftest import DIGITS
from tests.docs.pages import blocks_of

CHECKPOINT, ARCH = DIGITS / "svit_digits.pth", str(DIGITS / "arch.yaml")
FAULT = "block_0/mlp/Gelu"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return api.export(CHECKPOINT, tmp_path_factory.mktemp("sound") / "bundle", arch=ARCH)


@pytest.fixture(scope="module")
def faulty(sound: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """GELU by tanh in one node, as some converters write it: 5e-4 off at most."""
    folder = tmp_path_factory.mktemp("faulty") / "bundle"
    shutil.copytree(sound.path, folder)
    model = onnx.load(folder / MODEL)
    (node,) = (node for node in model.graph.node if node.name == FAULT)
    node.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))
    onnx.save(model, folder / MODEL)
    manifest = json.loads((folder / MANIFEST).read_text())
    size = (folder / MODEL).stat().st_size
    manifest["files"][MODEL] = {"size_bytes": size, "sha256": hash_file(folder / MODEL)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return open_bundle(folder)


def report_of(bundle: Bundle, path: Path, *stages: tuple[str, str, float | None]) -> Path:
    """As much of a report as is read."""
    listed = [{"name": n, "value": v, "error": e, "limit": 1e-5} for n, v, e in stages]
    content = {
        "status": {"verdict": "fail" if stages else "pass"},
        "inputs": [{"model_sha256": bundle.model_sha256}],
        "results": {"stages_in_float32": [], "stages": listed},
    }
    path.write_text(json.dumps(content))
    return path


def steps(folder: Path) -> dict[str, list[list[str]]]:
    """The commands of the written page, by the heading that they stand below."""
    headings = {}
    text = (folder / README).read_text().splitlines()
    for block in blocks_of(str(folder / README)):
        heading = next(line for line in text[block.line :: -1] if line.startswith("## "))
        headings[heading.removeprefix("## ")] = block.commands
    return headings


def run(folder: Path, *commands: list[str], **variables: str) -> list[int]:
    """Exit codes of commands, typed in the folder."""
    codes = []
    binaries = str(Path(sys.executable).parent)
    path = os.pathsep.join([binaries, os.environ["PATH"]])
    for command in commands:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PATH": path, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        codes.append(done.returncode)
    return codes


@pytest.mark.slow
def test_a_fault_is_bisected_to_its_node(faulty, tmp_path, capsys):
    line = ["debug", str(faulty.path), "-o", str(tmp_path / "out")]
    assert main([*line, "--against", str(CHECKPOINT), "--arch", ARCH]) == 0
    told = capsys.readouterr().out
    assert told.startswith("block 0 is the first stage that differs from the reference; wrote ")
    folder = tmp_path / "out"
    assert {file.name for file in folder.iterdir()} == {MODEL, SOUND, INPUTS, REFERENCE, README}
    typed = steps(folder)
    (compare,) = typed["Compare with the reference"]
    on_sound = [SOUND if word == MODEL else word for word in compare]
    assert run(folder, *typed["Look at the graph"], compare, on_sound) == [0, 1, 0]
    assert run(folder, *typed["Find the node"]) == [0, 0, 0, 0]
    (node,) = onnx.load(folder / REDUCED).graph.node
    assert (node.name, node.op_type) == (FAULT, "Gelu")


@pytest.mark.slow
def test_a_sound_bundle_is_written_whole(sound, tmp_path):
    written = api.debug(sound.path, tmp_path / "out")
    assert written.verdict == "nothing in the graph differs from the reference"
    assert onnx.load(tmp_path / "out" / MODEL) == sound.load_model()
    typed = steps(tmp_path / "out")
    assert run(tmp_path / "out", *typed["Compare with the reference"]) == [0]
    assert "Find the node" not in typed


@pytest.mark.slow
def test_commands_for_tensorrt_are_read_by_polygraphy(sound, tmp_path):
    api.debug(sound.path, tmp_path, report=report_of(sound, tmp_path.parent / "report.json"))
    record, merge, compare, reduce, _ = steps(tmp_path)["Another runtime"]
    assert "images:[32,3,48,48]" in compare
    check = reduce[reduce.index("--check") + 1 :]
    assert run(tmp_path, record, merge) == [0, 0]
    for command in (compare, check):
        assert run(tmp_path, [*command, "--gen-script", "-"]) == [0]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: pip install 'svit-deploy[tensorrt-rtx]'",
)
def test_what_tensorrt_rtx_cannot_build_is_found(sound, tmp_path):
    """Its parser has no NonZero, which `dynamic` graphs without plugins need."""
    report = report_of(sound, tmp_path / "report.json", ("block 2", "block_2.out", 1.0))
    api.debug(sound.path, tmp_path / "out", report=report, against=CHECKPOINT, arch=ARCH)
    assert not (tmp_path / "out" / SOUND).exists()  # it would be the same
    (chosen, *commands) = steps(tmp_path / "out")["A graph that is not built"]
    name, _, value = chosen[1].partition("=")
    assert run(tmp_path / "out", *commands, **{name: value}) == [1, 0, 0]
    found = [node.op_type for node in onnx.load(tmp_path / "out" / REDUCED).graph.node]
    assert found == ["NonZero", "Squeeze", "Shape"]


def test_inputs_and_expected_values_are_polygraphys(sound, tmp_path):
    from polygraphy.comparator import RunResults
    from polygraphy.json import load_json

    report = report_of(sound, tmp_path / "r.json", ("head", "logits", None))
    written = api.debug(sound.path, tmp_path / "out", report=report, max_images=3)
    assert written.found.stage == "head" and not written.has_sound
    assert "this version writes the same" in (tmp_path / "out" / README).read_text()
    part = sound.load_samples()[0]
    (inputs,) = load_json(str(tmp_path / "out" / INPUTS))
    np.testing.assert_array_equal(inputs["images"], sound.task.feeds(part.images[:3])["images"])
    ((name, (iteration,)),) = RunResults.load(str(tmp_path / "out" / REFERENCE)).items()
    assert name == "reference" and set(iteration) == {"logits"}
    wanted = [outputs["logits"] for outputs in part.result.outputs[:3]]
    np.testing.assert_array_equal(iteration["logits"], wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("svit_cls", "dynamic"),
        ("svit_cls", "budget"),
        ("ats", "dynamic"),
        ("ats", "masked"),
        ("evit_fuse", "static"),
        ("stvitr", "static"),
        ("svit_cls", "masked"),
    ],
)
def test_the_reference_has_the_graphs_shapes(name, mode, export, golden):
    """What is expected of every stage is what a sound graph gives, where it is told at all."""
    bundle = export(name, mode)
    reference = LiveReference(bundle, golden(name).model)
    part = next(reference.parts())
    assert same(written_anew(bundle, reference.model), bundle.load_model())
    graph = add_outputs(bundle.load_model(), bundle.stages)
    shown = [one.name for one in graph.graph.output]
    expected = expected_values(bundle, part.result, shown)
    with OnnxRuntimeEngine(graph.SerializeToString()) as engine:
        found = engine.run(bundle.task.feeds(part.images))
    for value, wanted in expected.items():
        np.testing.assert_allclose(found[value], wanted, rtol=1e-3, atol=1e-3, err_msg=value)
    told = bundle.stages[0] in expected and set(bundle.stages) <= expected.keys()
    assert told == ((name, mode) != ("ats", "masked"))  # its graph computes tokens that are gone


def test_a_stage_that_only_the_checkpoint_knows(sound, tmp_path):
    report = report_of(sound, tmp_path / "r.json", ("block 1", "block_1.out", 1.0))
    with pytest.raises(UsageError, match="what block 1 should give; add --against"):
        api.debug(sound.path, tmp_path / "out", report=report)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="need the checkpoint that they are of"):
        api.debug(sound.path, tmp_path / "out", arch=ARCH)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "is no report of this version's verify"),
        ("[" * 100_000, "is no report of this version's verify"),
        ("\xff", "is no report of this version's verify"),
        ('{"inputs": [{}, {}]}', "is no report of this version's verify"),
    ],
)
def test_no_report(sound, tmp_path, text, words):
    (tmp_path / "r.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=words):
        api.debug(sound.path, tmp_path / "out", report=tmp_path / "r.json")


@pytest.mark.slow
def test_fp8_is_not_for_polygraphys_onnx_runtime(tmp_path):
    images = synthetic_images(2, (32, 32))
    told = {"arch": ARCH, "precision": "fp8", "calibration": images}
    bundle = api.export(CHECKPOINT, tmp_path / "bundle", **told)
    with pytest.raises(
        UsageError, match=r"leave an fp8 graph as it is; debug an export .* in fp32"
    ):
        api.debug(bundle.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_report_of_another_bundle(sound, faulty, tmp_path):
    report = report_of(faulty, tmp_path / "r.json")
    with pytest.raises(InputError, match="is of another bundle than bundle"):
        api.debug(sound.path, tmp_path / "out", report=report)


def test_only_its_own_folder_is_replaced(sound, tmp_path):
    report, out = report_of(sound, tmp_path / "r.json"), tmp_path / "out"
    api.debug(sound.path, out, report=report)
    (out / REDUCED).write_text("of an earlier session")
    with pytest.raises(ExportError, match="written before; give another folder with -o, or --fo"):
        api.debug(sound.path, out, report=report)
    api.debug(sound.path, out, report=report, force=True)
    assert {file.name for file in out.iterdir()} == {MODEL, INPUTS, REFERENCE, README}
    (out / INPUTS).unlink()
    with pytest.raises(ExportError, match="no folder that debug wrote"):
        api.debug(sound.path, out, report=report, force=True)
