"""A loop over a provider that refuses results of tools without the thoughts that led to them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import pytest

from perdure.agent.model_backend import ModelOptions
from perdure.agent.tool_loop import ToolLoop
from perdure.agent.tool_model import REPLAY_BYTES_MAX
from perdure.backends.anthropic import AnthropicBackend
from perdure.backends.protocol import Prompt
from perdure.backends.retry import BackendRetry
from perdure.backends.scripted import ScriptedBackend
from perdure.core import frames
from perdure.core.frames import Frame
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from tests.agent.looping import PURE, run
from tests.backends.messaging import STOP, begun, block, changed, delta, end, wire
from tests.turn.stage import COMPLETED, Stage, finish

SEARCH = {"type": "web_search_20250305", "name": "web_search"}
THINKING = ModelOptions(
    tools=(SEARCH,), extra_body={"thinking": {"type": "enabled", "budget_tokens": 1024}}
)


class ThoughtfulProvider:
    """Thinks, calls `degrees` twice, and answers; it signs its thoughts and wants them back."""

    def __init__(self, *, failing_at: int | None = None) -> None:
        self.prompts: list[dict[str, Any]] = []
        self.failing_at = failing_at

    def backend(self) -> AnthropicBackend:
        client = httpx2.AsyncClient(transport=httpx2.MockTransport(self._answer))
        return AnthropicBackend(model="m", client=client, retry=BackendRetry(tries_max=1))

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        prompt = json.loads(request.content)
        self.prompts.append(prompt)
        said = [each for each in prompt["messages"] if each["role"] == "assistant"]
        for number, message in enumerate(said):
            first = message["content"][0]
            if first.get("signature") != f"signed {number}":
                return httpx2.Response(400, json={"error": {"message": f"no thought: {first}"}})
        if len(said) == self.failing_at or "thinking" not in prompt:
            return httpx2.Response(400, json={"error": {"message": "not now"}})
        return httpx2.Response(
            200, content=_thoughtful(len(said)), headers={"content-type": "text/event-stream"}
        )


def _thoughtful(number: int) -> bytes:
    thinking = [
        begun(),
        block(0, "thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="Hm."),
        delta(0, "signature_delta", signature=f"signed {number}"),
        end(0),
    ]
    if number == 2:
        said = [block(1, "text", text="It is warm."), end(1), changed("end_turn"), STOP]
    else:
        asked = {"city": f"Faro {number}"}
        call = block(1, "tool_use", id="toolu", name="degrees", input=asked)
        said = [call, end(1), changed("tool_use"), STOP]
    return wire(*thinking, *said)


@pytest.fixture
def store() -> RunStore:
    return MemoryStore(MemoryData())


async def test_signed_thoughts_come_back_with_the_results(store: RunStore) -> None:
    provider = ThoughtfulProvider()
    result = await run(store, ToolLoop(provider.backend(), [PURE], options=THINKING))
    assert (result.text, result.model_calls, result.tool_calls) == ("It is warm.", 3, 2)
    assert provider.prompts[0]["tools"][0] == SEARCH
    # Two calls of one id are told apart, and what any provider is shown has no thoughts.
    made = [call["id"] for each in result.messages for call in each.get("tool_calls", ())]
    assert made == ["toolu", "toolu_2"]
    assert "signed" not in json.dumps(result.messages)


async def test_thoughts_outlive_the_process_that_heard_them(store: RunStore) -> None:
    first = ThoughtfulProvider(failing_at=1)
    with pytest.raises(Exception, match="400"):
        await run(store, ToolLoop(first.backend(), [PURE], options=THINKING))
    second = ThoughtfulProvider()
    result = await run(store, ToolLoop(second.backend(), [PURE], options=THINKING))
    assert result.text == "It is warm."
    assert len(second.prompts) == 2


async def test_thoughts_come_back_within_a_turn_and_readers_see_no_signature() -> None:
    data, provider = MemoryData(), ThoughtfulProvider()

    async def open_handle(clock: ManualClock) -> RunStore:
        return MemoryStore(data, clock=clock)

    async with Stage(open_handle) as stage:
        loop = ToolLoop(provider.backend(), [PURE], options=THINKING)
        reader = await finish(await stage.engine(loop))
        assert (reader.text, reader.kinds[-1]) == ("It is warm.", COMPLETED)
        assert "signed" not in str(await stage.frames())


async def test_thoughts_that_are_too_long_to_keep_lose_no_answer(
    store: RunStore, caplog: pytest.LogCaptureFixture
) -> None:
    replay = {"backend": "scripted", "content": ["x" * REPLAY_BYTES_MAX]}
    shown: list[Prompt] = []

    async def model(prompt: Prompt) -> AsyncGenerator[Frame, None]:
        shown.append(prompt)
        if len(shown) == 1:
            yield frames.tool_call("c1", "degrees", {"city": "Faro"})
            yield frames.upstream_end("tool_calls", replay=replay)
        else:
            yield frames.text("Warm.")
            yield frames.upstream_end("stop")

    class Model(ScriptedBackend):
        def stream(self, prompt: Prompt) -> AsyncGenerator[Frame, None]:
            return model(prompt)

    assert (await run(store, ToolLoop(Model([]), [PURE]))).text == "Warm."
    assert all("replay" not in message for message in shown[1].messages)
    assert "cannot be given back" in caplog.text
