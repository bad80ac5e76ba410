"""Builds the pages as a website in `build/docs/site`: run `python -m docs.site`, or `make docs`.

The pages are written for a reader of the repository. A copy is built, in which links to files that
are no pages lead to the repository at `SITE_REPOSITORY` (such as https://host/name/blob/main), or
are plain text without one, and the words behind the languages of code blocks are taken away.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from docs.site_check import faults_of

DOCS: Final = Path(__file__).parent
ROOT: Final = DOCS.parent

_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_ROW = re.compile(r"^\| \[([^\]]+)\]\(([^)]+)\) \|", re.MULTILINE)
_WORDS = [
    (re.compile(r"^```(\w+) (?:run|pytest)$", re.MULTILINE), r"```\1"),
    (re.compile(r"^```text output$", re.MULTILINE), '```text title="It prints"'),
]


class Section(NamedTuple):
    """What the navigation shows under one title; the first one has none."""

    title: str
    entries: list[tuple[str, str]]


def sections() -> list[Section]:
    """Return the tables of `index.md`: titles and paths of pages, below their headings."""
    found: list[Section] = []
    for text in re.split(r"^## ", (DOCS / "index.md").read_text("utf-8"), flags=re.MULTILINE):
        title = "" if text.startswith("# ") else text.splitlines()[0]
        found.append(Section(title, _ROW.findall(text)))
    return found


def records(folder: str) -> list[tuple[str, str]]:
    """Return title and path of each numbered page of a folder."""
    return [
        (path.read_text("utf-8").splitlines()[0].removeprefix("# "), f"{folder}/{path.name}")
        for path in sorted((DOCS / folder).glob("[0-9]*.md"))
    ]


def navigation() -> list[object]:
    """Return the navigation: the index, then its tables; decisions stand below their list."""
    shown: list[object] = [{"All pages": "index.md"}]
    for title, entries in sections():
        below = [
            {name: path if name != "Decisions" else [path, *map(_entry, records("decisions"))]}
            for name, path in entries
        ]
        shown.extend([{title: below}] if title else below)
    return shown


def _entry(named: tuple[str, str]) -> dict[str, str]:
    return {named[0]: named[1]}


def settings() -> str:
    """Return the settings of the builder."""
    return (
        (DOCS / "site.toml")
        .read_text("utf-8")
        .replace("[project]\n", f"[project]\nnav = {_toml(navigation())}\n", 1)
    )


def _toml(value: object) -> str:
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def for_the_site(page: Path, repository: str) -> str:
    """Return the text of a page as the site shows it."""

    def link(match: re.Match[str]) -> str:
        text, address = match.groups()
        path = address.partition("#")[0]
        target = (page.parent / path).resolve()
        if "://" in address or not path or target.is_relative_to(DOCS):
            return match[0]
        named = target.relative_to(ROOT).as_posix()
        return f"[{text}]({repository.rstrip('/')}/{named})" if repository else text

    pieces, position = [], 0
    text = page.read_text("utf-8")
    for fence in _FENCE.finditer(text):
        pieces.append(_LINK.sub(link, text[position : fence.start()]))
        block = fence[0]
        for pattern, replacement in _WORDS:
            block = pattern.sub(replacement, block)
        pieces.append(block)
        position = fence.end()
    pieces.append(_LINK.sub(link, text[position:]))
    return "".join(pieces)


def stage(folder: Path, repository: str) -> None:
    """Write into `folder` what the builder reads."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in sorted(DOCS.rglob("*")):
        copy = folder / "pages" / path.relative_to(DOCS)
        if path.suffix == ".md":
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(for_the_site(path, repository), "utf-8")
        elif path.suffix in (".svg", ".png"):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    (folder / "zensical.toml").write_text(settings(), "utf-8")


def build(folder: Path, repository: str = "") -> list[str]:
    """Build the site into `folder/site`; return what is wrong with it."""
    stage(folder, repository)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        return [_COLOR.sub("", f"{done.stdout}{done.stderr}")]
    return faults_of(folder / "site")


def main(arguments: Sequence[str]) -> int:
    """Build into the named folder, or `build/docs`; return the exit code."""
    folder = Path(arguments[0]) if arguments else ROOT / "build" / "docs"
    if faults := build(folder.resolve(), os.environ.get("SITE_REPOSITORY", "")):
        sys.stderr.write("\n".join([*faults, ""]))
        return 1
    sys.stdout.write(f"{folder / 'site' / 'index.html'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
