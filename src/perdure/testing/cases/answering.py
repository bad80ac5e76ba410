"""What a backend tells: a stream of its own events, in a session of its own, to a proper end."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from perdure.agent.backend import AgentBackendInput
from perdure.agent.cancel import CancelSignal
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import InMemoryRuntimeSessionStore
from perdure.agent.stream import run_agent_task_stream
from perdure.agent.stream_events import (
    BACKEND_EVENTS,
    LlmCallEvent,
    ReasoningDeltaEvent,
    RuntimeStreamEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
    event_from_wire,
    event_to_wire,
)
from perdure.testing.asking import (
    FAILED,
    HELLO,
    TASK,
    WHOLE,
    Watched,
    awaited,
    begun,
    final,
    grammatical,
    said,
    start_context,
    text,
    told,
)
from perdure.testing.backend_lab import BackendLab
from perdure.testing.lab import check, same

PATIENCE_S: Final = 10
SILENCE_S: Final = 0.1
"""What is not told so long behind a piece of text will not be told."""


async def an_answer_keeps_to_the_grammar_of_streams(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        grammatical(await told(backend), WHOLE)


async def a_backend_tells_only_what_is_a_backends_to_tell(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        for event in await said(backend):
            check(isinstance(event, BACKEND_EVENTS), f"{event!r:.80} is the runtime's to tell")


async def an_answer_has_text_and_no_empty_piece(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        pieces = await said(backend)
    deltas = [each for each in pieces if isinstance(each, TextDeltaEvent | ReasoningDeltaEvent)]
    check(text(pieces), "there is no text")
    check(all(each.text for each in deltas), "a piece of it is empty")


async def a_kind_is_a_name_that_stays(lab: BackendLab) -> None:
    async with lab.backend() as backend, lab.backend("fails") as other:
        kind = backend.kind
        check(type(kind) is str and kind, "a kind is a text, and not empty")
        await said(backend)
        same((backend.kind, other.kind), (kind, kind), "the kind after a call, and of another one")


async def every_event_is_plain_json_and_reads_back(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        for event in await said(backend):
            wire = event_to_wire(event)
            same(json.loads(json.dumps(wire, allow_nan=False)), wire, f"{event.type} as JSON")
            same(event_to_wire(event_from_wire(wire)), wire, f"{event.type}, read back")


async def what_a_backend_is_asked_stays_as_it_is(lab: BackendLab) -> None:
    messages = ({"role": "user", "content": "Hi", "metadata": {"n": [1]}},)
    asked = AgentBackendInput(task=TASK, messages=messages, inputs={"a": [1]})
    before = copy.deepcopy((asked.messages, asked.inputs))
    async with lab.backend() as backend:
        await said(backend, asked)
    same((asked.messages, asked.inputs), before, "the input after the call")


async def one_backend_answers_again_and_again(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        texts = {text(await told(backend)) for _ in range(3)}
    same(len(texts), 1, "the number of different answers to one question")


async def answers_at_once_do_not_mix(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        alone = text(await told(backend))
        at_once = await asyncio.gather(*(told(backend) for _ in range(3)))
        same([text(events) for events in at_once], [alone] * 3, "three answers at once")


async def a_session_is_of_its_backend(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        session = await begun(backend)
        same((session.backend, session.status), (backend.kind, "active"), "a new session")
        check(session.id, "a session has an id")


async def two_sessions_are_two(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        first, second = await begun(backend), await begun(backend)
        check(first.id != second.id, f"two sessions have the id {first.id!r}")


async def a_session_is_resumed_as_itself(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        session = await begun(backend)
        resume = getattr(backend, "resume", None)
        if resume is None:
            return
        resumed = await awaited(resume(session, HELLO, start_context()))
        found = (resumed.id, resumed.backend, resumed.status)
        same(found, (session.id, backend.kind, "active"), "the session that was resumed")


async def a_resumed_session_answers(lab: BackendLab) -> None:
    store = InMemoryRuntimeSessionStore()
    async with lab.backend() as backend:
        first = await told(backend, session=SessionChoice(store))
        session = final(first).session
        assert session is not None
    async with lab.backend() as backend:
        events = await told(backend, session=SessionChoice(store, session.id, resume=True))
        check("session_resumed" in [event.type for event in events], "it was begun anew")
        grammatical(events, WHOLE)


async def a_failure_is_raised_behind_what_was_said(lab: BackendLab) -> None:
    async with lab.backend("fails") as backend:
        events = await told(backend)
    grammatical(events, FAILED)
    end = final(events)
    same(end.status, "failed", "the status of an answer that was broken off")
    check(end.text, "what was said before the failure is there")


async def a_backend_that_failed_can_be_asked_again(lab: BackendLab) -> None:
    async with lab.backend("fails") as backend:
        texts = {text(await told(backend)) for _ in range(2)}
    same(len(texts), 1, "the number of different answers")


async def a_signal_ends_an_answer_that_hangs(lab: BackendLab) -> None:
    signal = CancelSignal()
    async with lab.backend("hangs") as backend:
        watched = Watched(backend)
        stream = run_agent_task_stream(TASK, watched, input=HELLO, signal=signal)
        async with asyncio.timeout(PATIENCE_S):
            events, reading = await _read_to_silence(stream)
            signal.cancel("enough")
            await reading
        same(final(events).status, "aborted", "the status of an answer that was cancelled")
        check(watched.is_over, "the call goes on although nobody wants its answer")


async def who_leaves_early_ends_the_call(lab: BackendLab) -> None:
    async with lab.backend("hangs") as backend:
        watched = Watched(backend)
        stream = run_agent_task_stream(TASK, watched, input=HELLO)
        async with asyncio.timeout(PATIENCE_S), aclosing(stream):
            _, reading = await _read_to_silence(stream)
            reading.cancel()
            await asyncio.wait({reading})
        check(watched.is_over, "the call goes on although nobody reads its answer")


async def _read_to_silence(
    stream: AsyncGenerator[RuntimeStreamEvent, None],
) -> tuple[list[Any], asyncio.Task[None]]:
    """Return what came until there was text and then silence, and the task that reads on."""
    events: list[Any] = []
    has_text = asyncio.Event()

    async def read() -> None:
        async for event in stream:
            events.append(event)
            if event.type == "text_delta":
                has_text.set()

    reading = asyncio.create_task(read())
    texts = asyncio.create_task(has_text.wait())
    await asyncio.wait({reading, texts}, return_when=asyncio.FIRST_COMPLETED)
    texts.cancel()
    await asyncio.wait({reading}, timeout=SILENCE_S)
    check(not reading.done(), "an answer that is to hang has ended")
    return events, reading


async def to_stop_is_harmless_however_often(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        stop = getattr(backend, "stop", None)
        if stop is None:
            return
        session = await begun(backend)
        for _ in range(2):
            await awaited(stop(session, "enough"))
        check(text(await said(backend)), "behind a stop, another session answers")


async def usage_is_counted_and_never_invented(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        calls = [each for each in await said(backend) if isinstance(each, LlmCallEvent)]
    for call in calls:
        counts = [each for each in (call.tokens_in, call.tokens_out) if each is not None]
        check(counts, "a call whose tokens nobody has counted is not told")
        check(call.model, "a call names its model")
        amounts = [*counts, *(each for each in (call.cost_usd,) if each is not None)]
        check(all(each >= 0 for each in amounts), f"an amount of {call!r:.120} is negative")


async def a_result_of_a_tool_belongs_to_a_call(lab: BackendLab) -> None:
    called: set[str | None] = set()
    async with lab.backend() as backend:
        for event in await said(backend):
            if isinstance(event, ToolCallEvent):
                check(event.tool_name, "a call names its tool")
                called.add(event.tool_call_id)
            elif isinstance(event, ToolResultEvent):
                check(event.tool_call_id in called, f"{event.tool_call_id!r} was never called")
