"""The service's page in a browser: a photograph is dropped, and its heatmap and verdict appear."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

import uvicorn

from mlffn_lite.config import Config
from mlffn_lite.deploy.serve import create_app
from mlffn_lite.detector import AnomalyDetector

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest_plugins = ["jupyter_page"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def address(parts: Path) -> Iterator[str]:
    """Where a service with a token listens."""
    config = Config.preset("tiny", train={"device": "cpu"}).replace(method="density")
    app = create_app(AnomalyDetector(config).fit(parts, progress=False), token="word")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(30)


def test_a_photograph_is_judged(browser: Browser, address: str, parts: Path, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.goto(address)
    page.locator("#rule", has_text="threshold").wait_for()
    page.set_input_files("#file", parts / "test/scratch/000.png")
    page.wait_for_selector("figure.ERROR")  # without the token
    assert "token is missing or wrong" in page.inner_text("figure.ERROR")
    page.fill("#token", "word")
    (tmp_path / "bad.png").write_bytes(b"no image")
    photos = [parts / "test/scratch/000.png", parts / "test/good/000.png", tmp_path / "bad.png"]
    page.set_input_files("#file", photos)
    page.locator("figure", has_text="bad.png: the body").wait_for()  # the last
    shown = page.locator("figure").evaluate_all("all => all.map((x) => [x.className, x.innerText])")
    assert [kind for kind, _ in shown] == ["ERROR", "OK", "NOK", "ERROR"]  # the newest first
    assert "not an image" in shown[0][1]
    assert "score" in shown[2][1]
    assert page.locator("figure.NOK img").evaluate("x => x.naturalWidth") == 64
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert faults == []
    page.close()


def test_a_photograph_can_be_dropped(browser: Browser, address: str, parts: Path) -> None:
    page = browser.new_page()
    page.goto(address)
    page.fill("#token", "word")
    data = list((parts / "test/scratch/001.png").read_bytes())
    page.evaluate(
        """data => {
          const files = new DataTransfer();
          files.items.add(new File([new Uint8Array(data)], "dropped.png", { type: "image/png" }));
          document.querySelector("#drop").dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true }));
        }""",
        data,
    )
    page.wait_for_selector("figure.NOK img")
    assert "dropped.png" in page.inner_text("figure.NOK")
    page.close()
