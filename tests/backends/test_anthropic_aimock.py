"""The Anthropic backend against an independent server of the protocol, which checks requests."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.backends.anthropic import AnthropicBackend
from perdure.backends.protocol import Prompt
from perdure.core.frames import Frame, fold_parts, text_of, tool_call, upstream_end
from tests.backends.aimock import Aimock

pytestmark = pytest.mark.node

THINKING = {"thinking": {"type": "enabled", "budget_tokens": 1_024}}
FUNCTION = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
CALL = {"id": "call_1", "type": "function", "function": FUNCTION}


async def ask(aimock: Aimock, *messages: dict[str, Any], **fields: Any) -> list[Frame]:
    backend = AnthropicBackend("sk-test", base_url=aimock.origin, model="claude-sonnet-4-5")
    try:
        return [frame async for frame in backend.stream(Prompt(list(messages), **fields))]
    finally:
        await backend.aclose()


def user(words: str) -> dict[str, Any]:
    return {"role": "user", "content": words}


async def test_an_answer_is_one_call(aimock: Aimock) -> None:
    frames = await ask(aimock, user("hello"))
    assert text_of(fold_parts(frames)) == "Hello there, this is a scripted streaming answer. 👋"
    assert frames[-1] == upstream_end("stop")
    (entry,) = aimock.journal()
    assert entry["response"]["status"] == 200


async def test_reasoning_is_told_apart_from_text(aimock: Aimock) -> None:
    parts = fold_parts(await ask(aimock, user("think"), extra_body=THINKING))
    assert [(part["k"], part["d"]) for part in parts] == [
        ("reasoning", "Let me think about it."),
        ("text", "Done thinking."),
    ]


@pytest.mark.parametrize("extra", [{}, THINKING], ids=["plain", "thinking"])
async def test_a_tool_is_called_and_answered(aimock: Aimock, extra: dict[str, Any]) -> None:
    asked = {"role": "system", "content": "Be brief."}, user("what is the weather")
    frames = await ask(aimock, *asked, extra_body=extra)
    assert tool_call("call_1", "get_weather", {"city": "Paris"}) in frames
    assert frames[-1] == upstream_end("tool_calls")
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    answered = {"role": "tool", "tool_call_id": "call_1", "content": "20"}
    # With thinking, a call without the thoughts behind it is what this server refuses.
    frames = await ask(aimock, *asked, called, answered, extra_body=extra)
    assert text_of(fold_parts(frames)) == "It is 20 °C in Paris."
    assert [entry["response"]["status"] for entry in aimock.journal()] == [200, 200]
