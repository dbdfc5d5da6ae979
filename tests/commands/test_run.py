"""Pipelines: command lines in a file, done once."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from svit_deploy.bundle import open_bundle
from svit_deploy.cli import app, main
from svit_deploy.commands.done import READS, WRITES, Done, work_of
from svit_deploy.commands.pipeline import (
    can_be_steps,
    command_line,
    read_pipeline,
    saved,
    with_changes,
)
from svit_deploy.commands.transcript import transcript
from svit_deploy.errors import InputError, UsageError
from tests.conftest import DIGITS
from tests.docs.pages import blocks_of

COMMANDS = can_be_steps(typer.main.get_command(app))


def lines_of(folder: Path, text: str, *changes: str) -> list[list[str]]:
    """The command lines of a pipeline."""
    file = folder / "p.yaml"
    file.write_text(text)
    steps = with_changes(read_pipeline(file, COMMANDS), changes, COMMANDS)
    return [command_line(step, COMMANDS[step.verb], file) for step in steps]


def parsed(line: list[str]) -> Any:
    return COMMANDS[line[0]].make_context(line[0], line[1:])


def test_commands_that_can_be_steps():
    steps = ["export", "verify", "debug", "evaluate", "bench", "predict", "visualize", "package"]
    assert COMMANDS.keys() >= set(steps)
    assert not COMMANDS.keys() & {"run", "serve", "init", "inspect", "list", "doctor", "plugins"}


def test_a_step_is_a_command_line(tmp_path):
    text = """
    steps:
      - export: {source: a.pth, output: out, batch: 1:8:32, tokens: dense, gate_outputs: false,
                 set: {num_heads: 6, mean: "1,2"}, allow-pickle: false}
      - bench: {targets: [a, b], batches: [1, 8], cuda-graph: off, quick: true, max_time_s: 5s,
                worst-case: true, fail-above: [p50=8ms, p90=9], json: "-"}
    """
    export, bench = lines_of(tmp_path, text)
    assert export == [
        "export", "--output=out", "--batch=1:8:32", "--tokens=dense", "--no-gate-outputs",
        "--set=num_heads=6", "--set=mean=1,2", "--", "a.pth",
    ]  # fmt: skip
    assert bench == [
        "bench", "--batch=1,8", "--cuda-graph=off", "--quick", "--max-time=5s",
        "--fail-above=p50=8ms", "--fail-above=p90=9", "--json=-", "--", "a", "b",
    ]  # fmt: skip


def test_options_are_set_on_top(tmp_path):
    text = "steps: [export: {source: a, output: x}, export: {source: b, output: y}, bench: {targets: z, quick: true}]"  # noqa: E501
    changes = ["export.tokens=dense", "export#2.output=w", "bench.quick=", "bench.targets=b",
               "bench.targets=c", "export.set=a=1"]  # fmt: skip
    assert lines_of(tmp_path, text, *changes) == [
        ["export", "--output=x", "--tokens=dense", "--set=a=1", "--", "a"],
        ["export", "--tokens=dense", "--output=w", "--set=a=1", "--", "b"],
        ["bench", "--", "b", "c"],
    ]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("benhc: {targets: a}", "'benhc', is no command that can be a step; use bench"),
        ("serve: {bundles: a}", "'serve', is no command that can be a step; use one of"),
        ("bench: {bacth: 8}", "bench: there is no option 'bacth'; use batch"),
        ("bench: {dry-run: true}", "there is no option 'dry-run'"),
        ("bench: {batch: 1, batches: 8}", "batches is given twice"),
        ("bench: {batch: 1, batch: 8}", "batch stands there twice"),
        ("bench: {quick: 1}", "quick is a switch; write true or false"),
        ("!!null x: {batch: 1}", "'None', is no command"),
        ("bench: {!!int 5: x}", "'5' of step 1, bench, has no value"),
        ("bench: {batch: }", "'batch' of step 1, bench, has no value"),
        ("bench: {batch: [[1]]}", "has no value"),
        ("bench: {<<: {batch: 1}}", "there is no option '<<'; use one of targets, images"),
        ("bench: [batch]", "is not 'bench: {OPTION: VALUE, ...}'"),
        ("verify: {bundle: [a, b]}", "bundle takes one value"),
    ],
)
def test_what_is_no_step(tmp_path, step, words):
    with pytest.raises(InputError) as caught:
        lines_of(tmp_path, f"steps: [{step}]")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("bench.batch", "is not STEP.OPTION=VALUE"),
        ("batch=8", "is not STEP.OPTION=VALUE"),
        ("banch.batch=8", "there is no step 'banch'; use bench"),
        ("bench.bacth=8", "there is no option 'bacth'; use batch"),
    ],
)
def test_what_cannot_be_set(tmp_path, change, words):
    with pytest.raises(UsageError) as caught:
        lines_of(tmp_path, "steps: [bench: {targets: a}]", change)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "typed",
    [
        "export a.pth -o out --set a=1 --set b=2,3 --no-gate-outputs --batch 1:8:32 --budget 0.50 "
        "--target-keep 0.7,0.5 --workspace 1GiB --allow-pickle --force",
        "bench a b@openvino:bf16 --batch 1,8 --warmup 500ms --no-worst-case --cuda-graph off "
        "--fail-above p50=8 --fail-above p99=9ms --json - --seed 0",
        "predict out -o off.csv pictures --min-score 1e-3 --top-k 3",
        "package out -o deploy --format docker --name 12",
    ],
)
def test_a_command_line_is_a_step(typed, tmp_path):
    """What --save-config writes is read as what was typed."""
    context = parsed(typed.split())
    (line,) = lines_of(tmp_path, saved(context))
    assert parsed(line).params == context.params


def test_what_is_read_and_written_is_known():
    """Each parameter that may name a file is either written or read."""
    files = ("FILE", "PATH", "FOLDER", "DIR", "PNG", "BUNDLE", "TARGET", "CHECKPOINT", "IMAGE",
             "NAME|YAML")  # fmt: skip
    named = {
        parameter.name
        for command in COMMANDS.values()
        for parameter in command.params
        if (parameter.metavar or "").endswith(files) and parameter.name != "save_config"
    }
    typed = parsed(
        ["bench", "--images=i", "--json=j", "--html=h", "--sweep-tokens=s", "a@openvino"]
    )
    work = work_of(["bench"], typed.params)
    here = Path.cwd()
    assert set(work.reads) == {str(here / "a"), str(here / "i")}
    assert set(work.writes) == {str(here / name) for name in "jhs"}
    paths = {"checkpoint", "source", "bundle", "targets", "images", "labels", "annotations",
             "against", "class_names", "calibration", "calibrate_gates", "report"}  # fmt: skip
    assert named - {*WRITES, *READS} - paths <= {"timing_cache", "image"}


def test_the_page_shows_a_pipeline(tmp_path):
    (block,) = [one for one in blocks_of("docs/pipelines.md") if one.language == "yaml"]
    for line in lines_of(tmp_path, block.content):
        COMMANDS[line[0]].callback.check(parsed(line).params)


def test_a_transcript_has_every_line_with_its_time(tmp_path, capsys):
    file = tmp_path / "log"
    with pytest.raises(InputError), transcript(file, "title"):
        print("one\ntwo", end="")
        logging.getLogger("svit_deploy").warning("not shown without a handler")
        raise InputError("bad", "mend it")
    assert capsys.readouterr().out == "one\ntwo"
    lines = file.read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "title", "one", "InputError: bad; mend it.", "two",
    ]  # fmt: skip
    assert all(line[:2] == "20" and "T" in line[:12] for line in lines)


# --- what is done -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With a pipeline that exports the digits model and evaluates it."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arch.yaml").write_text((DIGITS / "arch.yaml").read_text())
    export = {
        "source": str(DIGITS / "svit_digits.pth"),
        "output": "out",
        "arch": "arch.yaml",
        "calibration": str(DIGITS / "calibration.npz"),
    }
    evaluate = {"bundle": "out", "images": str(DIGITS / "heldout.npz"), "max-images": "8",
                "json": "report.json"}  # fmt: skip
    steps = {"steps": [{"export": export}, {"evaluate": evaluate}]}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(steps))
    return tmp_path


def did(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> list[str]:
    """The steps that a run does."""
    assert main(["run", "p.yaml", *args]) == code
    lines = capsys.readouterr().err.splitlines()
    return [line.split()[1].rstrip(":") for line in lines if " svit-deploy " in line
            and " is done: " not in line]  # fmt: skip


@pytest.mark.slow
def test_what_is_done_is_not_done_again(folder, capsys):
    both = ["export", "evaluate"]
    assert did(capsys, "--dry-run") == []
    assert {path.name for path in folder.iterdir()} == {"arch.yaml", "p.yaml"}
    assert did(capsys, "--log", "log") == both
    report = json.loads((folder / "report.json").read_text())
    assert report["results"]["images"] == 8
    assert "mean kept tokens" in (folder / "log").read_text()
    assert did(capsys) == []
    assert did(capsys, "--again", "evaluate") == ["evaluate"]
    assert did(capsys, "--set", "evaluate.batch=4") == ["evaluate"]
    assert did(capsys) == ["evaluate"]  # its report was the other's
    (folder / "report.json").write_text("{")
    assert did(capsys) == ["evaluate"]
    (folder / "arch.yaml").touch()
    assert did(capsys) == both
    with (folder / "out" / "model.onnx").open("ab") as file:
        file.write(b"more")
    assert did(capsys) == both
    assert open_bundle(folder / "out").mode.value == "dynamic"
    assert did(capsys, "--set", "export.tokens=masked") == both
    assert open_bundle(folder / "out").mode.value == "masked"


@pytest.mark.slow
def test_what_others_wrote_is_not_replaced(folder, capsys):
    assert did(capsys) == ["export", "evaluate"]
    (folder / "p.yaml.done").unlink()
    assert did(capsys, code=5) == ["export"]
    assert did(capsys, code=5) == ["export"]  # nor is it taken for the pipeline's own
    assert did(capsys, "--set", "export.force=true") == ["export", "evaluate"]
    Path("p.yaml.done").write_text("{}")
    assert main(["run", "p.yaml"]) == 3
    assert "every step is done again" in capsys.readouterr().err


def test_a_step_that_was_begun_is_not_done(tmp_path):
    output = tmp_path / "out"
    work = work_of(["export"], {"output": output, "source": tmp_path / "a"})
    done = Done.read(tmp_path / "state")
    done.note(record := done.record(work))
    output.mkdir()
    again = Done.read(tmp_path / "state")
    assert again.owns(work)
    assert not again.has(work)
    (output / "file").touch()
    done.finish(record)
    assert Done.read(tmp_path / "state").has(work)
    assert not Done.read(tmp_path / "state").has(
        work_of(["export"], {"output": output, "source": Path("-")})
    )


@pytest.mark.slow
def test_save_config_writes_what_run_does(folder, capsys):
    typed = ["evaluate", "out", "--images", str(DIGITS / "heldout.npz"), "--max-images", "4"]
    assert did(capsys) == ["export", "evaluate"]
    capsys.readouterr()
    assert main([*typed, "--format", "csv", "--save-config", "saved.yaml", "--dry-run"]) == 0
    assert "writes      saved.yaml" in capsys.readouterr().out
    assert not Path("saved.yaml").exists()
    assert main([*typed, "--format", "csv", "--save-config", "saved.yaml"]) == 0
    first = capsys.readouterr().out
    assert main(["run", "saved.yaml"]) == 0
    again = capsys.readouterr().out
    figures = [
        [line for line in text.splitlines() if "images/s" not in line] for text in (first, again)
    ]
    assert figures[0] == figures[1]
    assert "top-1 accuracy" in first
