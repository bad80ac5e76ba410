"""A turn that waits for a human, over HTTP: its readers miss nothing, in each form of a stream."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from perdure.agent.tool_loop import ToolLoop
from perdure.agent.tools import Tool
from perdure.store.opening import open_store
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.identity import run_id_of
from perdure.web.app import create_app
from tests.agent.looping import degrees
from tests.agent.strict_provider import StrictProvider, calls, says
from tests.turn.stage import TURN as IDENTITY
from tests.turn.stage import Script, until
from tests.web.asking import PATIENCE_S, TURN, Service, by_header
from tests.web.listening import Listening, listening

APPROVALS = f"{TURN}/approvals"
EVENT = "approval:loop:1.1"
ASKED, DECIDED = b'"tool_approval_request"', b'"tool_approval"'


class Form(NamedTuple):
    """One form of a stream: what a client asks for."""

    query: str
    accept: str

    def cursor_in(self, lines: Sequence[bytes]) -> str | None:
        """Return the last cursor of these lines, if the form has any."""
        if self.accept == "text/event-stream":
            return [line[4:].decode().strip() for line in lines if line.startswith(b"id: ")][-1]
        if "envelope=1" in self.query:
            return [str(line["id"]) for line in map(json.loads, lines) if line["id"]][-1]
        return None


FORMS = [
    Form(query + dialect, accept)
    for dialect in ("", "&wire=reference")
    for query, accept in (
        ("envelope=0", "application/x-ndjson"),
        ("envelope=1", "application/x-ndjson"),
        ("envelope=0", "text/event-stream"),
    )
]


class Client:
    """Reads the turn in one form; it may hang up, and come back with the cursor that it has."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.got: list[bytes] = []

    async def read(self, served: Listening, *, to: bytes | None = None) -> None:
        """Read on to the end, or hang up behind the event that holds `to`."""
        cursor = self.form.cursor_in(self.got) if self.got else None
        if cursor is None:
            self.got.clear()
        after = f"&after={cursor}" if cursor else ""
        headers = {"accept": self.form.accept}
        async with served.stream(self.form.query + after, headers=headers) as lines:
            assert lines.response.status_code == 200
            async for line in lines:
                self.got.append(line)
                if to is not None and to in line:
                    return

    def has(self, part: bytes) -> bool:
        return any(part in line for line in self.got)

    @property
    def events(self) -> list[bytes]:
        """Return what was read, less what stands between the events, as one who was there."""
        told = [line for line in self.got if b"{" in line]
        return [line.replace(b'"replayed":true', b'"replayed":false') for line in told]


class Scene:
    """Services on one database, each as in a process of its own, with one model behind them."""

    def __init__(self, url: str) -> None:
        self.asked = Counter[int]()
        self._url = url
        self._stack = AsyncExitStack()

    async def serve(self) -> tuple[Listening, Service]:
        store = await open_store(self._url, durability="normal")
        provider = StrictProvider(
            calls(("c1", "degrees", {"city": "Faro"})),
            says("It is warm."),
            on_call=lambda number: self.asked.update([number]),
        )
        tool = Tool(degrees, effect="pure", needs_approval=True)
        engine = ChatTurnEngine(store, produce=ToolLoop(provider.backend(), [tool]))
        service = Service(create_app(engine, store, authorize=by_header), engine, store, Script())
        self._stack.push_async_callback(store.close)
        return await self._stack.enter_async_context(listening(service)), service

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(f"sqlite:{tmp_path / 'turns.db'}")
    yield scene
    await scene.close()


async def sleeps(service: Service, *, epoch: int) -> None:
    async def is_asleep() -> bool:
        run = await service.store.read_run(run_id_of(IDENTITY))
        return run is not None and (run.state, run.epoch) == ("waiting", epoch)

    await until(is_asleep)


async def approve(served: Listening, *readers: Client) -> None:
    """Decide the call once all of these readers know of it."""
    await until(lambda: all(reader.has(ASKED) for reader in readers))
    decided = await served.client.post(APPROVALS, json={"event": EVENT, "approved": True})
    assert decided.json()["accepted"] is True


def check(client: Client, model: Client) -> None:
    """Check that the client has what one has who was never away, and each event once."""
    assert client.events == model.events, client.form
    body = b"".join(client.got)
    assert b"restarted" not in body
    assert (body.count(ASKED), body.count(DECIDED)) == (1, 1)
    assert client.has(b"warm.")
    assert b"session.run.completed" in client.events[-1]


async def test_readers_who_stay_and_who_come_back_see_a_request_and_its_answer_once(
    scene: Scene,
) -> None:
    here, service = await scene.serve()
    there, _ = await scene.serve()
    await service.engine.submit(IDENTITY, "Hi")
    await sleeps(service, epoch=1)
    stay, far, leave = ([Client(form) for form in FORMS] for _ in range(3))
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        for client in stay:
            group.create_task(client.read(here))
        for client in far:
            group.create_task(client.read(there))
        await asyncio.gather(*(client.read(here, to=ASKED) for client in leave))
        # They come back to the other process, which knows the turn from the store alone.
        for client in leave:
            group.create_task(client.read(there))
        await approve(there, *stay, *far, *leave)
    for clients in zip(stay, far, leave, strict=True):
        for client in clients:
            check(client, clients[0])
    assert scene.asked == {0: 1, 1: 1}


async def test_readers_of_a_process_that_goes_away_see_no_restart_where_they_come_back(
    scene: Scene,
) -> None:
    here, service = await scene.serve()
    there, other = await scene.serve()
    await service.engine.submit(IDENTITY, "Hi")
    await sleeps(service, epoch=1)
    far, back = ([Client(form) for form in FORMS] for _ in range(2))
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        for client in far:
            group.create_task(client.read(there))
        await asyncio.gather(*(client.read(here, to=ASKED) for client in back))
        here.signal()
        await here.ended
        # A client that asks again has the turn replayed there, to where it waits.
        await other.engine.submit(IDENTITY, "Hi")
        await sleeps(other, epoch=2)
        for client in back:
            group.create_task(client.read(there))
        await approve(there, *far, *back)
    for clients in zip(far, back, strict=True):
        for client in clients:
            check(client, clients[0])
    assert scene.asked == {0: 1, 1: 1}
