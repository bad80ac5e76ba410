"""The scripted backend: the same frames for the same question, and exact scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from perdure.backends.protocol import Backend, Prompt
from perdure.backends.scripted import Pause, ScriptedBackend, ScriptItem, word_pieces
from perdure.core.frames import Frame, fold_parts, text, text_of, tool_result, upstream_end
from perdure.errors import BackendTransportError

QUESTIONS = (
    "What is the weather in Oslo?",
    "17 * 23",
    "Hello!",
    "Write some python code",
    "A table, please",
    "Tell me a long story",
    "Make a plan",
    "zzz",
    "",
)


def conversation(*turns: str) -> Prompt:
    messages: list[dict[str, str]] = []
    for turn in turns:
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": "Fine."}]
    return Prompt(messages[:-1])


async def frames_of(backend: Backend, prompt: Prompt) -> list[Frame]:
    return [frame async for frame in backend.stream(prompt)]


def answer_text(frames: Sequence[Frame]) -> str:
    return text_of(fold_parts(frames))


def test_it_is_a_backend() -> None:
    assert isinstance(ScriptedBackend(), Backend)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_every_answer_has_the_grammar_of_a_backend(question: str) -> None:
    frames = await frames_of(ScriptedBackend(), conversation(question))
    kinds = [frame.kind for frame in frames]
    assert kinds[-2:] == ["usage", "upstream_end"]
    assert kinds.count("usage") == kinds.count("upstream_end") == 1
    assert "reasoning" in kinds
    assert answer_text(frames)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_the_same_question_gets_the_same_frames(question: str) -> None:
    first = await frames_of(ScriptedBackend(), conversation("Before", question))
    assert await frames_of(ScriptedBackend(), conversation("Before", question)) == first


@pytest.mark.parametrize("question", QUESTIONS)
async def test_usage_counts_the_tokens_that_were_yielded(question: str) -> None:
    frames = await frames_of(ScriptedBackend(), conversation(question))
    pieces = [frame for frame in frames if frame.kind in {"text", "reasoning"}]
    calls = [frame for frame in frames if frame.kind == "tool_call"]
    used = frames[-2].data
    assert used["reasoning"] == sum(frame.kind == "reasoning" for frame in frames)
    assert (used["out"] == len(pieces)) is not bool(calls)
    assert used["out"] >= len(pieces)
    assert used["model"] == "scripted-1"
    assert used["provider"] == "scripted"


async def test_a_longer_history_is_counted_as_input() -> None:
    short = await frames_of(ScriptedBackend(), conversation("Hello"))
    long = await frames_of(ScriptedBackend(), conversation("One two three", "Hello"))
    assert long[-2].data["in"] == short[-2].data["in"] + len(word_pieces("One two threeFine."))


async def test_an_answer_shows_the_message_and_the_earlier_turns() -> None:
    backend = ScriptedBackend()
    first = answer_text(await frames_of(backend, conversation("Where am I?")))
    third = answer_text(await frames_of(backend, conversation("One", "Two", "Where am I?")))
    assert "“Where am I?”" in first
    assert "first turn" in first
    assert "“Where am I?”" in third
    assert "turn 3" in third
    assert "“Two”" in third


async def test_weather_is_asked_of_a_pure_tool() -> None:
    frames = await frames_of(ScriptedBackend(), conversation("The weather in Oslo?"))
    call, result = (frame.data for frame in frames if frame.kind.startswith("tool_"))
    assert call["name"] == "get_weather"
    assert call["args"] == {"city": "Oslo"}
    assert call["effect"] == "pure"
    assert result["call"] == call["call"]
    assert result["result"]["city"] == "Oslo"


@pytest.mark.parametrize(
    ("question", "value"), [("12*34", 408), ("what is 7 - 9?", -2), ("1 + 1", 2), ("3 x 4", 12)]
)
async def test_a_sum_is_calculated(question: str, value: int) -> None:
    frames = await frames_of(ScriptedBackend(), conversation(question))
    assert tool_result("call_calculate", {"value": value}) in frames
    assert f"**{value}**" in answer_text(frames)


@pytest.mark.parametrize(
    ("question", "markdown"),
    [
        ("table", "|:--|"),
        ("code", "```python"),
        ("plan", "1. **Say**"),
        ("hello", "こんにちは"),
        ("hello", "👩‍🚀"),
    ],
)
async def test_the_answers_show_what_a_page_must_render(question: str, markdown: str) -> None:
    frames = await frames_of(ScriptedBackend(), conversation(question))
    assert markdown in answer_text(frames)


async def test_one_answer_is_long() -> None:
    frames = await frames_of(ScriptedBackend(), conversation("A long story"))
    assert 600 <= frames[-2].data["out"] <= 1_000


async def test_content_given_as_parts_is_read() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "12*34"}]
    frames = await frames_of(ScriptedBackend(), Prompt([{"role": "user", "content": parts}]))
    assert "“12*34”" in answer_text(frames)


async def test_a_long_message_is_quoted_in_short() -> None:
    frames = await frames_of(ScriptedBackend(), conversation("x" * 10_000))
    assert len(answer_text(frames)) < 2_000


@pytest.mark.parametrize("written", ["", " a  b\n\n c", "naïve नमस्ते 你好 👨‍👩‍👧‍👦!", "\x00\ud800"])
def test_word_pieces_join_to_the_text(written: str) -> None:
    assert "".join(word_pieces(written)) == written


async def test_a_script_is_played_as_it_stands() -> None:
    script: list[ScriptItem] = [text("Hel"), Pause(1), text("lo"), upstream_end("length")]
    backend = ScriptedBackend(script)
    for _ in range(2):
        played = await frames_of(backend, conversation("Hi"))
        assert played == [text("Hel"), text("lo"), upstream_end("length")]
    assert backend.calls == 2


async def test_a_script_may_be_a_function_of_the_prompt() -> None:
    backend = ScriptedBackend(lambda prompt: [text(prompt.messages[-1]["content"])])
    assert await frames_of(backend, conversation("Echo")) == [text("Echo")]


async def test_a_script_raises_its_exceptions_in_place() -> None:
    backend = ScriptedBackend([text("Hel"), BackendTransportError("cut", backend="scripted")])
    seen: list[Frame] = []

    async def read() -> None:
        async for frame in backend.stream(conversation("Hi")):
            seen.append(frame)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(BackendTransportError, match="cut"):
        await read()
    assert seen == [text("Hel")]


async def test_a_script_waits_for_its_events() -> None:
    gate = asyncio.Event()
    async with aclosing(ScriptedBackend([text("a"), gate, text("b")]).stream(Prompt([]))) as frames:
        assert await anext(frames) == text("a")
        following = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0)
        assert not following.done()
        gate.set()
        assert await following == text("b")


async def test_every_token_waits_for_the_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("perdure.backends.scripted.asyncio.sleep", sleep)
    await frames_of(ScriptedBackend([text("a"), text("b")], token_delay_ms=20), Prompt([]))
    assert waits == [0.02, 0.02]
