"""Databases that earlier levels of this package made: today's code goes on where they ended."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

import perdure
from perdure.errors import SchemaError
from perdure.store.sql import schema
from perdure.testing import ManualClock
from perdure.testing.samples import completed, ended, hold
from tests.store.sql import level, write_level
from tests.store.sql.level import VALUES, manifest, until
from tests.store.sql.reference_database import connected, trail

DUMPS = sorted((Path(__file__).parent / "upgrades").glob("*.sql"))
Rows = dict[str, list[tuple[object, ...]]]
UNFINISHED = {
    "asleep": ["asleep: after"],
    "broken": ["broken: after"],
    "crashed": ["crashed: last"],
    "parked": ["parked: after"],
    "queued": ["queued: only"],
    "told": ["waiting: after"],
    "waiting": ["waiting: after"],
}


@pytest.fixture(params=DUMPS, ids=lambda path: path.stem)
def dump(request: pytest.FixtureRequest) -> Path:
    path = request.param
    assert isinstance(path, Path)
    return path


@pytest.fixture
def path(dump: Path, tmp_path: Path) -> Path:
    return loaded(dump, tmp_path / "level.db")


def loaded(dump: Path, path: Path) -> Path:
    with connected(path) as connection:
        connection.executescript(f"BEGIN;{dump.read_text('utf-8')}COMMIT;")
    return path


def rows(path: Path, columns: dict[str, list[str]]) -> Rows:
    with connected(path) as connection:
        return {
            table: connection.execute(
                f"SELECT {', '.join(names)} FROM {table} ORDER BY {', '.join(names)}"
            ).fetchall()
            for table, names in columns.items()
        }


def columns(path: Path) -> dict[str, list[str]]:
    with connected(path) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {
            name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
            for (name,) in tables.fetchall()
        }


async def opened(path: Path, *, later_ms: int = 0, migrate: bool | None = None) -> perdure.RunStore:
    clock = ManualClock()
    clock.advance(later_ms)
    return await perdure.open_store(f"sqlite:{path}", clock=clock, migrate=migrate)


def test_there_is_a_dump_of_the_first_level() -> None:
    assert DUMPS[0].stem == "102"


async def test_the_dump_of_todays_level_can_be_written(tmp_path: Path) -> None:
    write_level.write(tmp_path / "today.sql")
    path = loaded(tmp_path / "today.sql", tmp_path / "today.db")
    empty = [table for table, kept in rows(path, columns(path)).items() if not kept]
    assert not empty, "`level.py` fills every table, so that upgrades are tested with each"
    store = await opened(path, migrate=False)
    assert {*UNFINISHED, "whole", "stopped"} <= {run.run_id for run in await store.list_runs()}
    await store.close()


async def test_a_migration_changes_no_value_of_an_earlier_level(path: Path, dump: Path) -> None:
    known = columns(path)
    before = rows(path, known)
    trail_before = before.pop("perdure_schema")
    assert [number for number, *_ in trail(path)][-1] == int(dump.stem)
    store = await opened(path)
    await store.close()
    after = rows(path, known)
    assert set(trail_before) <= set(after.pop("perdure_schema"))
    assert after == before
    assert len(trail(path)) == len(schema.own_migrations())
    with connected(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_what_an_earlier_level_recorded_is_read_by_todays_code(path: Path) -> None:
    store = await opened(path)
    (step,) = await store.read_steps("whole")
    assert (step.status, step.result) == ("completed", VALUES)
    executed: list[str] = []
    task = level.tasks(executed, on_last_step=at_once)["whole"]
    again = await perdure.run_durable(store, run_id="whole", manifest=manifest("whole"), task=task)
    assert (again.result, executed) == (VALUES, [])
    broken = await store.read_run("broken")
    stopped = await store.read_run("stopped")
    assert broken is not None
    assert stopped is not None
    assert (broken.state, stopped.state) == ("failed", "stopped")
    said = await store.read_frames("chat:kitchen:0", after=0, limit=99)
    assert "".join(frame.data["delta"] for frame in said if frame.kind == "text") == "".join(
        level.WORDS
    )
    await store.close()


async def test_every_unfinished_run_of_an_earlier_level_is_finished(path: Path) -> None:
    store = await opened(path, later_ms=2 * level.DAY_MS)
    executed = ["broken: repaired"]
    worker = perdure.Worker(store, tasks=level.tasks(executed, on_last_step=at_once))
    await perdure.emit_event(store, "waiting", "approval", {"by": "bob"})
    working = asyncio.ensure_future(worker.run())
    known = level.tasks(executed, on_last_step=at_once)
    for run_id in ("broken", "parked"):
        await perdure.run_durable(
            store, run_id=run_id, manifest=manifest(run_id), task=known[run_id]
        )
    for run_id in UNFINISHED:
        await until(level.in_state(store, run_id, "completed"))
    acme = store.for_tenant("acme")
    await perdure.run_durable(
        acme, run_id="queued", manifest=manifest("queued"), task=known["queued"]
    )
    await worker.drain()
    await working
    expected = [step for steps in UNFINISHED.values() for step in steps]
    assert sorted(executed) == sorted([*expected, "broken: repaired", "queued: only"])
    for run_id, answer in (("told", {"by": "ann"}), ("waiting", {"by": "bob"})):
        assert (await store.read_steps(run_id))[-1].result == answer
    await store.close()


async def at_once() -> None:
    return None


async def test_a_turn_and_a_delivery_of_an_earlier_level_are_finished(path: Path) -> None:
    store = await opened(path, later_ms=2 * level.DAY_MS)
    delivered: list[tuple[int, str]] = []

    def persist(turn: perdure.FinishedTurn) -> None:
        delivered.append((turn.identity.turn_index, turn.final_text))

    engine = perdure.ChatTurnEngine(
        store,
        produce=level.producer(pause=None),
        hooks=perdure.ChatTurnHooks(persist_assistant_message=persist),
    )
    again = await engine.submit(level.INTERRUPTED, "And what else?")
    assert not again.created

    async def both() -> bool:
        return len(delivered) == 2

    await until(both)
    assert sorted(delivered) == [(0, "".join(level.WORDS)), (1, "".join(level.WORDS))]
    frames = await store.read_frames("chat:kitchen:1", after=0, limit=99)
    assert [frame.kind for frame in frames][:4] == ["text", "text", "text", "restarted"]
    await engine.aclose()
    await store.close()


async def test_a_process_of_an_earlier_level_goes_on_beside_todays(
    path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_of_level(monkeypatch, int(dump.stem))
    early = await opened(path)
    lease = await hold(early, "beside")
    monkeypatch.undo()
    late = await opened(path)
    await early.write(lease, completed(0, "from then"), ended())
    run = await late.read_run("beside")
    assert run is not None
    assert run.state == "completed"
    await hold(early, "begun behind the migration")
    await early.close()
    await late.close()


async def test_a_process_of_an_earlier_level_refuses_to_open_a_later_database(
    path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = schema.own_migrations()
    if own[-1].number == int(dump.stem):
        pytest.skip("the level of today")
    await (await opened(path)).close()
    before = rows(path, columns(path))
    be_of_level(monkeypatch, int(dump.stem))
    with pytest.raises(SchemaError, match=r"newer version of perdure \(migration 1\d\d\)"):
        await opened(path)
    assert rows(path, columns(path)) == before


def be_of_level(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let this process know as many migrations as one of that level: all else it knew is here."""
    known = tuple(each.name for each in schema.own_migrations() if each.number <= number)
    monkeypatch.setattr(schema, "_NAMES", known)


async def test_a_database_of_an_earlier_level_is_left_alone_without_migrate(
    path: Path, dump: Path
) -> None:
    missing = [each.name for each in schema.own_migrations() if each.number > int(dump.stem)]
    if not missing:
        pytest.skip("the level of today")
    with pytest.raises(SchemaError, match=", ".join(missing)):
        await opened(path, migrate=False)
    with pytest.raises(sqlite3.OperationalError), connected(path) as connection:
        connection.execute("SELECT * FROM perdure_schedules")
