"""What a backend tells: a stream of its own events, the same each time, to a proper end."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import re
from typing import Any, Final

from perdure.agent.backend import AgentBackendInput
from perdure.agent.stream_events import (
    BACKEND_EVENTS,
    LlmCallEvent,
    ReasoningDeltaEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
    event_from_wire,
    event_to_wire,
)
from perdure.core.records import AgentTaskSpec
from perdure.testing.asking import (
    FAILED,
    TASK,
    WHOLE,
    begun,
    closing,
    final,
    gist,
    grammatical,
    said,
    streamed,
    text,
    told,
)
from perdure.testing.backend_lab import BackendLab
from perdure.testing.conforming import in_time
from perdure.testing.lab import check, same

MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)


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
    for each in deltas:
        check(each.text, f"a piece of it is empty: {each!r:.80}")
        check(_is_unicode(each.text), f"a character is cut in two: {each.text!r:.80}")


def _is_unicode(written: str) -> bool:
    try:
        written.encode()
    except UnicodeEncodeError:
        return False
    return True


async def an_answer_is_told_as_it_was_planned(lab: BackendLab) -> None:
    planned = lab.answer
    async with lab.backend() as backend:
        events = await told(backend)
    if planned.text is not None:
        same(text(events), planned.text, "the text of the answer")
    if planned.tools is not None:
        called = tuple(each.tool_name for each in events if isinstance(each, ToolCallEvent))
        same(called, planned.tools, "the tools that were called")
    calls = [each for each in events if isinstance(each, LlmCallEvent)]
    for name in ("tokens_in", "tokens_out"):
        expected = getattr(planned, name)
        if expected is not None:
            found = [getattr(call, name) for call in calls]
            known = [count for count in found if count is not None]
            same(sum(known) if known else None, expected, f"the {name} of all llm_call events")


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
            same(_through_json(event.type, wire), wire, f"{event.type} as JSON")
            same(event_to_wire(event_from_wire(wire)), wire, f"{event.type}, read back")


def _through_json(kind: str, wire: object) -> object:
    try:
        return json.loads(json.dumps(wire, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"this {kind} is no JSON ({error}): {wire!r:.200}") from error


async def a_moment_is_utc_text_with_milliseconds(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        for event in await said(backend):
            moment: Any = event.timestamp
            check(
                moment is None or (isinstance(moment, str) and MOMENT.fullmatch(moment)),
                f"the time of {event.type} is {moment!r:.40}, not as 2026-01-31T09:05:23.000Z",
            )


async def what_a_backend_is_asked_stays_as_it_is(lab: BackendLab) -> None:
    messages = ({"role": "user", "content": "Hi", "metadata": {"n": [1]}},)
    task = AgentTaskSpec(TASK.id, TASK.intent, inputs={"a": [1]}, metadata={"b": [1]})
    asked = AgentBackendInput(task=task, messages=messages, inputs={"a": [1]})
    before = copy.deepcopy((asked.messages, asked.inputs, task))
    async with lab.backend() as backend:
        session = await begun(backend, asked)
        metadata = copy.deepcopy(session.metadata)
        async with closing(streamed(backend, session, asked)) as events:
            await in_time(_read(events), "an answer")
    same((asked.messages, asked.inputs, task), before, "the input after the call")
    same(session.metadata, metadata, "the metadata of the session after the call")


async def _read(events: Any) -> list[Any]:
    return [event async for event in events]


async def one_backend_answers_again_and_again(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        first = gist(await told(backend))
        for _ in range(2):
            same(gist(await told(backend)), first, "the answer to the same question, asked again")


async def answers_at_once_do_not_mix(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        alone = gist(await told(backend))
        at_once = await asyncio.gather(*(told(backend) for _ in range(3)))
        same([gist(events) for events in at_once], [alone] * 3, "three answers at once")


async def a_failure_is_raised_behind_what_was_said(lab: BackendLab) -> None:
    async with lab.backend("fails") as backend:
        events = await told(backend)
    grammatical(events, FAILED)
    end = final(events)
    same(end.status, "failed", "the status of an answer that was broken off")
    check(end.text, "what was said before the failure is not there")
    whole = lab.answer.text
    if whole is not None:
        check(
            whole.startswith(end.text or ""),
            f"before the failure {end.text!r:.80} was said, no beginning of {whole!r:.80}",
        )


async def a_backend_that_failed_can_be_asked_again(lab: BackendLab) -> None:
    async with lab.backend("fails") as backend:
        texts = {text(await told(backend)) for _ in range(2)}
    same(len(texts), 1, "the number of different answers")


async def usage_is_counted_and_never_invented(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        calls = [each for each in await said(backend) if isinstance(each, LlmCallEvent)]
    for call in calls:
        counts: list[Any] = [each for each in (call.tokens_in, call.tokens_out) if each is not None]
        check(counts, f"a call whose tokens nobody has counted is not told: {call!r:.120}")
        check(call.model, f"a call names its model: {call!r:.120}")
        for count in counts:
            check(type(count) is int and count >= 0, f"no number of tokens: {count!r:.40}")
        cost: Any = call.cost_usd
        if cost is not None:
            check(
                type(cost) in (int, float) and math.isfinite(cost) and cost >= 0,
                f"no amount of money: {cost!r:.40}",
            )


async def a_result_of_a_tool_belongs_to_a_call(lab: BackendLab) -> None:
    called: list[str | None] = []
    async with lab.backend() as backend:
        for event in await said(backend):
            if isinstance(event, ToolCallEvent):
                id = event.tool_call_id
                check(event.tool_name, "a call names its tool")
                check(id is None or id not in called, f"two calls have the id {id!r:.40}")
                called.append(id)
            elif isinstance(event, ToolResultEvent):
                check(event.tool_call_id in called, f"{event.tool_call_id!r} was never called")
