"""A JupyterLab of its own on copies of the notebooks, and a page of a headless Chromium to look at it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SHOTS = "MLFFN_SCREENSHOTS"  # a folder for the screenshots; the test's own by default
SECONDS = 300  # for anything that runs a network; most of it is never used
_SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell stays in the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Notebook:
    """A notebook in the browser, all of its cells run."""

    page: Page
    shot: Callable[[str], None]
    faults: list[str] = field(default_factory=list)
    """Errors of the page's own scripts."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium of the system, or Playwright's own."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with api.sync_playwright() as playwright:
        found = (shutil.which(n) for n in ("chromium", "chromium-browser", "google-chrome", "chrome"))
        own = playwright.chromium.executable_path
        path = next(filter(None, found), own if os.path.exists(own) else None)
        if path is None:
            pytest.skip("no Chromium: install the system's chromium, or run `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Start JupyterLab with settings of its own; gives its folder, and its address with a place for the file."""
    home = tmp_path_factory.mktemp("jupyter")
    for name, values in _SETTINGS.items():
        path = home / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    folder = home / "notebooks"
    folder.mkdir()
    places = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    environment = os.environ | {f"JUPYTER_{key}": str(home / value) for key, value in places.items()}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    environment |= {
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "MLFFN_MODE": "small",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("MLFFN_FIGURES", None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder,
        "IdentityProvider.token": token,
        "LabApp.news_url": "",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{key}={value}" for key, value in options.items()]
    log = home / "lab.log"
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=folder) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/api/status?token={token}", server, log)
            yield folder, f"{address}/lab/tree/{{}}?reset&token={token}"
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"JupyterLab does not answer:\n{log.read_text()[-2000:]}")


def show_all(
    browser: Browser, lab: tuple[Path, str], notebook: nbformat.NotebookNode, name: str, shots: Path
) -> Iterator[Notebook]:
    """Open a copy of a notebook without its outputs, run all of its cells, and wait until they are done."""
    folder, address = lab
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / name)
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.set_default_timeout(1000 * SECONDS)
    opened = Notebook(page, lambda title: _shoot(page, shots, title))
    page.on("pageerror", lambda error: opened.faults.append(str(error)))
    try:
        page.goto(address.format(name))
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        _run_all(page)
        cells = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in notebook.cells)
        page.wait_for_function(
            r"""cells => {
                const prompts = [...document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputPrompt")];
                const done = prompts.filter(p => /^\[\d+\]:/.test(p.textContent)).length;
                return done >= cells || document.querySelector('[data-mime-type="application/vnd.jupyter.error"]');
            }""",
            arg=cells,
        )
        errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
        if errors:
            opened.shot("error")
        assert errors == []
        yield opened
    finally:
        page.close()


def _run_all(page: Page) -> None:
    """Choose Run, Run All Cells, again if the kernel was not connected yet and nothing started."""
    from playwright.sync_api import TimeoutError as Timeout

    until = time.monotonic() + SECONDS
    while True:
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
        try:
            page.locator(".jp-Notebook .jp-InputPrompt", has_text=re.compile(r"^\[[*\d]")).first.wait_for(timeout=5000)
            return
        except Timeout:
            if time.monotonic() > until:
                raise


def _shoot(page: Page, folder: Path, title: str) -> None:
    folder = Path(os.environ.get(SHOTS, folder))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{title}.png")
