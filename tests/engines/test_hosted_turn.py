"""A turn hosted by an engine that is a dict: what its record decides, and what ours is for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from perdure import ChatTurnEngine, Frame, frames, open_store
from perdure.core.records import JsonValue
from perdure.durable.steps import StepSpec
from perdure.engines.hosted_turn import HostedTurns
from perdure.errors import (
    AwaitEventTimeoutError,
    LeaseHeldError,
    LeaseLostError,
    RunInputMismatchError,
)
from perdure.store.protocol import RunStore
from perdure.turn.handout import Turn
from perdure.turn.identity import Asked, ChatTurnIdentity

TURN = ChatTurnIdentity("", "s", "u", 0)
ASKED = Asked("hello")


class DictHost:
    """Remembers what steps came to, as every host does, and hangs where a test cuts it off.

    `hang_before` names a step that is executed but not recorded yet, `hang_after` one that is
    recorded, of which nobody has heard.
    """

    name = "dict"

    def __init__(self, invocation: str = "inv") -> None:
        self.invocation = invocation
        self.recorded: dict[int, str] = {}
        self.events: dict[str, JsonValue] = {}
        self.hang_before: str | None = None
        self.hang_after: str | None = None
        self.hanging = asyncio.Event()

    async def step(self, spec: StepSpec, body: Callable[[], Awaitable[str]]) -> str:
        if spec.position not in self.recorded:
            text = await body()
            await self._hang(spec.intent, self.hang_before)
            self.recorded[spec.position] = text
            await self._hang(spec.intent, self.hang_after)
        return self.recorded[spec.position]

    async def _hang(self, intent: str, where: str | None) -> None:
        if intent == where:
            self.hanging.set()
            await asyncio.get_running_loop().create_future()

    async def event(self, spec: StepSpec, key: str, *, timeout_ms: int | None) -> JsonValue:
        if key not in self.events:
            raise AwaitEventTimeoutError(f"no event {key!r}", intent=spec.intent)
        return self.events[key]


@pytest.fixture
async def store() -> AsyncIterator[RunStore]:
    opened = await open_store("memory://")
    yield opened
    await opened.close()


class Model:
    """A producer whose calls are counted: two streams with a step in between."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def say(self, name: str, *, pieces: int = 3) -> AsyncIterator[Frame]:
        self.calls.append(name)
        for number in range(pieces):
            yield frames.text(f"{name}{number} ")
            await asyncio.sleep(0)
        yield frames.usage(model="m", tokens_in=1, tokens_out=pieces)
        yield frames.upstream_end("stop")

    def look(self) -> int:
        self.calls.append("look")
        return 7

    async def produce(self, turn: Turn) -> AsyncIterator[Frame]:
        first = turn.stream("first", lambda: self.say("a"), result=len)
        async for frame in first:
            yield frame
        yield frames.text(f"[{await turn.step('look', self.look)}] ")
        last = turn.stream("last", lambda: self.say("b"), result=len)
        async for frame in last:
            yield frame


WHOLE = "a0 a1 a2 [7] b0 b1 b2 "


async def text_of(store: RunStore, run_id: str = "chat:s:0") -> str:
    steps = await store.read_steps(run_id)
    return str(steps[0].result["finalText"])


async def kinds_of(store: RunStore) -> list[str]:
    return [frame.kind for frame in await store.read_frames("chat:s:0")]


async def cut_off(turns: HostedTurns, host: DictHost, store: RunStore) -> None:
    """Attend until the host hangs, and leave as a worker that is killed does: nothing is told."""
    attending = asyncio.create_task(turns.attend(TURN, ASKED, host))
    await host.hanging.wait()
    attending.cancel()
    await asyncio.wait((attending,))
    host.hanging.clear()
    host.hang_before = host.hang_after = None


async def test_a_turn_is_answered_in_the_hosts_steps_and_told_in_our_journal(
    store: RunStore,
) -> None:
    model, host = Model(), DictHost()
    engine = ChatTurnEngine(store, produce=model.produce, recover=False)
    run = await HostedTurns(engine).attend(TURN, ASKED, host)
    assert run.state == "completed"
    assert await text_of(store) == WHOLE
    assert sorted(host.recorded) == [1, 2, 3]
    again = await HostedTurns(engine).attend(TURN, ASKED, host)
    assert again.state == "completed"
    assert model.calls == ["a", "look", "b"]
    usage = (await store.read_details("chat:s:0")).usage
    assert [row.tokens_out for row in usage if row.step_index in (1, 3)] == [3, 3]


@pytest.mark.parametrize("where", ["first", "look", "last"])
async def test_what_the_host_has_recorded_is_not_asked_again_even_if_we_never_heard_of_it(
    store: RunStore, where: str
) -> None:
    model, host = Model(), DictHost()
    host.hang_after = where
    turns = HostedTurns(ChatTurnEngine(store, produce=model.produce, recover=False))
    await cut_off(turns, host, store)
    assert (await turns.attend(TURN, ASKED, host)).state == "completed"
    assert model.calls == ["a", "look", "b"]
    assert await text_of(store) == WHOLE


@pytest.mark.parametrize("where", ["first", "look", "last"])
async def test_what_the_host_has_not_recorded_is_done_again_and_readers_are_told(
    store: RunStore, where: str
) -> None:
    model, host = Model(), DictHost()
    host.hang_before = where
    turns = HostedTurns(ChatTurnEngine(store, produce=model.produce, recover=False))
    await cut_off(turns, host, store)
    assert (await turns.attend(TURN, ASKED, host)).state == "completed"
    assert await text_of(store) == WHOLE
    # Behind `look` nothing was shown, so there is nothing to forget.
    assert ("restarted" in await kinds_of(store)) == (where != "look")


async def test_frames_of_recorded_steps_stay_with_readers_over_a_restart(store: RunStore) -> None:
    model, host = Model(), DictHost()
    host.hang_before = "last"
    turns = HostedTurns(ChatTurnEngine(store, produce=model.produce, recover=False))
    await cut_off(turns, host, store)
    await turns.attend(TURN, ASKED, host)
    run = await store.read_run("chat:s:0")
    assert run is not None
    shown = await store.read_frames("chat:s:0", after=run.live_from - 1)
    assert shown[0].kind == "restarted"
    kept = shown[1 : 1 + shown[0].data["kept"]]
    assert "".join(frame.data["delta"] for frame in kept if frame.kind == "text") == "a0 a1 a2 "


async def test_a_new_attempt_takes_the_turn_at_once_and_the_old_one_can_write_no_more(
    store: RunStore,
) -> None:
    model, host = Model(), DictHost()
    host.hang_before = "look"
    engine = ChatTurnEngine(store, produce=model.produce, recover=False, lease_ms=60_000)
    old = asyncio.create_task(HostedTurns(engine).attend(TURN, ASKED, host))
    await host.hanging.wait()
    host.hang_before = None
    run = await asyncio.wait_for(HostedTurns(engine).attend(TURN, ASKED, host), 10)
    assert (run.state, run.epoch, run.strikes) == ("completed", 2, 0)
    [ended] = await asyncio.gather(old, return_exceptions=True)
    assert isinstance(ended, LeaseLostError) or ended == run
    assert model.calls == ["a", "look", "look", "b"]
    assert await text_of(store) == WHOLE


async def test_another_call_of_the_host_does_not_take_a_live_turn(store: RunStore) -> None:
    model, host = Model(), DictHost()
    host.hang_before = "look"
    turns = HostedTurns(ChatTurnEngine(store, produce=model.produce, recover=False))
    attending = asyncio.create_task(turns.attend(TURN, ASKED, host))
    await host.hanging.wait()
    with pytest.raises(LeaseHeldError):
        await turns.attend(TURN, ASKED, DictHost("another"))
    with pytest.raises(RunInputMismatchError):
        await turns.attend(TURN, Asked("something else"), DictHost("another"))
    attending.cancel()
    await asyncio.wait((attending,))


async def test_a_stop_through_the_engine_ends_the_hosted_turn_with_what_there_is(
    store: RunStore,
) -> None:
    model, host = Model(), DictHost()
    host.hang_before = "look"
    engine = ChatTurnEngine(store, produce=model.produce, recover=False)
    attending = asyncio.create_task(HostedTurns(engine).attend(TURN, ASKED, host))
    await host.hanging.wait()
    assert (await engine.stop(TURN)).state == "stopped"
    assert (await attending).state == "stopped"
    assert await text_of(store) == "a0 a1 a2 "


async def test_a_tool_that_may_run_once_is_not_run_again_when_its_end_is_unknown(
    store: RunStore,
) -> None:
    ran: list[int] = []
    host = DictHost()

    async def produce(turn: Turn) -> AsyncIterator[Frame]:
        async def charge() -> str:
            ran.append(1)
            host.hanging.set()
            await asyncio.get_running_loop().create_future()
            return "never"

        yield frames.text(await turn.step("charge", charge, kind="tool"))

    turns = HostedTurns(ChatTurnEngine(store, produce=produce, recover=False))
    await cut_off(turns, host, store)
    run = await turns.attend(TURN, ASKED, host)
    assert (run.state, run.reason, ran) == ("failed", "unfinished_tool_call", [1])


async def test_a_tool_that_ran_once_is_known_by_us_if_the_host_did_not_record_it(
    store: RunStore,
) -> None:
    ran: list[int] = []
    host = DictHost()
    host.hang_before = "charge"

    async def produce(turn: Turn) -> AsyncIterator[Frame]:
        def charge() -> str:
            ran.append(1)
            return "charged"

        yield frames.text(await turn.step("charge", charge, kind="tool"))

    turns = HostedTurns(ChatTurnEngine(store, produce=produce, recover=False))
    await cut_off(turns, host, store)
    assert (await turns.attend(TURN, ASKED, host)).state == "completed"
    assert (await text_of(store), ran) == ("charged", [1])


async def test_failures_and_time_outs_are_the_same_in_every_attempt(store: RunStore) -> None:
    host, seen = DictHost(), list[str]()
    host.hang_before = "last"

    async def produce(turn: Turn) -> AsyncIterator[Frame]:
        def broken() -> str:
            raise ValueError("no such table")

        for call in (turn.step("broken", broken), turn.await_event("late", timeout_ms=1)):
            try:
                await call
            except Exception as error:
                seen.append(f"{type(error).__name__}: {error}")
        yield frames.text("still ")
        yield frames.text(await turn.step("last", lambda: "here"))

    turns = HostedTurns(ChatTurnEngine(store, produce=produce, recover=False))
    await cut_off(turns, host, store)
    assert (await turns.attend(TURN, ASKED, host)).state == "completed"
    assert seen[:2] == seen[2:]
    assert "no such table" in seen[0]
    assert seen[1].startswith("AwaitEventTimeoutError")
    assert await text_of(store) == "still here"


async def test_an_event_of_the_host_is_what_the_turn_waits_for(store: RunStore) -> None:
    host = DictHost()
    host.events["approval"] = {"by": "me"}

    async def produce(turn: Turn) -> AsyncIterator[Frame]:
        answer = await turn.await_event("approval")
        yield frames.text(answer["by"])

    turns = HostedTurns(ChatTurnEngine(store, produce=produce, recover=False))
    assert (await turns.attend(TURN, ASKED, host)).state == "completed"
    assert await text_of(store) == "me"


class Joining:
    """Looks and waits, then answers by what it cannot join again, but looks before it knows."""

    def __init__(self, host: DictHost) -> None:
        self.host = host
        self.tries = 0

    async def prepare(self, turn: Turn) -> str:
        looked = await turn.step("look", lambda: "seen")
        return f"{looked} {await turn.await_event('go')} "

    async def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
        self.tries += 1
        yield frames.text(await self.prepare(turn))
        await turn.save_handle("answer-1")
        yield frames.text("half ")
        if self.tries == 1:
            self.host.hanging.set()
            await asyncio.get_running_loop().create_future()
        yield frames.text("whole")
        yield frames.upstream_end("stop")

    async def attach(self, turn: Turn) -> None:
        await self.prepare(turn)


async def test_the_host_is_asked_once_by_an_attempt_that_could_not_join_the_answer(
    store: RunStore,
) -> None:
    class Counting(DictHost):
        async def step(self, spec: StepSpec, body: Callable[[], Awaitable[str]]) -> str:
            asked.append(spec.position)
            return await super().step(spec, body)

        async def event(self, spec: StepSpec, key: str, *, timeout_ms: int | None) -> JsonValue:
            asked.append(spec.position)
            return await super().event(spec, key, timeout_ms=timeout_ms)

    asked: list[int] = []
    host = Counting()
    host.events["go"] = "on"
    turns = HostedTurns(ChatTurnEngine(store, produce=Joining(host), recover=False))
    await cut_off(turns, host, store)
    assert (await turns.attend(TURN, ASKED, host)).state == "completed"
    assert await text_of(store) == "seen on half whole"
    assert asked == [1, 2, 1, 2]
