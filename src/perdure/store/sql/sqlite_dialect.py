"""How SQLite writes what databases write differently, also where it is somebody's service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from perdure.store.sql.database import Dialect


def rows(source: str, columns: Sequence[tuple[str, str]]) -> str:
    picked = [
        f"CAST(json_extract(value, '$[{index}]') AS {kind}) AS {name}"
        for index, (name, kind) in enumerate(columns)
    ]
    return f"(SELECT {', '.join(picked)} FROM json_each({source}))"


def bound_now(number: int) -> str:
    # SQLite has no clock of its own: its 'now' is the machine's, as is that of whoever binds it.
    return f"?{number}"


def later(now: str, length: str) -> str:
    return f"strftime('%Y-%m-%dT%H:%M:%fZ', {now}, ({length} / 1000.0) || ' seconds')"


SQLITE: Final = Dialect(now=bound_now, later=later, rows=rows)
