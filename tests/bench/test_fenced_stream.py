"""Our promise for a stream, kept by hand: what a turn of it leaves behind, Perdure can read."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import cast

import psycopg
import pytest

import perdure
from bench import fenced_stream
from bench.fenced_postgres import SCHEMA, FencedPostgres
from bench.sides.asked import events, tokens
from tests.store.postgres_server import PostgresServer


class Kept:
    """An empty place for turns, and Perdure's address of it."""

    def __init__(
        self,
        open_journal: Callable[[], Awaitable[fenced_stream.Journal]],
        url: str,
        execute: Callable[[str], None],
    ) -> None:
        self.open_journal = open_journal
        self.url = url
        self.execute = execute


@pytest.fixture(params=["sqlite", "postgres"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    path = str(tmp_path / "fenced.db")
    if cast(str, request.param) == "sqlite":

        async def on_sqlite() -> fenced_stream.Journal:
            return fenced_stream.FencedStreams(path, synchronous="normal")

        def execute(sql: str) -> None:
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute(sql.format("durable_runs"))

        return Kept(on_sqlite, f"sqlite:{path}", execute)
    server = cast(PostgresServer, request.getfixturevalue("postgres"))
    base = server.url
    with psycopg.connect(base, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE".encode())

    async def on_postgres() -> fenced_stream.Journal:
        return await FencedPostgres.open(base, synchronous="normal")

    def execute_there(sql: str) -> None:
        with psycopg.connect(base, autocommit=True) as connection:
            connection.execute(sql.format(f"{SCHEMA}.durable_runs").encode())

    return Kept(on_postgres, f"{base}?schema={SCHEMA}", execute_there)


async def test_its_turns_are_read_as_our_own(kept: Kept) -> None:
    journal = await kept.open_journal()
    assert await fenced_stream.stream(journal, "typed", tokens(200, 0)) > 200
    assert await fenced_stream.stream(journal, "verbatim", events(200, 0)) > 200
    await journal.close()
    store = await perdure.open_store(kept.url)
    for run_id in ("typed", "verbatim"):
        run = await store.read_run(run_id)
        assert run is not None
        assert run.state == "completed"
        assert run.lease_holder_id is None
        frames = list(await store.read_frames(run_id))
        assert [frame.seq for frame in frames] == list(range(1, 202))
        assert frames[-1].kind == "completed"
        (step,) = await store.read_steps(run_id)
        assert step.result["finalText"] == "".join([token async for token in tokens(200, 0)])
        assert step.frames_to == 201
    await store.close()


async def test_it_writes_nothing_for_who_has_lost_the_lease(kept: Kept) -> None:
    journal = await kept.open_journal()

    async def said() -> AsyncIterator[str]:
        yield "first "
        kept.execute("UPDATE {} SET epoch = 2")
        yield "second "

    with pytest.raises(RuntimeError, match="the lease of 'run' is lost"):
        await fenced_stream.stream(journal, "run", said())
    await journal.close()
    store = await perdure.open_store(kept.url)
    assert await store.read_frames("run") == []
    assert await store.read_steps("run") == []
    await store.close()
