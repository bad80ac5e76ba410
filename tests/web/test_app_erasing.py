"""Forgetting: a session, and all of a user, go with every trace that they left in the store."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from perdure.core.frames import reasoning, text, tool_call, tool_result, upstream_end
from perdure.errors import BackendTransportError
from perdure.store.erasure import erasure_of
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.turn.hooks import ChatTurnHooks, FinishedTurn
from tests.turn.stage import Script, until, words
from tests.web.asking import STOP, TURN, Service, begin, serve

CANARY = "canary-7Qx"
SESSION = f"session-{CANARY}"
TURNS = f"/v1/sessions/{SESSION}/turns"
THEM = f"/user-{CANARY}"
OTHER = "/ann"


def leaves(value: object, seen: set[int]) -> Iterator[str]:
    """Yield every text that can be reached from a value in memory."""
    if isinstance(value, str):
        yield value
        return
    if isinstance(value, bytes):
        yield value.decode("latin-1")
        return
    if isinstance(value, int | float | type) or id(value) in seen:
        return
    seen.add(id(value))
    inside: list[object] = list(getattr(value, "__dict__", {}).values())
    if isinstance(value, dict):
        inside += [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        inside += list(value)
    for each in inside:
        yield from leaves(each, seen)


def in_memory(data: MemoryData) -> list[str]:
    kept = {name: value for name, value in vars(data).items() if name not in ("lock", "waiters")}
    assert len(kept) >= 5
    return [found for found in leaves(kept, set()) if CANARY in found]


def in_tables(path: Path) -> list[str]:
    """Return where the canary stands in the tables of a SQLite file."""
    found: list[str] = []
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            rows = connection.execute(f'SELECT * FROM "{table}"')
            found += [table for row in rows if any(CANARY in str(value) for value in row)]
    return found


def in_log(path: Path) -> list[str]:
    """Return the log of a SQLite file, if it holds anything."""
    log = path.with_name(f"{path.name}-wal")
    return [str(log)] if log.exists() and log.stat().st_size else []


def in_files(folder: Path) -> list[str]:
    """Return the files below a folder that have the canary in their bytes, or their names."""
    return [
        str(path)
        for path in folder.rglob("*")
        if CANARY in path.name or (path.is_file() and CANARY.encode() in path.read_bytes())
    ]


def in_database(path: Path) -> list[str]:
    return [*in_tables(path), *in_log(path), *in_files(path.parent)]


Traces = Callable[[], list[str]]


@pytest.fixture(params=["memory", "sqlite", "file"])
async def kept(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """Return a store, and what finds traces in it."""
    traces: Traces
    if request.param == "memory":
        data = MemoryData()
        store: RunStore = MemoryStore(data)
        traces = partial(in_memory, data)
    elif request.param == "sqlite":
        path = tmp_path / "turns.db"
        store = await open_store(f"sqlite:{path}")
        traces = partial(in_database, path)
    else:
        store = await open_store(f"file:{tmp_path / 'turns'}")
        traces = partial(in_files, tmp_path)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        yield store, traces, stack


def start(kept: Any, *script: Any, **options: Any) -> tuple[Service, Traces]:
    store, traces, stack = kept
    service = serve(store, Script(*script) if script else None, **options)
    stack.push_async_callback(service.engine.aclose, drain_ms=0)
    return service, traces


def telling_turn() -> list[Any]:
    """Return a script that leaves something of everything."""
    return [
        reasoning(f"Thinking of {CANARY}. " * 40),
        tool_call("c1", "look", {"at": CANARY}, "pure"),
        tool_result("c1", {"seen": CANARY}),
        *(text(f"{CANARY} {number} ") for number in range(200)),
        upstream_end("stop"),
    ]


async def submit(service: Service, index: int, **options: Any) -> Any:
    options.setdefault("caller", THEM)
    return await service.submit(f"I am {CANARY}", index=index, target=TURNS, **options)


async def check_forgotten(service: Service, traces: Traces) -> None:
    """Fail unless nothing is left: in tables and logs at once, in unused parts after a scrub."""
    assert not [trace for trace in traces() if not trace.endswith("turns.db")]
    await erasure_of(service.store).scrub(whole=True)
    assert traces() == []


async def test_nothing_of_a_deleted_session_is_left_anywhere_in_the_store(kept: Any) -> None:
    async def persist(turn: FinishedTurn) -> None:
        raise RuntimeError(f"no room for {turn.final_text}")

    failure = BackendTransportError(f"no {CANARY}", backend="b", status=500)
    scripts = [telling_turn(), [text(CANARY), failure], telling_turn(), words("Hello there")]
    hooks = ChatTurnHooks(persist_assistant_message=persist)
    service, traces = start(kept, *scripts, engine={"hooks": hooks})
    await submit(service, 0)
    await submit(service, 1)
    await submit(service, 1, more={"retry": True})
    await service.submit("Hello", caller=OTHER)
    assert traces()
    gone = await service.ask("DELETE", f"/v1/sessions/{SESSION}", caller=THEM)
    assert (gone.status, gone.json) == (200, {"sessions": 1, "turns": 2})
    await check_forgotten(service, traces)
    assert (await service.ask("GET", TURN, caller=OTHER)).status == 200
    for target in (f"/v1/sessions/{SESSION}", f"{TURNS}/0", f"{TURNS}/0/stream"):
        assert (await service.ask("GET", target, caller=THEM)).status == 404
    again = await service.ask("DELETE", f"/v1/sessions/{SESSION}", caller=THEM)
    assert (again.status, again.error["code"]) == (404, "not_found")


async def test_nothing_of_a_forgotten_user_is_left_anywhere_in_the_store(kept: Any) -> None:
    service, traces = start(kept, *(telling_turn() for _ in range(4)), words("Hello there"))
    for number in range(4):
        target = f"/v1/sessions/{CANARY}-{number}/turns"
        await service.submit(f"I am {CANARY}", target=target, caller=THEM)
    await service.submit("Hello", caller=OTHER)
    gone = await service.ask("DELETE", "/v1/me", caller=THEM)
    assert (gone.status, gone.json) == (200, {"sessions": 4, "turns": 4})
    await check_forgotten(service, traces)
    assert (await service.ask("GET", TURN, caller=OTHER)).json["text"] == "Hello there"
    again = await service.ask("DELETE", "/v1/me", caller=THEM)
    assert (again.status, again.json) == (200, {"sessions": 0, "turns": 0})


async def test_a_session_in_flight_is_deleted_only_when_it_is_stopped_first(kept: Any) -> None:
    service, traces = start(kept, [text(CANARY), asyncio.Event()])
    reading = asyncio.create_task(submit(service, 0))
    await until(lambda: service.script.calls)
    for target in (f"/v1/sessions/{SESSION}", "/v1/me"):
        refused = await service.ask("DELETE", target, caller=THEM)
        assert (refused.status, refused.error["code"]) == (409, "session_busy")
    assert (await service.ask("GET", f"{TURNS}/0", caller=THEM)).json["state"] == "running"
    gone = await service.ask("DELETE", f"/v1/sessions/{SESSION}?stop=1", caller=THEM)
    assert (gone.status, gone.json) == (200, {"sessions": 1, "turns": 1})
    answer = await reading
    assert answer.kinds[-1] == "session.run.stopped" or not answer.is_whole
    await service.engine.aclose(drain_ms=1_000)
    await check_forgotten(service, traces)


async def test_all_sessions_of_a_user_are_kept_if_one_of_them_is_in_flight(kept: Any) -> None:
    service, _ = start(kept, [text("Hello there"), upstream_end("stop")], [asyncio.Event()])
    await service.submit("First", target="/v1/sessions/a/turns")
    reading = asyncio.create_task(service.submit("Second", target="/v1/sessions/b/turns"))
    await until(lambda: service.script.calls == 2)
    assert (await service.ask("DELETE", "/v1/me")).status == 409
    assert (await service.ask("GET", "/v1/sessions/a")).status == 200
    gone = await service.ask("DELETE", "/v1/me?stop=1")
    assert gone.json == {"sessions": 2, "turns": 2}
    await reading


async def test_nobody_deletes_what_belongs_to_somebody_else(kept: Any) -> None:
    service, _ = start(kept)
    await service.submit("Mine")
    for caller, status in (("/eve", 404), ("acme/ann", 404), (None, 401)):
        answer = await service.ask("DELETE", "/v1/sessions/s?stop=1", caller=caller)
        assert answer.status == status
    for caller in ("/eve", "acme/ann"):
        assert (await service.ask("DELETE", "/v1/me", caller=caller)).json["sessions"] == 0
    assert (await service.ask("DELETE", "/v1/me", caller=None)).status == 401
    assert (await service.ask("GET", TURN)).json["message"] == "Mine"


async def test_a_session_of_somebody_else_in_flight_looks_as_if_it_were_not_there(
    kept: Any,
) -> None:
    halt = asyncio.Event()
    service, _ = start(kept, [text("Hello"), halt, upstream_end("stop")])
    reading = await begin(service)
    answer = await service.ask("DELETE", "/v1/sessions/s", caller="/eve")
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    halt.set()
    await reading


async def test_a_session_that_is_begun_again_after_its_deletion_is_new(kept: Any) -> None:
    service, _ = start(kept, [text("Hello"), asyncio.Event()], words("Hello again"))
    reading = await begin(service)
    await service.ask("POST", STOP)
    old = (await reading).events
    await service.ask("DELETE", "/v1/sessions/s")
    anew = await service.submit("Anew", caller="/eve")
    assert anew.status == 201
    assert anew.events != old
    view = (await service.ask("GET", TURN, caller="/eve")).json
    assert (view["message"], view["text"], view["attempt"]) == ("Anew", "Hello again", 1)


@pytest.mark.parametrize("stop", ["2", "yes", ""])
async def test_a_wrong_stop_is_refused_by_name(kept: Any, stop: str) -> None:
    service, _ = start(kept)
    await service.submit()
    for target in ("/v1/sessions/s", "/v1/me"):
        answer = await service.ask("DELETE", f"{target}?stop={stop}")
        assert (answer.status, answer.error["code"]) == (400, "bad_request")
        assert "`stop`" in answer.error["message"]
    assert (await service.ask("GET", TURN)).status == 200


async def test_what_a_session_can_be_asked_is_told_to_whoever_asks_otherwise(kept: Any) -> None:
    service, _ = start(kept)
    for target, allowed in (
        ("/v1/sessions/s", "DELETE, GET, HEAD"),
        ("/v1/me", "DELETE"),
        (TURN, "GET, HEAD"),
    ):
        answer = await service.ask("PUT", target)
        assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"] == allowed
