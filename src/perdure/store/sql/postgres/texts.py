"""What is sent for a list of statements: prepared texts, and one for all of a hot list."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from perdure.store.sql.database import Statement, Value, load_statements, read_blocks
from perdure.store.sql.postgres.dialect import postgres_dialect, qualified
from perdure.store.sql.postgres.fused import Rows as Rows
from perdure.store.sql.postgres.fused import fused_blocks, fusion_of
from perdure.store.sql.postgres.liveness import DEAD
from perdure.store.sql.postgres.pipe import Sent

_EXPECTED: Final = (
    "find_or_create_run",
    "take_run!",
    "close_lost_attempt",
    "open_attempt",
    "read_run",
    "read_steps",
    "frames_end",
    "fenced_insert_step",
    "fenced_end_run",
)
"""What opens a run, does a new step of it and ends it, by the names under which it is prepared."""
_PARAMETER: Final = re.compile(r"(CAST\()?\?(\d+)")


class Prepared(NamedTuple):
    """A statement as it is sent, and which of its values go along: those that it names.

    `formats`: texts go by their length, so that the server sees, and refuses, a zero in one.

    `checked`, by a name of its own, refuses the whole list where it finds no row. It is told the
    place of the statement in its list, as one more value.
    """

    sql: str
    places: Sequence[int]
    name: bytes
    plain: bytes
    checked_name: bytes
    checked: bytes
    formats: Sequence[int]

    def encoded(self, known: Sequence[Value]) -> list[bytes | None]:
        """Return the values that it names, as they travel."""
        return [
            value.encode()
            if type(value := known[at]) is str
            else None
            if value is None
            else str(value).encode()
            for at in self.places
        ]


class PostgresStatements(dict[str, Prepared]):
    """Every statement by name as it is sent, each made when it is first asked for.

    With `own_clock`, the store's time is one more value behind those of the statement.
    """

    def __init__(self, schema: str, *, own_clock: bool) -> None:
        super().__init__()
        blocks = read_blocks()
        blocks.update(fused_blocks(blocks, schema))
        blocks["dead_holders"] = DEAD
        self._texts = load_statements(postgres_dialect(own_clock=own_clock), blocks)
        self._schema = schema

    def __missing__(self, name: str) -> Prepared:
        # To make all of them takes a new process longer than to connect.
        made = self[name] = _prepared(name, self._texts[name].sql, self._schema)
        return made

    def all(self) -> dict[str, Prepared]:
        return {name: self[name] for name in self._texts}


def _prepared(name: str, sql: str, schema: str) -> Prepared:
    # The server has to know the type of every parameter, so one that is not used may not be there.
    used = _PARAMETER.findall(sql)
    numbers = sorted({int(number) for _, number in used})
    renumbered = {number: index for index, number in enumerate(numbers, 1)}

    def parameter(match: re.Match[str]) -> str:
        # What is not cast to a number is text; numbers travel as text too.
        number = renumbered[int(match[2])]
        return f"CAST(${number}" if match[1] else f"${number}::text"

    sent = _PARAMETER.sub(parameter, qualified(sql.replace("AS INTEGER)", "AS BIGINT)"), schema))
    # The whole list is refused in the database, so that it travels in one piece with its commit.
    checked = (
        f"WITH q AS ({sent}) SELECT q.* FROM (SELECT count(*) AS n FROM q) AS c "
        "LEFT JOIN q ON true WHERE CASE WHEN c.n > 0 THEN true "
        f'ELSE "{schema}".perdure_refuse(${len(numbers) + 1}::integer) END'
    )
    casts = {int(number) for cast, number in used if cast}
    return Prepared(
        sql=sent,
        places=[number - 1 for number in numbers],
        name=name.encode(),
        plain=sent.encode(),
        checked_name=f"{name}!".encode(),
        checked=checked.encode(),
        formats=[int(number not in casts) for number in numbers],
    )


class Renderer:
    """Makes of a list of statements what is sent, with one moment for all of it."""

    def __init__(self, texts: Mapping[str, Prepared], now: Callable[[], str] | None) -> None:
        self._texts = texts
        self._now = now

    def expected(self) -> list[Sent]:
        """Return what a connection that writes will be asked for first, without values."""
        found: list[Sent] = []
        for name in _EXPECTED:
            text = self._texts[name.removesuffix("!")]
            checked = Sent(text.checked_name, text.checked)
            found.append(checked if name.endswith("!") else Sent(text.name, text.plain))
        return found

    def render(self, statements: Sequence[Statement], *, is_fused: bool = True) -> list[Sent]:
        """Return one statement for each, or one for all where that `is_fused`."""
        moment = () if self._now is None else (self._now(),)
        fusion = fusion_of(statements) if is_fused else None
        if fusion is not None:
            text = self._texts[fusion.text]
            values = text.encoded(fusion.values(statements) + moment)
            return [Sent(text.name, text.plain, values, text.formats)]
        sent: list[Sent] = []
        for index, (name, known, required, *_) in enumerate(statements):
            text = self._texts[name]
            values = text.encoded((*known, *moment) if moment else known)
            if required:
                values.append(b"%d" % index)
                formats = (*text.formats, 0)
                sent.append(Sent(text.checked_name, text.checked, values, formats))
            else:
                sent.append(Sent(text.name, text.plain, values, text.formats))
        return sent


def rows_of_each(statements: Sequence[Statement], rows: Rows) -> Rows | None:
    """Return the rows of each statement from those of what was sent. Raises Refused.

    None: it has to be sent as it stands, not as one statement, before anybody can tell.
    """
    if len(rows) == len(statements):
        return rows
    fusion = fusion_of(statements)
    assert fusion is not None
    (found,) = rows
    return fusion.split(statements, found[0] if found else None)
