"""A log of rows that other engines keep of a conversation: events of a run, in any RunStore."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, cast

from perdure.core.effects import monotonic_ms, new_token
from perdure.durable.erasing import erase_session, stop_for_good
from perdure.engines.log_runs import LogKind, LogRuns
from perdure.errors import RunNotFoundError
from perdure.store.protocol import RunStore

MOVED: Final = "moved"
"""The field of the entry behind which nothing comes: the log goes on in another run."""
PART_CHARACTERS: Final = 400_000
"""A row that is longer is stored in parts, since a value has its limit in every store."""
ROW_CHARACTERS: Final = 200_000
"""About so long is a row that is made when a log is written anew."""
USED_AGAIN_MS: Final = 24 * 60 * 60 * 1_000
"""So often a process notes that a log is in use, for `collect_garbage`."""

_TOKEN_KEY: Final = "log"

Entry = dict[str, Any]
Row = list[Entry]


class RowLog:
    """A log. Rows have numbers, and a number has one writer: `emit_event` settles races.

    It is a session of the store, named `<prefix>:<name>`. Its rows are events of one run until
    the log is written anew, into another run; then the last row of the old one says where it went.
    Keys begin with a token of the log: who still has one that was deleted meanwhile, and begun
    anew under the same name, leaves no row in the new one.
    `fold` is told every row in order, from the first, and `forget` that all of them are void.
    """

    def __init__(
        self,
        store: RunStore,
        kind: LogKind,
        name: str,
        *,
        owner_id: str | None,
        fold: Callable[[int, Row], None],
        forget: Callable[[], None],
    ) -> None:
        self.next = 1
        self.is_known = False
        """Whether the rows up to `next` have been read."""
        self.lock = asyncio.Lock()
        self._store = store
        self._runs = LogRuns(store, kind, name, owner_id)
        self._fold = fold
        self._forget = forget
        self._generation = 0
        self._token = ""
        self._used_ms: float | None = None

    @property
    def run_id(self) -> str:
        return self._runs.id_of(self._generation)

    async def catch_up(self) -> Mapping[int, Row]:
        """Read what others have written since; return the rows, all of them the first time.

        The lock must be held, as for `append` and `rewrite`.
        """
        if not self.is_known:
            return await self._open()
        rows: dict[int, Row] = {}
        while (row := await self._load(self.next)) is not None:
            if (moved := _moved_to(row)) is not None:
                self._generation = moved
                return await self._open()
            rows[self.next] = row
            self._take(row)
        return rows

    async def row(self, number: int) -> Row | None:
        """Return a row, or None: then the log was deleted or written anew, and must be opened."""
        row = await self._load(number)
        if row is None:
            self.drop()
        return row

    def drop(self) -> None:
        """Know nothing any more: who asks next reads the log from the beginning."""
        self._begin(0)

    async def append(self, make: Callable[[], Row | None]) -> None:
        """Write the row that `make` returns behind all that is there; None: there is nothing to do.

        It is asked again whenever somebody else's row came in between, and may refuse by raising.
        """
        if not self.is_known:
            await self._open()
        while (row := make()) is not None:
            payload, run, number = await self._payload(row), self.run_id, self.next
            try:
                is_ours, _ = await self._store.emit_event(run, _key(self._token, number), payload)
            except RunNotFoundError:
                await self._create()
                continue
            if is_ours:
                self._take(row)
                return
            await self.catch_up()

    async def note_use(self) -> None:
        """Have retention count the days from now, once a day and process; a new log is in use."""
        if not self.is_known:
            await self._open()
        now_ms, known_ms = monotonic_ms(), self._used_ms
        if known_ms is not None and now_ms - known_ms < USED_AGAIN_MS:
            return
        self._used_ms = now_ms
        if self.next > 1:
            await self._runs.begin(f"{self.run_id}#{self.next}", self.next)

    async def rewrite(self, kept: Callable[[Mapping[int, Row]], Iterable[Entry]]) -> None:
        """Replace the log by what `kept` returns of its rows; nothing of the rest stays.

        Nobody sees half of it: the old log holds until its last row says where the new one is. If
        nothing is kept, the log is deleted.
        """
        while True:
            self.drop()
            rows = await self._open()
            entries = list(kept(rows))
            if not entries:
                await self.delete()
                return
            stale = [run.run_id for run in await self._runs.all() if run.run_id != self.run_id]
            generation = await self._runs.begin_next()
            with suppress(RunNotFoundError):  # Somebody else was faster, and cleans up.
                if await self._rewritten(entries, generation):
                    break
            await self._runs.delete(self._runs.id_of(generation))
        # The old one at last: as long as it is there it says which one of the others holds.
        for run_id in (*stale, self.run_id):
            await self._runs.delete(run_id)
        self._begin(generation)

    async def _rewritten(self, entries: Sequence[Entry], generation: int) -> bool:
        """Write entries into a new run, and have the log end there; return whether it did."""
        seal, new = self.next, self._runs.id_of(generation)
        token = await self._token_of(new)
        for number, row in enumerate(in_rows(entries), start=seal + 1):
            payload = await self._payload(row, run=new)
            await self._store.emit_event(new, _key(token, number), payload)
        moved: Row = [{MOVED: generation}]
        is_ours, _ = await self._store.emit_event(self.run_id, _key(self._token, seal), moved)
        return is_ours

    async def delete(self) -> None:
        """Delete the log with all that belongs to it; one that is not there is no error."""
        self.drop()
        with suppress(RunNotFoundError):
            await erase_session(
                self._store,
                self._runs.session_id,
                owner_id=self._runs.owner_id,
                stop=partial(stop_for_good, self._store),
            )

    # Opening.

    def _begin(self, generation: int) -> None:
        self._generation = generation
        self.next, self.is_known = 1, False
        self._forget()

    async def _open(self) -> Mapping[int, Row]:
        """Read the whole log. Raises RunNotFoundError for one that belongs to somebody else."""
        self._begin(self._generation)
        while True:
            await self._runs.check_owner(self.run_id)
            rows = await self._read_all()
            if rows is None:
                generation = await self._runs.oldest()
                self._begin(generation or 0)
                if generation is None:
                    break
                continue
            moved = _moved_to(rows[max(rows)]) if rows else None
            if moved is None:
                for self.next in sorted(rows):
                    self._take(rows[self.next])
                break
            self._begin(moved)
        self.is_known = True
        return rows or {}

    async def _read_all(self) -> dict[int, Row] | None:
        try:
            details = await self._store.read_details(self.run_id)
        except RunNotFoundError:
            return None
        found = {event.key: event.payload for event in details.events}
        self._token = found.get(_TOKEN_KEY) or await self._token_of(self.run_id)
        rows: dict[int, Row] = {}
        for key, payload in found.items():
            token, _, number = key.partition(":")
            if token == self._token:
                rows[int(number)] = _whole(payload, found)
        return rows

    # Writing.

    def _take(self, row: Row) -> None:
        self._fold(self.next, row)
        self.next += 1

    async def _load(self, number: int) -> Row | None:
        event = await self._store.load_event(self.run_id, _key(self._token, number))
        if event is None:
            return None
        parts: dict[str, Any] = {}
        for key in _parts_of(event.payload):
            part = await self._store.load_event(self.run_id, key)
            if part is None:
                return None
            parts[key] = part.payload
        return _whole(event.payload, parts)

    async def _payload(self, row: Row, *, run: str | None = None) -> Any:
        """Return what is stored for a row; of a long one the parts are stored before it."""
        text = json.dumps(row, separators=(",", ":"))
        if len(text) <= PART_CHARACTERS:
            return row
        token = new_token()
        pieces = [
            text[start : start + PART_CHARACTERS] for start in range(0, len(text), PART_CHARACTERS)
        ]
        payload = {"token": token, "parts": len(pieces)}
        for key, piece in zip(_parts_of(payload), pieces, strict=True):
            try:
                await self._store.emit_event(run or self.run_id, key, piece)
            except RunNotFoundError:
                if run is not None:
                    raise
                await self._create()
                await self._store.emit_event(self.run_id, key, piece)
        return payload

    async def _create(self) -> None:
        """Begin the log's run, or find where it has gone."""
        generation = await self._runs.oldest()
        if generation is not None:
            self._generation = generation
            await self._open()
            return
        self._begin(0)
        await self._runs.begin(self.run_id, 0)
        self._token = await self._token_of(self.run_id)
        self.is_known = True

    async def _token_of(self, run_id: str) -> str:
        """Return the token of the log in a run, which the first to ask decides."""
        _, event = await self._store.emit_event(run_id, _TOKEN_KEY, new_token())
        return cast("str", event.payload)


def _key(token: str, number: int) -> str:
    return f"{token}:{number:010d}"


def _moved_to(row: Row) -> int | None:
    return row[0].get(MOVED) if row else None


def _parts_of(payload: Any) -> list[str]:
    """Return the keys under which the parts of a row are; none for one that is whole."""
    if not isinstance(payload, dict):
        return []
    stored = cast("Entry", payload)
    return [f"part:{stored['token']}:{part}" for part in range(stored["parts"])]


def _whole(payload: Any, parts: Mapping[str, Any]) -> Row:
    if not isinstance(payload, dict):
        return cast("Row", payload)
    return cast("Row", json.loads("".join(parts[key] for key in _parts_of(payload))))


def in_rows(entries: Sequence[Entry]) -> Iterator[Row]:
    """Divide entries among rows of a moderate length."""
    row: Row = []
    length = 0
    for entry in entries:
        row.append(entry)
        length += len(json.dumps(entry))
        if length > ROW_CHARACTERS:
            yield row
            row, length = [], 0
    if row:
        yield row
