"""Looks at a built site: every link leads somewhere, and no page loads anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

LOADED: Final = {"audio", "embed", "iframe", "img", "link", "object", "script", "source", "video"}
"""Elements whose address a browser fetches by itself."""

NO_SOURCE: Final = {"canonical", "next", "prev"}
"""Kinds of `link` that only name an address."""


class BuiltPage(HTMLParser):
    """What a page links to and loads, its anchors, and paragraphs that look like Markdown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.leftovers: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def has(self, fragment: str) -> bool:
        """Tell whether a heading or another element has this anchor."""
        return unquote(fragment) in self.anchors

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        values = {name: value or "" for name, value in attrs}
        if name := values.get("id") or (tag == "a" and values.get("name")):
            self.anchors.add(name)
        address = values.get("href") or values.get("src") or values.get("data") or ""
        if address and tag in LOADED and values.get("rel") not in NO_SOURCE:
            self.loaded.append(address)
        elif address:
            self.links.append(address)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            continue

    def handle_data(self, data: str) -> None:
        if {"pre", "code", "script", "style"}.isdisjoint(self._open) and "p" in self._open:
            lines = data.splitlines()
            self.leftovers.extend(line for line in lines if line.startswith(("- ", "```", "| ")))


def faults_of(site: Path) -> list[str]:
    """Return what is wrong with the pages of a site; nothing if all is well."""
    pages = {path: BuiltPage(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    if site / "index.html" not in pages:
        return [f"no page in {site}"]
    return [
        f"{path.relative_to(site)}: {fault}"
        for path, page in pages.items()
        if path.name != "404.html"  # Its links begin at the root of whichever host it is put on.
        for fault in _faults(path, page, pages)
    ]


def _faults(path: Path, page: BuiltPage, pages: dict[Path, BuiltPage]) -> Iterator[str]:
    for line in page.leftovers:
        yield f"Markdown that was not understood: {line!r}"
    for address in page.loaded:
        if _is_elsewhere(address):
            yield f"loads {address}"
    for address in page.links + page.loaded:
        parts = urlsplit(address)
        if _is_elsewhere(address) or parts.scheme:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if target.is_dir():
            target /= "index.html"
        if not target.is_file():
            yield f"nothing is at {address}"
        elif parts.fragment and target in pages and not pages[target].has(parts.fragment):
            yield f"no heading is at {address}"


def _is_elsewhere(address: str) -> bool:
    return bool(urlsplit(address).netloc)
