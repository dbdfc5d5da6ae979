"""The documentation site, built by `make docs`.

Its pages are the repository's Markdown files as they stand, so that they read the same on a code
host: the source folder is the repository, and README.md the first page. Sphinx adds the table of
contents, the reference of commands (from the typer app) and that of Python (from the docstrings).
"""

from __future__ import annotations

import re
import shutil
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import typer
from docutils import nodes
from sphinx.application import Sphinx
from typer.cli import get_docs_for_click

from svit_deploy import __version__
from svit_deploy.cli import app as command_line
from svit_deploy.options import options_of

project = "svit-deploy"
author = "The svit-deploy authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "README"
include_patterns = ["*.md", "docs/**", "examples/*/README.md"]
contents = {
    "Using it": [
        "docs/installing",
        "docs/command_line",
        "docs/pipelines",
        "docs/application",
        "examples/cpp/README",
        "docs/methods",
        "docs/detection",
        "docs/video",
        "docs/int8",
        "docs/verify",
        "docs/debugging",
        "docs/evaluate",
        "docs/reports",
        "docs/tune",
        "docs/serving",
        "docs/scale",
        "docs/tensorrt",
        "docs/openvino",
        "docs/plugins",
        "docs/troubleshooting",
        "SECURITY",
    ],
    "Measured": ["docs/speed", "docs/gpu", "examples/digits/README"],
    "Reference": ["docs/reference/commands", "docs/reference/api", "docs/glossary", "CHANGELOG"],
    "Working on it": [
        "CONTRIBUTING",
        "docs/architecture",
        "docs/contributing/add_a_method",
        "docs/contributing/add_a_task",
    ],
}

myst_heading_anchors = 4
default_role = "code"  # docstrings have single backticks
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_use_ivar = True
smartquotes = False  # or --flag would become –flag

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_what_sphinx_adds)
    app.connect("autodoc-process-signature", hide_options)
    app.connect("autodoc-process-docstring", list_options)
    app.connect("build-finished", finish)


def add_what_sphinx_adds(app: Sphinx, page: str, source: list[str]) -> None:
    """Puts the contents behind the README, and the commands behind their page's introduction."""
    if page == root_doc:
        for caption, pages in contents.items():
            entries = "\n".join(f"/{entry}" for entry in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"
    if page == "docs/reference/commands":
        source[0] += commands()


def commands() -> str:
    """Markdown of every command and option, as typer writes it."""
    group: Any = typer.main.get_command(command_line)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group), name=project)
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)  # cut short; they follow whole
    return "\n" + text.partition("\n")[2]  # without its title, which the page has


def hide_options(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: Any, returns: Any
) -> tuple[str, None] | None:
    """A settings class has some thirty options; they stand below it instead of in its signature."""
    return ("(**options)", None) if has_options(obj) else None


def list_options(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Names, flags and help of a settings class's options."""
    if has_options(obj):
        lines += ["", ":Options:", ""]
        lines += [f"   * `{n}` (`{o.flag}`): {o.option.help}" for n, o in options_of(obj).items()]


def has_options(obj: Any) -> bool:
    return isinstance(obj, type) and is_dataclass(obj) and bool(options_of(obj))


def finish(app: Sphinx, failure: Exception | None) -> None:
    """Makes the README the site's index, and lists the links that lead out of it."""
    if failure is not None or app.builder.name != "html":
        return
    out, links = Path(app.outdir), set()
    shutil.copy(out / f"{root_doc}.html", out / "index.html")
    for page in app.env.found_docs:
        for reference in app.env.get_doctree(page).findall(nodes.reference):
            if (target := reference.get("refuri", "")).startswith(("http:", "https:")):
                links.add(f"{target} {page}\n")
    (out / "external_links.txt").write_text("".join(sorted(links)), encoding="utf-8")
