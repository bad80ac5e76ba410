"""A journal on a store that a test may hold up, and everything that it publishes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from perdure.core.changes import AppendFrames, Change
from perdure.core.frames import Frame, text, upstream_end
from perdure.core.records import Written
from perdure.durable.attempt import Attempt
from perdure.durable.journal import Journal
from perdure.durable.ring import Ring
from perdure.store.protocol import RunStore
from perdure.testing.samples import manifest
from tests.durable.handles import ThreadedTroubledStore, Trouble, until, within


class Desk:
    """A journal on a store that a test may hold up, and everything it has published."""

    def __init__(self, store: RunStore, journal: Journal, attempt: Attempt, trouble: Trouble):
        self.store = store
        self.journal = journal
        self.attempt = attempt
        self.trouble = trouble
        self.published: list[Frame] = []

    @classmethod
    async def open(cls, store: RunStore) -> Desk:
        trouble = Trouble()
        troubled = ThreadedTroubledStore(store, trouble)
        claim = await troubled.start_or_resume("run", manifest(), worker_id="ann")
        attempt = Attempt(troubled, claim, lease_ms=15_000)
        published: list[Frame] = []
        journal = Journal(
            attempt,
            Ring(claim.next_seq),
            next_seq=claim.next_seq,
            on_published=published.extend,
        )
        desk = cls(store, journal, attempt, trouble)
        desk.published = published
        return desk

    async def stored(self) -> Sequence[Frame]:
        found: list[Frame] = []
        while page := await self.store.read_frames("run", after=found[-1].seq if found else -1):
            found.extend(page)
        return found

    def spy_on_rows(self, monkeypatch: pytest.MonkeyPatch) -> list[AppendFrames]:
        """Return the list to which every row is added that is written from now on."""
        rows: list[AppendFrames] = []
        write = self.attempt.write

        async def spy(*changes: Change) -> Written:
            rows.extend(change for change in changes if isinstance(change, AppendFrames))
            return await write(*changes)

        monkeypatch.setattr(self.attempt, "write", spy)
        return rows

    async def hold_up(self) -> asyncio.Event:
        """Let the first frame be stored, and keep the write of the second one in flight."""
        self.journal.append(text("a"))
        await until(lambda: self.published)
        gate = self.trouble.gate = asyncio.Event()
        self.journal.append(upstream_end("x"))
        await within(self.trouble.held_up.wait())
        return gate


def deltas(found: Sequence[Frame]) -> list[str]:
    return [frame.data["delta"] for frame in found if frame.kind in ("text", "reasoning")]
