"""What a full measurement has found so far, on the disk: the next one goes on behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.counts import Counted
from bench.figure import Alone
from bench.page import ROOT, Results, of_plain, to_plain
from bench.suite import Compared

UNFINISHED: Final = ROOT / ".cache" / "bench-unfinished.json"


class Progress:
    """The figures so far, by the names of what was measured.

    With a `path` they are written there after each one, and found there by the next process that
    measures the same code in the same way; older ones are dropped.
    """

    def __init__(self, results: Results, way: Mapping[str, Any], path: Path | None = None) -> None:
        self.results = results
        self.done: list[str] = []
        self._way = {**way, "machine": results.machine, "code": _code()}
        self._path = path
        if path is not None and path.exists():
            self._go_on(json.loads(path.read_text()))

    def add(
        self,
        name: str,
        *,
        compared: Sequence[Compared] = (),
        counted: Sequence[Counted] = (),
        alone: Sequence[Alone] = (),
    ) -> None:
        """Keep what was found under a name."""
        known = self.results
        self.done.append(name)
        self.results = known._replace(
            compared=[*known.compared, *compared],
            counted=[*known.counted, *counted],
            alone=[*known.alone, *alone],
        )
        if self._path is not None:
            self._path.parent.mkdir(exist_ok=True)
            plain = {"way": self._way, "done": self.done, "results": to_plain(self.results)}
            beside = self._path.with_suffix(".new")
            beside.write_text(json.dumps(plain, ensure_ascii=False))
            beside.replace(self._path)

    def finish(self) -> None:
        """Forget what is over."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _go_on(self, plain: Mapping[str, Any]) -> None:
        if plain["way"] != self._way:
            print("The code or the way to measure it has changed: begun anew", file=sys.stderr)
            return
        self.done = list(plain["done"])
        self.results = of_plain(plain["results"])._replace(loads=self.results.loads)
        print(f"Going on behind {len(self.done)} that were measured", file=sys.stderr)


def _code() -> str:
    """Return what tells one state of the code from another, without Git nothing."""
    command = ["git", "rev-parse", "HEAD:src", "HEAD:bench"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return asked.stdout
