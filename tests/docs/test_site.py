"""`make docs`: the site builds without a warning, is whole, and needs nothing from outside."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from svit_deploy import api, errors
from tests.docs.pages import PAGES, ROOT, text_of

pytest.importorskip("sphinx", reason="pip install 'svit-deploy[docs]'")
pytest.importorskip("myst_parser", reason="pip install 'svit-deploy[docs]'")
pytest.importorskip("furo", reason="pip install 'svit-deploy[docs]'")

pytestmark = pytest.mark.slow

LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)\"|<link\b[^>]*\bhref=\"([^\"]+)\""
)


def build(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """As the Makefile does it."""
    recipe = re.search(r"^\t\$\(BIN\)/sphinx-build (.+) \. \S+$", text_of("Makefile"), re.M)
    assert recipe is not None
    command = [sys.executable, "-m", "sphinx", *recipe[1].split(), ".", str(output)]
    return subprocess.run(command, cwd=source, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("site") / "html"
    done = build(ROOT, output)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return output


def test_every_page_is_there(site):
    for page in PAGES:
        assert (site / page).with_suffix(".html").is_file(), page
    assert (site / "index.html").read_text() == (site / "README.html").read_text()


def test_nothing_is_loaded_from_outside(site):
    pages, styles = list(site.rglob("*.html")), list(site.rglob("*.css"))
    assert pages and styles
    for page in pages:
        for found in LOADED.findall(page.read_text(encoding="utf-8")):
            target = "".join(found)
            assert not re.match(r"(\w+:)?//", target), f"{page.name} loads {target}"
            if not target.startswith(("data:", "#")):
                assert (page.parent / re.sub(r"[?#].*", "", target)).resolve().is_file(), target
    for style in styles:
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text())


def test_links_that_lead_outside_are_listed(site):
    listed = (site / "external_links.txt").read_text().splitlines()
    assert "https://arxiv.org/abs/2306.07050 README" in listed
    assert listed == sorted(set(listed))


def test_the_references_are_whole(site):
    commands = (site / "docs/reference/commands.html").read_text()
    from svit_deploy.cli import app

    for command in app.registered_commands:
        assert f'id="svit-deploy-{command.name}"' in commands
    assert "--calibrate-gates" in commands
    reference = (site / "docs/reference/api.html").read_text()
    verbs = [n for n, v in vars(api).items() if getattr(v, "__module__", "") == api.__name__]
    for verb in verbs:
        assert verb.startswith("_") or f'id="svit_deploy.api.{verb}"' in reference, verb
    for name, value in vars(errors).items():
        if isinstance(value, type):
            assert f'id="svit_deploy.errors.{name}"' in reference


def test_a_broken_link_fails_the_build(tmp_path):
    broken = {
        "[x](no_page.md)": "no_page.md",
        "[x](verify.md#no_heading)": "local id not found in doc 'docs/verify': 'no_heading'",
        "[x](../examples/digits/no_file.yaml)": "no_file.yaml",
        "![x](images/no_picture.png)": "no_picture.png",
    }
    for name in ("docs", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for page in ROOT.glob("*.md"):
        shutil.copy(page, tmp_path)
    with (tmp_path / "docs" / "gpu.md").open("a") as page:
        page.writelines(f"\n{text}\n" for text in broken)
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert all(warning in done.stderr for warning in broken.values()), done.stderr
