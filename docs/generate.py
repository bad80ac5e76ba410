"""Writes the pages that say what the code says: run `python -m docs.generate` after a change.

With `--check` it writes nothing, and ends with 1 if a page is not up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from docs.api_page import api_page
from docs.cli_page import cli_page
from docs.code_pages import errors_page, limits_page, transitions_page

DOCS: Final = Path(__file__).parent

PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "reference/api.md": api_page,
    "reference/cli.md": cli_page,
    "reference/errors.md": errors_page,
    "reference/limits.md": limits_page,
    "internals/transitions.md": transitions_page,
}


def stale_pages() -> list[str]:
    """Return the pages that do not say what the code says."""
    return [
        name
        for name, make in PAGES.items()
        if not (DOCS / name).is_file() or (DOCS / name).read_text("utf-8") != make()
    ]


def main(arguments: Sequence[str]) -> int:
    """Write or check the pages; return the exit code."""
    stale = stale_pages()
    if "--check" in arguments:
        if stale:
            sys.stderr.write(f"not up to date: {', '.join(stale)}\n")
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).write_text(PAGES[name](), "utf-8")
    sys.stdout.write(f"written: {', '.join(stale) or 'nothing, all was up to date'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
