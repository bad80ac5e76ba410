"""What the ledger says of a call, by what became of it: settled, or unknown, never left open."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from perdure.core.records import UsageRecord
from perdure.store.memory import MemoryStore
from perdure.turn.answering import answer_with
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.identity import ChatTurnIdentity
from tests.backends import messaging, responding
from tests.backends.model_server import Cut, Hang, ModelServer, Step, chunk, refusal, reply, sse
from tests.backends.official import APIS, KEY, Api, backend_of

TURN = ChatTurnIdentity("", "kitchen", "ada", 0)
RUN = "chat:kitchen:0"
COUNTED = {"choices": [], "usage": {"prompt_tokens": 15, "completion_tokens": 7}}
COUNTED_SO_FAR = {
    "usage": {
        "prompt_tokens": 15,
        "completion_tokens": 1,
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
}

EVENTS: dict[Api, Sequence[bytes]] = {
    "chat": [
        sse(each)
        for each in (chunk(content="Hel"), chunk(content="lo"), chunk("stop"), COUNTED, "[DONE]")
    ],
    "responses": [sse(each) for each in responding.HELLO],
    "messages": [messaging.wire(each) for each in messaging.HELLO],
}
TOKENS = {"chat": (15, 7), "responses": (9, 2), "messages": (15, 7)}
CUTS = [(api, count) for api in APIS for count in range(1, len(EVENTS[api]))]


async def settled(
    server: ModelServer, api: Api, *steps: Step, idle_timeout_ms: float = 30_000
) -> tuple[str, UsageRecord]:
    """Answer a turn by what the server sends, and return its state and its only usage row."""
    # A response that broke off is looked for again, and is not kept.
    server.will(reply(*steps), refusal(404))
    store = MemoryStore()
    backend = backend_of(api, server.base_url, idle_timeout_ms=idle_timeout_ms)
    engine = ChatTurnEngine(store, produce=answer_with(backend))
    submitted = await engine.submit(TURN, "Hi")
    told = b"".join([line async for line in submitted.lines()])
    await engine.aclose()
    await backend.aclose()
    assert KEY.encode() not in told
    run, details = await store.read_run(RUN), await store.read_details(RUN)
    assert run is not None
    assert KEY not in repr((run, details))
    await store.close()
    (usage,) = details.usage
    return run.state, usage


@pytest.mark.parametrize("api", APIS)
async def test_a_whole_answer_is_settled(server: ModelServer, api: Api) -> None:
    state, usage = await settled(server, api, *EVENTS[api])
    assert (state, usage.state) == ("completed", "settled")
    assert (usage.tokens_in, usage.tokens_out) == TOKENS[api]


@pytest.mark.parametrize("end", ["ends", "breaks", "stalls", "is malformed"])
@pytest.mark.parametrize(("api", "count"), CUTS)
async def test_what_is_not_known_of_a_broken_answer_is_unknown(
    server: ModelServer, api: Api, count: int, end: str
) -> None:
    more: dict[str, Sequence[Step]] = {
        "ends": [],
        "breaks": [Cut()],
        "stalls": [Hang()],
        "is malformed": [b"data: {oops\n\n"],
    }
    limit_ms = 400 if end == "stalls" else 30_000
    steps = [*EVENTS[api][:count], *more[end]]
    state, usage = await settled(server, api, *steps, idle_timeout_ms=limit_ms)
    # Of a chat completion nothing is missing once it has finished, but its usage may be.
    is_whole = api == "chat" and count >= 3 and end != "is malformed"
    assert state == ("completed" if is_whole else "failed")
    known = (usage.tokens_in, usage.tokens_out)
    if known == (None, None):
        assert usage.state == "unknown"
    else:
        assert usage.state == "settled"
        assert known != (0, 0)
    if api == "messages":
        # This provider counts what went in before it begins, and what came out at its end.
        assert usage.tokens_in == 15 or end == "breaks"
        assert usage.tokens_out == (7 if count == len(EVENTS[api]) - 1 else None) or end == "breaks"


@pytest.mark.parametrize("end", [[], [b"data: {oops\n\n"]], ids=["ends", "is malformed"])
async def test_what_is_counted_while_an_answer_comes_is_not_all_that_came_out(
    server: ModelServer, end: Sequence[Step]
) -> None:
    running = sse({**chunk(content="Hel"), **COUNTED_SO_FAR})
    state, usage = await settled(server, "chat", running, *end)
    assert (state, usage.state) == ("failed", "settled")
    assert (usage.tokens_in, usage.tokens_out, usage.tokens_reasoning) == (15, None, None)
