"""A list of statements as one batch of D1, which is refused inside the database."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from perdure.errors import UsageError
from perdure.store.sql.d1.binding import rows_of
from perdure.store.sql.database import Dialect, Refused, Row, Statement, load_statements
from perdure.store.sql.sqlite_dialect import bound_now, later, rows

Rows = list[list[Row]]
Sent = tuple[str, tuple[str | None, ...]]
"""A statement and its parameters, as they are sent."""

_OWN_NOW: Final = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
_PARAMETER: Final = re.compile(r"\?(\d+)")
# There is no statement that raises an error by itself; a path that is none does, and is quoted.
_REFUSE: Final = "json_extract('{{}}', 'perdure_refused_{}')"
_REFUSED: Final = re.compile(r"perdure_refused_(\d+)")


class Prepared(NamedTuple):
    """A statement as it is sent, and which of its values go along: those that it names."""

    sql: str
    places: Sequence[int]


@cache
def d1_statements(*, own_clock: bool) -> Mapping[str, Prepared]:
    """Return every statement by name; a Worker makes a store for each request.

    With `own_clock`, the store's time is one more value behind those of the statement; else it is
    the database's.
    """
    now = bound_now if own_clock else _own_now
    texts = load_statements(Dialect(now=now, later=later, rows=rows))
    return {name: _prepared(text.sql) for name, text in texts.items()}


def _own_now(_number: int) -> str:
    return _OWN_NOW


def _prepared(sql: str) -> Prepared:
    # As many values as there are parameters have to be bound, so one that is not used may not be.
    numbers = sorted({int(number) for number in _PARAMETER.findall(sql)})
    renumbered = {number: index for index, number in enumerate(numbers, 1)}
    sent = _PARAMETER.sub(lambda match: f"?{renumbered[int(match[1])]}", sql)
    return Prepared(sent, [number - 1 for number in numbers])


class Batch(NamedTuple):
    """What is sent for a list, and where in it the list's own statements stand."""

    sent: list[Sent]
    places: list[int]


def render(
    texts: Mapping[str, Prepared], statements: Sequence[Statement], now: str | None
) -> Batch:
    """Return the batch of a list, with `now` as the store's time if that is not the database's.

    Behind a required statement stands one that fails, and so undoes all, unless the first has
    found or written a row: a fence that finds nothing is no failure by itself.
    """
    batch = Batch([], [])
    for index, statement in enumerate(statements):
        text = texts[statement.name]
        known = statement.values if now is None else (*statement.values, now)
        values = tuple(_bound(known[place]) for place in text.places)
        batch.places.append(len(batch.sent))
        batch.sent.append((text.sql, values))
        if statement.required:
            batch.sent.append(_guard(text.sql, values, index))
    return batch


def _guard(sql: str, values: tuple[str | None, ...], index: int) -> Sent:
    refuse = _REFUSE.format(index)
    if sql.startswith("SELECT"):
        return f"SELECT CASE WHEN NOT EXISTS ({sql}) THEN {refuse} END AS held", values
    return f"SELECT CASE WHEN changes() = 0 THEN {refuse} END AS held", ()


def _bound(value: str | int | float | None) -> str | None:
    """Return a value as text: D1 would bind a number as REAL, and its HTTP API knows only text."""
    if value is None:
        return None
    text = str(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"a text holds a lone surrogate: {text!r:.60}") from error
    return text


def rows_of_list(statements: Sequence[Statement], batch: Batch, results: Sequence[Any]) -> Rows:
    """Return the rows of each statement of a list. Raises Refused.

    That is for batches that an older service did not run as one transaction, too.
    """
    found = [rows_of(results[place]) for place in batch.places]
    for index, statement in enumerate(statements):
        if statement.required and not found[index]:
            raise Refused(index)
    return found


def refused_index(error: BaseException) -> int | None:
    """Return the place of the required statement that found no row; None for other errors."""
    match = _REFUSED.search(str(error))
    return int(match[1]) if match else None
