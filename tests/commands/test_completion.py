"""Completion, asked for as a shell does: by environment variables, and by bash itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from svit_deploy.cli import COMPLETE, main
from svit_deploy.commands.completion import complete_bundle
from svit_deploy.loading.presets import PRESETS
from svit_deploy.model.config import TokenMode

ASK = "import sys; from svit_deploy.cli import main; sys.exit(main())"


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders that look like bundles, and others, below the working folder."""
    for name in ("dense", "out/dynamic", "out/masked", "out/with space", "out/deep/er/far"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "documents").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def complete(
    line: str, shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """The words that a line may go on with; its last one is incomplete."""
    words = line.split(" ")
    monkeypatch.setenv(COMPLETE, f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert main([]) == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("svit-deploy ver", ["verify"]),
        ("svit-deploy verify --again", ["--against"]),
        ("svit-deploy bench --dry", ["--dry-run"]),
        ("svit-deploy plugins b", ["build"]),
        ("svit-deploy export a.pth --tokens d", ["dynamic", "dense"]),
        ("svit-deploy export a.pth --tokens ", [mode.value for mode in TokenMode]),
        ("svit-deploy export a.pth --precision ", ["fp32", "fp16", "bf16", "int8", "fp8"]),
        ("svit-deploy export a.pth --target tens", ["tensorrt", "tensorrt-rtx"]),
        (
            "svit-deploy export a.pth --task ",
            ["classify", "backbone", "detect", "cascade", "video"],
        ),
        ("svit-deploy export a.pth --arch svit_a", [n for n in PRESETS if n.startswith("svit_a")]),
        ("svit-deploy export a.pth --arch my.y", []),
        ("svit-deploy init ", list(PRESETS)),
        ("svit-deploy bench x --provider cu", ["cuda"]),
        ("svit-deploy bench x --cuda-graph o", ["on", "off"]),
        ("svit-deploy visualize x --provider o", ["openvino"]),
        ("svit-deploy tune a.pth --modes d", ["dynamic", "dense"]),
        ("svit-deploy tune a.pth --engines o", ["onnxruntime", "openvino"]),
        ("svit-deploy list ", ["presets", "methods", "backbones", "tasks"]),
        ("svit-deploy verify d", ["dense"]),
        ("svit-deploy verify ", ["dense", "out/dynamic", "out/masked"]),
        ("svit-deploy bench dense out/", ["out/dynamic", "out/masked"]),
        ("svit-deploy predict ./out/d", ["./out/dynamic"]),
        ("svit-deploy visualize doc", []),
        ("svit-deploy export d", []),
    ],
)
def test_what_a_line_may_go_on_with(line, expected, bundles, monkeypatch, capsys):
    assert complete(line, "bash", monkeypatch, capsys) == expected


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_shells_get_the_same(shell, monkeypatch, capsys):
    found = complete("svit-deploy export a.pth --tokens d", shell, monkeypatch, capsys)
    assert found == ["dynamic", "dense"]


def test_zsh_gets_its_own_form_and_paths_where_there_are_no_words(monkeypatch, capsys):
    found = complete("svit-deploy export a.pth --tokens d", "zsh", monkeypatch, capsys)
    assert found[-2:] == [':(("dynamic"', '"dense"))\'']
    assert complete("svit-deploy inspect x", "zsh", monkeypatch, capsys) == ["_files"]


def test_bundles_by_any_beginning(bundles):
    assert complete_bundle(f"{bundles}/out/") == [
        f"{bundles}/out/dynamic",
        f"{bundles}/out/masked",
    ]
    assert complete_bundle("out/deep/") == ["out/deep/er/far"]
    assert complete_bundle("[") == []


def test_the_process_that_a_shell_starts(bundles):
    """As bash does it: the line in variables, the words on standard output, nothing else."""
    line = "svit-deploy verify out/"
    variables = {COMPLETE: "complete_bash", "COMP_WORDS": line, "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "out/dynamic\nout/masked\n"


@pytest.mark.slow
def test_bash_completes_with_the_script_that_is_shown(bundles):
    """The script that --show-completion prints, sourced and called as readline would."""
    bash, program = shutil.which("bash"), Path(sys.executable).with_name("svit-deploy")
    if bash is None or not program.is_file():
        pytest.skip("needs bash, and the package installed beside this Python")
    script = """
        PATH="$1:$PATH"
        source <(svit-deploy --show-completion)
        complete -p svit-deploy
        COMP_WORDS=(svit-deploy export a.pth --tokens d); COMP_CWORD=4
        _svit_deploy_completion svit-deploy
        echo "${COMPREPLY[@]}"
        COMP_WORDS=(svit-deploy verify out/); COMP_CWORD=2
        _svit_deploy_completion svit-deploy
        echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        [bash, "--norc", "-c", script, "bash", str(program.parent)], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "complete -o default -F _svit_deploy_completion svit-deploy",
        "dynamic dense",
        "out/dynamic out/masked",
    ]


@pytest.mark.slow
def test_completion_is_installed_for_the_shell_that_runs(tmp_path):
    bash, program = shutil.which("bash"), Path(sys.executable).with_name("svit-deploy")
    if bash is None or not program.is_file():
        pytest.skip("needs bash, and the package installed beside this Python")
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = [bash, "--norc", "-c", f'"{program}" --install-completion; echo $?']
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0"
    script = (tmp_path / ".bash_completions" / "svit-deploy.sh").read_text()
    assert f"{COMPLETE}=complete_bash" in script
    assert "svit-deploy.sh" in (tmp_path / ".bashrc").read_text()


def test_a_shell_that_is_unknown_is_no_bug(monkeypatch, capsys):
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: None)
    assert main(["--show-completion"]) == 2
    assert "not supported" in capsys.readouterr().err
