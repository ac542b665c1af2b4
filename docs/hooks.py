"""What mkdocs.yml cannot say: pages at their places in the repository, the series in the navigation, and every link.

The site's files keep their paths in the repository, so a relative link works in the sources, on a code host, and in the
site. Notebooks come as HTML, past the checks for Markdown: their links are brought to pages here. When all is written,
every page is read again: what leads nowhere, or would load something from a network, is a warning, and the build fails.
"""

from __future__ import annotations

import html
import logging
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "notebooks"))

from series import Entry, load_series  # noqa: E402  # the series lies beside its notebooks

log = logging.getLogger("mkdocs.hooks")
PAGES = ("README.md", "notebooks/glossary.md", "data/README.md", "data/results/README.md", "docs/**/*.md")
ASSETS = ("docs/assets/**/*.js", "docs/assets/**/*.css", "docs/assets/**/*.woff2")
SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)
ROLE = re.compile(r":(?:class|meth|func|attr|data|mod|exc):<code>(~?)([\w.]+)</code>")
"""A reference as docstrings write it, once it is HTML."""
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src", "video": "src"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the notebooks, in the order of the series, before what else stands under Notebooks."""
    (part,) = (part for part in config.nav or [] if "Notebooks" in part)
    part["Notebooks"] = [{entry.name: f"notebooks/{entry.file}"} for entry in series()] + part["Notebooks"]
    return config


def series() -> list[Entry]:
    """Return the notebooks of the series that are there."""
    return [entry for entry in load_series(ROOT) if (ROOT / "notebooks" / entry.file).is_file()]


@event_priority(100)  # before the plugin that takes the notebooks over
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take pages, notebooks, the pictures that pages show, and assets from their places in the repository."""
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern)) if "vendor" not in path.parts]
    shown = {name for page in pages for name in re.findall(r"figures/([\w.]+\.png)", page.read_text("utf-8"))}
    found = [
        *pages,
        *(ROOT / "notebooks" / entry.file for entry in series()),
        *(ROOT / "figures" / name for name in sorted(shown) if (ROOT / "figures" / name).is_file()),
        *(path for pattern in ASSETS for path in sorted(ROOT.glob(pattern))),
    ]
    own = (
        File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls) for path in found
    )
    theme = (file for file in files if file.src_dir != config.docs_dir)
    return Files([*theme, *own])


def on_page_content(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links of a notebook's links, or of a docstring's references."""
    return with_links(text, page, files) if page.file.src_uri.endswith(".ipynb") else ROLE.sub(reference, text)


def reference(match: re.Match[str]) -> str:
    """Return a docstring's reference as a name, which leads to its place if there is one."""
    whole = match[2].removeprefix(".")
    code = f"<code>{whole.rpartition('.')[2] if match[1] else whole}</code>"
    return f'<autoref identifier="{whole}" optional>{code}</autoref>' if whole.startswith("mlffn_lite.") else code


def with_links(text: str, page: Page, files: Files) -> str:
    """Bring a notebook's links to pages, and leave out its scripts: formulas are set by the site's own."""

    def link(match: re.Match[str]) -> str:
        path, _, anchor = html.unescape(match[1]).partition("#")
        if not path or urlsplit(path).scheme:
            return match[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), unquote(path)))
        if (file := files.get_file_from_path(wanted)) is None:
            log.warning("%s: the link to %s leads to nothing in the site", page.file.src_uri, path)
            return match[0]
        anchor = anchor.lower() if wanted.endswith(".ipynb") else anchor  # as the site names its headings
        return f'href="{html.escape(file.url_relative_to(page.file) + (f"#{anchor}" if anchor else ""))}"'

    return re.sub(r'href="([^"]*)"', link, SCRIPT.sub("", text))


def on_post_build(config: MkDocsConfig) -> None:
    """Warn of what leads nowhere and of what would be loaded from a network."""
    for fault in faults(Path(config.site_dir)):
        log.warning(fault)


# --- the pages as they were written ----------------------------------------------------------------------------------


class Links(HTMLParser):
    """What a page can be entered at, leads to, and loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag says."""
        values: Mapping[str, Any] = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := values.get(key))}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if (
            tag in LOADED
            and (address := values.get(LOADED[tag]))
            and values.get("rel") not in ("canonical", "prev", "next")
        ):
            self.loaded.append(address)


def faults(site: Path) -> Iterator[str]:
    """Yield a line for everything in a built site that leads nowhere or needs a network."""
    pages = {path.relative_to(site).as_posix(): Links(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    for name, page in pages.items():
        for address in sorted({*page.links, *page.loaded}):
            parts = urlsplit(address)
            if parts.scheme == "data" or ((parts.scheme or parts.netloc) and address not in page.loaded):
                continue
            if parts.scheme or parts.netloc:
                yield f"{name}: loads {address} from a network"
                continue
            base = "" if name == "404.html" else posixpath.dirname(name)  # which is shown for any address
            there = unquote(parts.path).lstrip("/") if name == "404.html" else unquote(parts.path)
            target = posixpath.normpath(posixpath.join(base, there)) if there else name
            if not (site / target).exists():
                yield f"{name}: {address} leads nowhere"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{name}: {address} leads to no such place on {target}"
    for path in sorted({*site.rglob("*.css"), *site.rglob("*.html")}):  # notebooks bring their own style
        for match in re.finditer(r"(?:url\(|@import )[\"']?((?:https?:)?//[^)\s\"']+)", path.read_text("utf-8")):
            yield f"{path.relative_to(site).as_posix()}: loads {match[1]} from a network"
