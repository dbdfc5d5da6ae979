"""What a command tells of its progress, on a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

from svit_deploy.progress import SILENT, show_progress


def progress_of(console: Console, times: list[float], **options) -> str:
    """Updates "load" at each time but the last, then "run [0]"; returns what was printed."""
    ticks = iter(times)
    with show_progress(console, clock=lambda: next(ticks), **options) as progress:
        for i in range(len(times) - 1):
            progress.update("load", i / 10)
        progress.update("run [0]", 1)
    return console.file.getvalue()


def test_progress_without_a_terminal_is_a_few_plain_lines():
    console = Console(file=io.StringIO(), width=80)
    assert progress_of(console, [0, 1, 31, 32]).splitlines() == [
        "  0% load",
        " 20% load",
        "100% run [0]",
    ]


@pytest.mark.parametrize("no_color", [False, True])
def test_progress_on_a_terminal_redraws_at_most_twice_a_second(no_color, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1" if no_color else "")
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    text = progress_of(console, [0, 0.1, 0.2, 0.9, 1])
    assert "run [0]" in text
    assert " 30%" in text
    assert " 10%" not in text
    assert ("\x1b[3" in text) is not no_color


def test_progress_can_be_silent():
    console = Console(file=io.StringIO(), force_terminal=True)
    assert progress_of(console, [0, 1], enabled=False) == ""
    SILENT.update("anything", 0.5)
