"""A JupyterLab of its own on copies of the notebooks, and pages of a headless Chromium to look at them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SHOTS = "MLFFN_SCREENSHOTS"  # a folder for screenshots; without it none are made
SECONDS = 300  # to wait for anything on a busy machine
_SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell stays in the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
_KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync"]  # fmt: skip

# JupyterLab's own promises say when a kernel is there and when all cells are done: nothing is guessed from the page.
_OPEN = "window.jupyterapp && jupyterapp.shell.currentWidget && jupyterapp.shell.currentWidget.sessionContext"
_READY = """async () => {
    const panel = jupyterapp.shell.currentWidget;
    await Promise.all([jupyterapp.restored, panel.context.ready, panel.sessionContext.ready]);
    return true;
}"""
_RUN = """() => {
    jupyterapp.commands.execute("notebook:run-all-cells").then(() => { window.finished = true; });
}"""


@dataclass
class Notebook:
    """A notebook in the browser, its cells running."""

    page: Page
    faults: list[str] = field(default_factory=list)
    """Errors of the page's own scripts."""

    def shoot(self, title: str) -> None:
        """Write a screenshot, if wanted."""
        if folder := os.environ.get(SHOTS):
            self.page.screenshot(path=Path(folder) / f"{title}.png")

    def finish(self) -> None:
        """Wait until all cells are done; fails if one raised."""
        self.page.wait_for_function("window.finished")
        errors = self.page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
        assert errors == []


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium of the system, or Playwright's own."""
    from playwright.sync_api import Error, expect, sync_playwright

    expect.set_options(timeout=1000 * SECONDS)
    with sync_playwright() as playwright:
        found = (shutil.which(n) for n in ("chromium", "google-chrome", "chrome", "chromium-browser"))
        own = playwright.chromium.executable_path
        path = next(filter(None, found), own if os.path.exists(own) else None)
        if path is None:
            pytest.skip("no Chromium: install your system's chromium, or run `playwright install chromium`")
        try:
            browser = playwright.chromium.launch(executable_path=path, args=_FLAGS, timeout=1000 * SECONDS)
        except Error as error:
            pytest.skip(f"{path} does not start: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Start JupyterLab with settings of its own; gives its folder, and its address, to be completed."""
    home = tmp_path_factory.mktemp("jupyter")
    for name, values in _SETTINGS.items():
        path = home / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    folder = home / "notebooks"
    shutil.copytree(NOTEBOOKS / "course", folder / "course", ignore=shutil.ignore_patterns("__pycache__"))
    kinds = ("JUPYTER_CONFIG", "JUPYTER_DATA", "JUPYTER_RUNTIME", "JUPYTERLAB_WORKSPACES")
    places = {f"{kind}_DIR": str(home / kind.lower()) for kind in kinds}
    places["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    environment = os.environ | places | {"MLFFN_MODE": "small", "OMP_NUM_THREADS": "1"}
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
        "LabApp.expose_app_in_browser": True,
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{key}={value}" for key, value in options.items()]
    log = home / "lab.log"
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=folder) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/api/status?token={token}", server, log)
            yield folder, f"{address}/lab/workspaces/{{}}/tree/{{}}?reset&token={token}"
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


@pytest.fixture(scope="session")
def run_notebook(browser: Browser, lab: tuple[Path, str]) -> Callable[..., Notebook]:
    """Return a function that opens a notebook without outputs, and starts all of its cells.

    It takes the number of one of the series, of which it opens a copy; or a name and the sources of cells.
    """
    folder, address = lab

    def start(number: str, cells: Sequence[str] = ()) -> Notebook:
        if cells:
            made = [nbformat.v4.new_code_cell(source) for source in cells]
            notebook = nbformat.v4.new_notebook(cells=made, metadata=_KERNEL)  # without, JupyterLab asks and waits
            name = f"{number}.ipynb"
        else:
            file = next(NOTEBOOKS.glob(f"{number}_*.ipynb"))
            notebook, name = nbformat.read(file, as_version=4), file.name
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, folder / name)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(1000 * SECONDS)
        opened = Notebook(page)
        page.on("pageerror", lambda error: opened.faults.append(str(error)))
        page.goto(address.format(number, name))
        page.wait_for_function(_OPEN)
        page.wait_for_function(_READY)
        page.evaluate(_RUN)
        return opened

    return start
