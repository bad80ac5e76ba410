"""run_turn against the reference's rules, for any events: lines verbatim, and the final text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.store.memory import MemoryStore
from perdure.turn.hooks import ChatTurnHooks
from perdure.turn.reference import durable_chat_turn_engine
from tests.turn.stage import TURN, until, within

Event = dict[str, Any]

NOT_TEXT: st.SearchStrategy[Any] = st.sampled_from([None, 5, ["x"], {"delta": "deep"}, True])
TEXTS = st.one_of(st.text(max_size=4), st.sampled_from(["a", "b\n", "", "\u2028", "\U0001f600"]))
PARTS = st.one_of(
    NOT_TEXT,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "reasoning", "tool", 3])},
        optional={"id": st.sampled_from(["p1", "p2", 3]), "text": st.one_of(TEXTS, NOT_TEXT)},
    ),
)
UPDATES = st.fixed_dictionaries(
    {"type": st.just("message.part.updated")},
    optional={
        "data": st.one_of(
            NOT_TEXT,
            st.fixed_dictionaries(
                {},
                optional={
                    "delta": st.one_of(TEXTS, NOT_TEXT),
                    "part": PARTS,
                    "extra": st.sampled_from([1, 1.5, 2**60]),
                },
            ),
        ),
        "more": st.just(1),
    },
)
RESULTS = st.fixed_dictionaries(
    {"type": st.just("result")},
    optional={
        "data": st.one_of(
            NOT_TEXT,
            st.fixed_dictionaries({}, optional={"finalText": st.one_of(TEXTS, NOT_TEXT)}),
        )
    },
)
OTHERS = st.fixed_dictionaries(
    {"type": st.sampled_from(["custom", "session.run.completed"])},
    optional={"data": st.one_of(NOT_TEXT, st.just({"delta": "no", "finalText": "no"}))},
)
EVENTS = st.lists(st.one_of(UPDATES, UPDATES, UPDATES, RESULTS, OTHERS), max_size=8)


def fields(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def accumulated(events: Sequence[Event]) -> str:
    """Return the final text as section 8 of the reference's contract says, and nothing else."""
    text = ""
    for event in events:
        data = fields(event.get("data"))
        delta, part = data.get("delta"), fields(data.get("part"))
        if event["type"] == "message.part.updated" and isinstance(delta, str) and delta:
            text += delta
        elif event["type"] == "message.part.updated" and part.get("type") == "text":
            text = part["text"] if isinstance(part.get("text"), str) else text
        elif event["type"] == "result" and isinstance(data.get("finalText"), str):
            text = data["finalText"]
    return text


async def tell(events: Sequence[Event]) -> tuple[list[Event], str]:
    """Return the lines of a turn whose producer yields `events`, and the text for its hooks."""

    async def produce() -> AsyncIterator[Event]:
        for event in events:
            yield json.loads(json.dumps(event))

    persisted: list[str] = []
    store = MemoryStore()
    body = durable_chat_turn_engine.run_turn(
        store=store,
        identity=TURN,
        user_message="Hi",
        project_id="p",
        hooks=ChatTurnHooks(
            produce=produce,
            persist_assistant_message=lambda turn: persisted.append(turn.final_text),
        ),
    )
    lines = b"".join([chunk async for chunk in body.body]).splitlines()
    await until(lambda: persisted)
    await store.close()
    return [json.loads(line) for line in lines], persisted[0]


@settings(max_examples=200, deadline=None)
@given(EVENTS)
def test_any_events_travel_verbatim_and_add_up_to_the_final_text(events: list[Event]) -> None:
    lines, text = asyncio.run(within(tell(events)))
    assert [lines[0]["type"], lines[-1]["type"]] == ["session.run.started", "session.run.completed"]
    assert [json.dumps(line) for line in lines[1:-1]] == [json.dumps(event) for event in events]
    assert text == accumulated(events)
