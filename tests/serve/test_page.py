"""The page in a real browser: a picture is dropped, its answer and the metrics are shown."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svit_deploy.bundle import Bundle
from tests.serve.needs import needs_kserve
from tests.serve.serving import Server, free_port, httpx

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    needs_kserve,
    pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium"),
]
SHOT = os.environ.get("SVIT_DEPLOY_SCREENSHOT")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[int]:
    """A headless browser's port for Chrome's DevTools protocol."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={tmp_path / 'profile'}", f"--remote-debugging-port={port}"),
            *("--window-size=1100,1000", "about:blank"),
        ],
        stderr=subprocess.DEVNULL,
    )
    yield port
    process.terminate()
    process.wait(30)


class Page:
    """One tab: commands, and what the browser reports meanwhile."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.number = socket, 0
        self.events: list[dict[str, Any]] = []
        self.tables: dict[str, list[list[str]]] = {}

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        await self.socket.send(
            json.dumps({"id": self.number, "method": method, "params": parameters})
        )
        while True:
            message = json.loads(await self.socket.recv())
            if message.get("id") == self.number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    async def value(self, expression: str) -> Any:
        """What JavaScript says."""
        told = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return told["result"].get("value")

    async def until(self, expression: str) -> None:
        deadline = time.monotonic() + 60
        while not await self.value(expression):
            assert time.monotonic() < deadline, await self.value("document.body.innerText")
            await asyncio.sleep(0.1)

    def told(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") == method]


def test_a_picture_gets_its_answer_and_the_metrics_run(
    digits_bundle: Bundle, digit_pictures: Path, tmp_path: Path, browser: int
) -> None:
    websockets = pytest.importorskip("websockets", reason="needs websockets, which kserve brings")
    picture = sorted(digit_pictures.rglob("*.png"))[0]

    async def visit(server: Server) -> Page:
        tabs = await tabs_of(browser)
        async with websockets.connect(tabs[0]["webSocketDebuggerUrl"], max_size=2**26) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
                await page.call(f"{domain}.enable")
            await page.call("Page.navigate", url=f"{server.url}/")
            await page.until("document.querySelectorAll('#gates tr').length === 4")
            root = (await page.call("DOM.getDocument"))["root"]["nodeId"]
            found = await page.call("DOM.querySelector", nodeId=root, selector="#file")
            await page.call("DOM.setFileInputFiles", nodeId=found["nodeId"], files=[str(picture)])
            await page.until("document.querySelector('#drawing').naturalWidth > 0")
            await page.until("document.querySelector('#live').innerText.includes('answered\\t1')")
            for name in ("found", "kept", "times", "gates"):
                rows = f"[...document.querySelectorAll('#{name} tr')]"
                cells = f"{rows}.map(row => [...row.cells].map(cell => cell.innerText))"
                page.tables[name] = await page.value(cells)
            assert await page.value("document.querySelector('#error').innerText") == ""
            shot = await page.call("Page.captureScreenshot", captureBeyondViewport=True)
            (tmp_path / "page.png").write_bytes(base64.b64decode(shot["data"]))
            return page

    with Server(tmp_path / "log", f"digits={digits_bundle.path}", "--threads", 1) as server:
        page = asyncio.run(visit(server))
        kept = [
            int(server.metric("svit_kept_tokens_total", model_name="digits", gate=gate))
            for gate in range(4)
        ]
    tables = page.tables
    assert len(tables["found"]) == 5 and tables["found"][0][0].startswith("class ")
    assert [row[2] for row in tables["kept"]] == [f"{count} of 65" for count in kept]
    assert tables["times"][1][0] == "engine, 1 together"
    assert [row[2] for row in tables["gates"]] == [f"keeps {k / 0.65:.1f} %" for k in kept]
    assert not page.told("Runtime.exceptionThrown") and not page.told("Log.entryAdded")
    asked = [one["request"]["url"] for one in page.told("Network.requestWillBeSent")]
    assert any(url.endswith("/infer") for url in asked)
    assert all(url.startswith((server.url, "blob:", "data:")) for url in asked)
    if SHOT:
        shutil.copy(tmp_path / "page.png", SHOT)


async def tabs_of(port: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 60
    async with httpx.AsyncClient() as client:
        while True:
            try:
                answer = await client.get(f"http://127.0.0.1:{port}/json/list")
                if tabs := [one for one in answer.json() if one["type"] == "page"]:
                    return tabs
            except httpx.TransportError:
                assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
