"""Every command of the pages, in their order, page by page, each page in a fresh folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from svit_deploy.cli import app
from tests.docs.pages import PAGES, Block, blocks_of, text_of, tokens_of

pytest.importorskip("torch")

GPU = "needs an NVIDIA GPU with TensorRT"
MINUTES = "measures for minutes"
COMPILER = "needs a C++ compiler and ONNX Runtime's headers; tests/examples does it"
RAY = "needs Ray; tests/inference/test_ray.py and tests/serve/test_ray.py do it"
OWN_TEST = "docs/contributing/"
"""Pages whose Python is run by tests/contributing."""
NOT_RUN = {
    ("README.md", GPU): 1,
    (
        "docs/contributing/add_a_method.md",
        "the family is in this page only; its own test runs it",
    ): 1,
    ("docs/contributing/add_a_task.md", "the task is in this page only; its own test runs it"): 1,
    ("docs/detection.md", GPU): 1,
    ("docs/detection.md", MINUTES): 1,
    ("docs/gpu.md", GPU): 2,
    ("docs/installing.md", "needs a Jetson"): 1,
    ("docs/methods.md", MINUTES): 1,
    ("docs/openvino.md", MINUTES): 1,
    ("docs/plugins.md", "needs nvcc and TensorRT's headers"): 1,
    ("docs/scale.md", RAY): 2,
    ("docs/serving.md", MINUTES): 1,
    ("docs/serving.md", "serves until it is stopped"): 1,
    ("docs/speed.md", MINUTES): 4,
    ("docs/tensorrt.md", GPU): 4,
    ("docs/verify.md", MINUTES): 3,
    ("examples/cpp/README.md", COMPILER): 1,
    ("examples/digits/README.md", "trains for minutes"): 1,
}


PROGRAMS = (
    "benchmarks/operators.py",
    "examples/cpp/source/main.cpp",
    "tests/fuzz/__main__.py",
    "tests/kills/__main__.py",
)
"""Of the project, with options of their own."""
OF_OTHERS = {
    "--dynamicPlugins", "--setPluginsToSerialize", "--staticPlugins",  # trtexec
    "--system-site-packages",  # venv
}  # fmt: skip


def typed_blocks(page: str) -> list[Block]:
    """What a reader types, or runs in Python."""
    languages = ("console",) if page.startswith(OWN_TEST) else ("console", "python")
    return [block for block in blocks_of(page) if block.language in languages]


def test_blocks_that_do_not_run_say_why():
    found = Counter(
        (block.page, block.reason) for page in PAGES for block in blocks_of(page) if block.reason
    )
    assert found == NOT_RUN, "\n".join(f"{page}: {why}" for page, why in found)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if typed_blocks(page)])
def test_commands(page, tmp_path, monkeypatch):
    from tests.docs.reader import Reader

    reader = Reader(tmp_path, monkeypatch)
    for block in typed_blocks(page):
        reader.read(block)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("svit-deploy bench out/nothing --images val/", None),
        ("svit-deploy bench out/nothing --images val/", GPU),
        ("svit-deploy export svit_s.pth -o out --bacth 8", GPU),
        ("svit-deploy export svit_s.pth -o out --budget 0.5 --tokens dense", GPU),
        ("svit-deploy export svit_s.pth -o val", GPU),
        ("make nothing", None),
        ("pip install 'svit-deploy[nothing]'", None),
        ("python benchmarks/svit_s.py --outptu there", MINUTES),
        ("python benchmarks/selection_cost.py --bundles out/nothing", MINUTES),
        ("polygraphy run out/nothing/model.onnx --onnxrt", GPU),
        ("polygraphy run svit_s.pth --nothing", GPU),
        ("unknown program", None),
    ],
)
def test_a_wrong_command_is_noticed(typed, reason, tmp_path, monkeypatch):
    from tests.docs.reader import Reader

    reader = Reader(tmp_path, monkeypatch)
    with pytest.raises((AssertionError, AttributeError)):
        reader.read(Block("README.md", 1, "console", f"$ {typed}\n", reason))


def flags_of(command: Any) -> Iterator[str]:
    """The options of a command and of those below it."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for below in getattr(command, "commands", {}).values():
        yield from flags_of(below)


def test_options_named_in_sentences_exist():
    known = {"--help", *flags_of(typer.main.get_command(app)), *OF_OTHERS}
    for program in PROGRAMS:
        known.update(re.findall(r"--[a-z][\w-]*", text_of(program)))
    spans = (
        (page, child.content)
        for page in PAGES
        for token in tokens_of(page)
        for child in token.children or ()
        if child.type == "code_inline"
    )
    named = [(p, flag) for p, text in spans for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", text)]
    assert len(named) > 50
    assert not [(page, flag) for page, flag in named if flag not in known]
