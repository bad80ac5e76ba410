"""What a session store keeps: sessions by their id, and the events of each, whole and in order."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final, cast

from perdure.agent.backend import AgentBackendContext, AgentBackendInput, IterableBackend
from perdure.agent.knowledge import UserQuestion
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import EventKeepingSessionStore, RuntimeSession, new_session, touched
from perdure.agent.stream import run_agent_task_stream
from perdure.agent.stream_events import (
    ArtifactEvent,
    FinalEvent,
    LlmCallEvent,
    QuestionsEndEvent,
    RuntimeStreamEvent,
    SessionCreatedEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
    event_to_wire,
)
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.core.secret import Secret
from perdure.testing.lab import check, same
from perdure.testing.session_store_lab import SessionStoreLab, session_in, texts_in

TASK: Final = AgentTaskSpec("t", "Answer", inputs={"a_b": [1, None, "ü"]})
MOMENT: Final = "2026-05-10T00:00:00.000Z"
EARLIER: Final = "2026-05-09T00:00:00.000Z"
KIND: Final = "demo"
PIECES: Final = 120
LONG_CHARS: Final = 100_000
ODD_IDS: Final = (
    *("a", "A", "a ", "a:1", "a:10", "a/1", "a b", "a_1", "a%", "_", "%", ".", "..", "CON", "0"),
    *("ü", "u\u0308", "null", '"', "'", "\\", "😀", "x" * 200),
)
ODD_TEXTS: Final = (
    *(" ", "\n", "\r\n", "\t", "\x00", "a\x00b", "\x1b[31m", "\u2028\u2029", "\ufeff", "😀"),
    *('"', "'", "\\", "\\u0041", "%s {0} $1", "null", "data: x\n\n", "</script>", "e\u0301"),
)
ODD_VALUES: Final[JsonValue] = json.loads(
    '{"a_b": {"cD": [1, null, 0.5, true, false, -0.0, 1.0, 9007199254740991]},'
    ' "empty": ["", [], {}, null], "": "a key without a name"}'
)


async def what_was_never_put_is_not_there(lab: SessionStoreLab) -> None:
    store = await lab.open()
    same(await store.get("s"), None, "a session that nobody has put")
    same(list(await store.list_events("s")), [], "its events")


async def what_was_put_last_is_got(lab: SessionStoreLab) -> None:
    store = await lab.open()
    first = new_session(KIND, session_id="s")
    await store.put(first)
    same(await store.get("s"), first, "the session")
    last = replace(first, status="completed", updated_at=MOMENT)
    await store.put(last)
    same(await store.get("s"), last, "the session that was put again")


async def a_session_comes_back_whole(lab: SessionStoreLab) -> None:
    whole = RuntimeSession("s", KIND, "failed", MOMENT, EARLIER, Secret("token-1"), ODD_VALUES)
    await (await lab.open()).put(whole)
    session = await session_in(await lab.open(), "s")
    same(session, whole, "the session")
    # Equal is not enough: True equals 1, and 1.0 too.
    same(_json(session.metadata), _json(ODD_VALUES), "its metadata as JSON")


async def a_resume_token_comes_back_as_a_secret(lab: SessionStoreLab) -> None:
    await (await lab.open()).put(new_session(KIND, session_id="s", resume_token="token-1"))
    session = await session_in(await lab.open(), "s")
    same(session.resume_token, Secret("token-1"), "the token")
    check("token-1" not in repr(session), "the token is shown")


async def ids_are_taken_as_they_are(lab: SessionStoreLab) -> None:
    store = await lab.open()
    for number, id in enumerate(ODD_IDS):
        await store.put(new_session(KIND, session_id=id, metadata={"n": number}))
        await store.append_event(id, TextDeltaEvent(text=str(number)))
    for number, id in enumerate(ODD_IDS):
        found = await session_in(store, id)
        same((found.id, found.metadata), (id, {"n": number}), f"the session {id!r:.20}")
        same(await texts_in(store, id), [str(number)], f"the events of {id!r:.20}")
    for id in ("b", "a:", "a:100", "s"):
        same(await store.get(id), None, f"the session {id!r}, which nobody has put")


async def events_come_back_in_order(lab: SessionStoreLab) -> None:
    store = await lab.open()
    await store.put(new_session(KIND, session_id="s"))
    texts = [str(number) for number in range(PIECES)]
    for text in texts:
        await store.append_event("s", TextDeltaEvent(text=text))
    same(await texts_in(store, "s"), texts, "the events")


async def events_are_in_the_order_in_which_they_came_whatever_their_times(
    lab: SessionStoreLab,
) -> None:
    store = await lab.open()
    await store.put(new_session(KIND, session_id="s"))
    moments = (MOMENT, EARLIER, None, EARLIER, MOMENT)
    for number, moment in enumerate(moments):
        await store.append_event("s", TextDeltaEvent(text=str(number), timestamp=moment))
    expected = [str(number) for number in range(len(moments))]
    same(await texts_in(store, "s"), expected, "the events of a clock that was set back")


async def events_come_back_whole(lab: SessionStoreLab) -> None:
    session = new_session(KIND, session_id="s")
    known: dict[str, Any] = {"task": TASK, "session": session, "timestamp": MOMENT}
    events: list[RuntimeStreamEvent] = [
        SessionCreatedEvent(**known),
        ToolCallEvent(**known, tool_name="find", tool_call_id="c", args=ODD_VALUES),
        ToolResultEvent(**known, tool_name="find", tool_call_id="c", result={"x": "ü\u2028"}),
        ToolResultEvent(**known, tool_name="find", tool_call_id="d", result=False),
        LlmCallEvent(**known, model="m", tokens_in=0, cost_usd=0.25),
        ArtifactEvent(**known, artifact_id="a", content="text", metadata={"x_y": 1}),
        FinalEvent(**known, status="failed", reason="broken", text="half"),
    ]
    store = await lab.open()
    await store.put(session)
    for event in events:
        await store.append_event("s", event)
    kept = await (await lab.open()).list_events("s")
    same(len(kept), len(events), "the number of events")
    for found, event in zip(kept, events, strict=True):
        same(_json(event_to_wire(found)), _json(event_to_wire(event)), f"{event.type} as JSON")


async def odd_and_long_texts_come_back_as_they_were(lab: SessionStoreLab) -> None:
    store = await lab.open()
    await store.put(new_session(KIND, session_id="s"))
    texts = [*ODD_TEXTS, "ü" * LONG_CHARS]
    for text in texts:
        await store.append_event("s", TextDeltaEvent(text=text))
    kept = await texts_in(await lab.open(), "s")
    same(len(kept), len(texts), "the number of events")
    for found, text in zip(kept, texts, strict=True):
        same(len(found), len(text), f"the length of the text {text!r:.20}")
        check(found == text, f"the text {text!r:.40} came back as {found!r:.40}")


async def an_event_without_task_or_session_comes_back_without(lab: SessionStoreLab) -> None:
    store = await lab.open()
    session = new_session(KIND, session_id="s")
    await store.put(session)
    events = [
        TextDeltaEvent(text="a", task=TASK, session=session, timestamp=MOMENT),
        TextDeltaEvent(text="b"),
        TextDeltaEvent(text="c", task=TASK, session=touched(session, status="completed")),
    ]
    for event in events:
        await store.append_event("s", event)
    kept = await (await lab.open()).list_events("s")
    same([event_to_wire(each) for each in kept], [event_to_wire(each) for each in events], "events")


async def sessions_do_not_share_events(lab: SessionStoreLab) -> None:
    store = await lab.open()
    for id in ("s", "t"):
        await store.put(new_session(KIND, session_id=id))
        await store.append_event(id, TextDeltaEvent(text=id))
    same((await texts_in(store, "s"), await texts_in(store, "t")), (["s"], ["t"]), "the events")


async def to_put_a_session_again_keeps_its_events(lab: SessionStoreLab) -> None:
    store = await lab.open()
    session = new_session(KIND, session_id="s")
    await store.put(session)
    await store.append_event("s", TextDeltaEvent(text="kept"))
    await store.put(touched(session, status="completed"))
    same(await texts_in(store, "s"), ["kept"], "the events")


async def a_list_of_events_is_the_readers_own(lab: SessionStoreLab) -> None:
    store = await lab.open()
    await store.put(new_session(KIND, session_id="s"))
    await store.append_event("s", TextDeltaEvent(text="a"))
    listed = await store.list_events("s")
    await store.append_event("s", TextDeltaEvent(text="b"))
    same(len(listed), 1, "the events of a list that was read before another one came")
    if hasattr(listed, "clear"):
        cast("list[Any]", listed).clear()
    same(await texts_in(store, "s"), ["a", "b"], "the events")


async def what_was_handed_in_or_out_cannot_change_what_is_kept(lab: SessionStoreLab) -> None:
    store = await lab.open()
    values: dict[str, JsonValue] = {"list": [1]}
    before = copy.deepcopy(values)
    session = new_session(KIND, session_id="s", metadata=values)
    event = ToolCallEvent(tool_name="find", args=values)
    await store.put(session)
    await store.append_event("s", event)
    same(values, before, "what was handed to the store")
    values["list"].append(2)
    for _ in range(2):
        got = await session_in(store, "s")
        listed: Any = (await store.list_events("s"))[0]
        metadata: Any = got.metadata
        same(metadata, before, "the metadata of the session")
        same(listed.args, before, "the arguments of its event")
        metadata["list"].append(3)
        listed.args["list"].append(4)


async def the_secrets_of_events_are_not_shown(lab: SessionStoreLab) -> None:
    store = await lab.open()
    await store.put(new_session(KIND, session_id="s", resume_token="hush-token"))
    session = await session_in(store, "s")
    question = UserQuestion("q", "The key?", "needed", "r", "high", "credential", "a lot")
    await store.append_event(
        "s",
        QuestionsEndEvent(
            task=TASK,
            timestamp=MOMENT,
            questions=(question,),
            user_answers={"q": Secret("hush-answer")},
        ),
    )
    await store.append_event("s", TextDeltaEvent(text="a", session=session))
    kept = await (await lab.open()).list_events("s")
    same(len(kept), 2, "the number of events")
    shown = json.dumps([event_to_wire(each) for each in kept]) + repr(kept)
    check("hush" not in shown, "a secret is shown by an event that was kept")


async def a_stream_is_kept_as_it_was_told(lab: SessionStoreLab) -> None:
    store = await lab.open()
    told = await _streamed(store)
    kept = await (await lab.open()).list_events("s")
    wire = [event_to_wire(each) for each in told]
    begun = [each["type"] for each in wire].index("session_created")
    same([event_to_wire(each) for each in kept], wire[begun:], "the events from the session on")
    same((await session_in(store, "s")).status, "completed", "the status of the session")


async def a_session_is_resumed_by_another_handle(lab: SessionStoreLab) -> None:
    await _streamed(await lab.open())
    told = await _streamed(await lab.open(), resume=True)
    check("session_resumed" in [event.type for event in told], "the session was begun anew")
    kept = [event.type for event in await (await lab.open()).list_events("s")]
    same(kept.count("final"), 2, "the number of streams in the session")


# What the cases share.


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


async def _streamed(store: EventKeepingSessionStore, *, resume: bool = False) -> list[Any]:
    choice = SessionChoice(store, "s", resume=resume)
    stream = run_agent_task_stream(TASK, IterableBackend(KIND, _hello), session=choice)
    return [event async for event in stream]


async def _hello(
    input: AgentBackendInput, context: AgentBackendContext
) -> AsyncIterator[TextDeltaEvent]:
    yield TextDeltaEvent(text="Hel")
    yield TextDeltaEvent(text="lo")
