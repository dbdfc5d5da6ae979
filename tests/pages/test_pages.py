"""Pages show their own report's figures, load nothing and run in a browser without an error."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from svit_deploy.bundle import Bundle
from svit_deploy.cli import main
from svit_deploy.pages.verify import verify_page
from tests.told import SETTINGS, as_options, checkpoint_of

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DATA = "data:application/json;base64,"
pytestmark = pytest.mark.slow


class Reader(HTMLParser):
    """What a page says, loads, and offers for download."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.report: Any = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "xlink:href"):
                assert value is not None
                self.sources.append(value)
                if value.startswith(DATA):
                    self.report = json.loads(base64.b64decode(value.removeprefix(DATA)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append(data.strip())


@pytest.fixture(scope="module")
def pages(digits_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page and a JSON report of each command that has them."""
    folder = tmp_path_factory.mktemp("pages")
    bundle = str(digits_bundle.path)
    heldout = str(Path(__file__).parents[2] / "examples" / "digits" / "heldout.npz")
    some = ["--images", heldout, "--max-images", "16"]
    quick = ["--warmup", "0", "--duration", "0", "--min-samples", "6"]
    for name, line in {
        "verify": ["verify", bundle],
        "evaluate": ["evaluate", bundle, *some],
        "bench": ["bench", bundle, *some, "--batch", "1,2", "--raw", "--profile-layers", *quick],
    }.items():
        out = str(folder / name)
        assert main(["-q", *line, "--html", f"{out}.html", "--json", f"{out}.json"]) == 0
    return folder


@pytest.mark.parametrize("name", ["verify", "evaluate", "bench"])
def test_a_page_holds_its_report_and_loads_nothing(pages: Path, name: str) -> None:
    page = Reader((pages / f"{name}.html").read_text(encoding="utf-8"))
    assert page.report == json.loads((pages / f"{name}.json").read_text())
    assert "script" not in page.tags and "link" in page.tags
    assert all(source.startswith("data:") for source in page.sources)
    assert len(page.sources) >= 2
    assert all(word in page.words for word in ("Environment", page.report["environment"]["cpu"]))


def test_the_figures_of_a_verification(pages: Path) -> None:
    page = Reader((pages / "verify.html").read_text(encoding="utf-8"))
    results = page.report["results"]
    for check in results["checks"]:
        assert check["name"] in page.words and check["detail"] in page.words
    assert len(results["gates"]) == 4
    for gate in results["gates"]:
        assert f"{gate['keep_ratio']:.4f}" in page.words
        assert f"gate {gate['gate']}, block {gate['block']}" in page.words
        margins = gate["margins"]
        for kind in ("kept", "pruned"):
            first = next(i for i, count in enumerate(margins[kind]) if count)
            where = f"from {margins['edges'][first]:.3g} to {margins['edges'][first + 1]:.3g}"
            assert f"{kind}: {margins[kind][first]} {where}" in page.words
        assert f"threshold {margins['threshold']:g}" in page.words
        assert sum(margins["kept"]) + sum(margins["pruned"]) <= 8 * 65
    assert len(results["examples"]) == 8
    shown = [source for source in page.sources if source.startswith("data:image/png")]
    assert len(shown) == 8
    assert base64.b64decode(shown[0].partition(",")[2]).startswith(b"\x89PNG")


def test_the_figures_of_a_benchmark(pages: Path) -> None:
    page = Reader((pages / "bench.html").read_text(encoding="utf-8"))
    for result in page.report["results"]:
        assert f"{result['latency']['p50_ms']:.2f}" in page.words
        assert len(result["samples_ms"]) == result["rounds"]
        for kept, runs in zip(result["kept_of_block"], result["samples_ms"], strict=True):
            what = f"{sum(runs) / 2:.3g} ms, {kept:.3g} tokens"
            assert f"{result['label']}: {what}" in page.words


def test_the_figures_of_an_evaluation(pages: Path) -> None:
    page = Reader((pages / "evaluate.html").read_text(encoding="utf-8"))
    results = page.report["results"]
    measure = results["measures"]["top1_accuracy"]
    for figure in (measure["value"], measure["low"], measure["high"]):
        assert f"{figure:.2%}" in page.words
    for gate in results["gates"]:
        assert f"{gate['kept_tokens']:.1f}" in page.words


def test_what_fails_is_said_and_marked(pages: Path) -> None:
    report = json.loads((pages / "verify.json").read_text())
    report["results"]["checks"][3] |= {"passed": False, "detail": "<script>alert(1)</script>"}
    report["results"]["stages"] = [{"name": "block 1", "error": 2.0, "limit": 1.0}]
    report["status"] = {"verdict": "fail", "reasons": ["metadata: <script>alert(1)</script>"]}
    text = verify_page(report)
    page = Reader(text)
    assert "script" not in page.tags
    assert "FAIL: metadata: <script>alert(1)</script>" in page.words
    assert text.count('<tr class="bad">') == 2
    assert "200%" in page.words


def test_only_a_raw_report_has_every_run(pages: Path, digits_bundle: Bundle) -> None:
    out = pages / "short.json"
    options = ["--quick", "--max-images", "8", "--threads", "1"]
    line = ["-q", "bench", str(digits_bundle.path), *options, "--random", "--allow-noise"]
    assert main([*line, "--json", str(out)]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert "samples_ms" not in result and "kept_of_block" not in result


def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    digits_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    page = str(tmp_path / "file" / "page.html")
    assert main(["-q", "verify", str(digits_bundle.path), "--html", page]) == 2
    assert "--html" in capsys.readouterr().err


def test_token_maps_of_pictures_of_several_sizes(tmp_path: Path) -> None:
    """Images of a backbone each have their own grid."""
    checkpoint = checkpoint_of("svit_adapter")
    sizes = ["--task", "backbone", "--image-size", "64x64:64x96:96x96"]
    out, told = str(tmp_path / "out"), as_options(SETTINGS["svit_adapter"])
    assert main(["-q", "export", str(checkpoint), "-o", out, *told, *sizes]) == 0
    page, report = tmp_path / "page.html", tmp_path / "report.json"
    assert main(["-q", "verify", out, "--html", str(page), "--json", str(report)]) == 0
    shown = Reader(page.read_text(encoding="utf-8"))
    examples = json.loads(report.read_text())["results"]["examples"]
    assert len({len(example["kept_tokens"]) for example in examples}) == 1
    assert len([one for one in shown.sources if one.startswith("data:image/png")]) == len(examples)
    assert examples and all(example["name"] in shown.words for example in examples)


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")
@pytest.mark.parametrize("name", ["verify", "evaluate", "bench"])
def test_in_a_browser(pages: Path, tmp_path: Path, name: str) -> None:
    """No console message, one request, which is that for the page itself; prints."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_: Any) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(pages)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{server.server_port}/"  # the server itself tells what it is asked
    page = f"{origin}{name}.html"
    log, printed = tmp_path / "net.json", tmp_path / "page.pdf"
    base = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"),
    ]
    try:
        done = subprocess.run(
            [*base, f"--log-net-log={log}", "--dump-dom", page],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert asked == [f"/{name}.html"]
        print_page = [*base, f"--print-to-pdf={printed}", page]
        subprocess.run(print_page, check=True, capture_output=True, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    assert "CONSOLE" not in done.stderr
    assert Reader(done.stdout).report == json.loads((pages / f"{name}.json").read_text())
    events = json.loads(log.read_text())["events"]
    urls = {event.get("params", {}).get("url", "") for event in events}
    assert page in urls
    known = (origin, "google.com", "googleapis.com", "gvt1.com")  # the browser's own services
    others = [url for url in urls if url.startswith(("http", "ws"))]
    assert [url for url in others if not any(name in url for name in known)] == []
    assert printed.read_bytes().startswith(b"%PDF")
