"""What a model is asked that is to go on with an answer of its own."""

from __future__ import annotations

import asyncio
from typing import Any

from perdure.backends.openai import OpenAIBackend
from perdure.backends.protocol import AttachableBackend
from perdure.core.frames import Frame, reasoning, text, tool_call, tool_result, upstream_end
from perdure.turn.answering import GO_ON, answer_with, partial_messages
from perdure.turn.recovery import partial_of
from tests.turn.provider import ProvidedBackend, Provider
from tests.turn.stage import NEXT, Script, Stage, finish, has_frames, until, words


def messages_of(*frames: Frame) -> list[Any]:
    named = [
        frame._replace(data={**frame.data, "part": f"p{seq}"}) if "delta" in frame.data else frame
        for seq, frame in enumerate(frames)
    ]
    return partial_messages(partial_of(named).parts)


async def continued(stage: Stage, **options: Any) -> Any:
    """Interrupt the second turn of a session, let it go on, and return the prompt for that."""
    await finish(await stage.engine(Script(words("Hello."))))
    worker = await stage.worker(Script([text("It is"), asyncio.Event()]))
    await worker.engine.submit(NEXT, "And now?", model="m-2")
    await until(lambda: shown(stage))
    await worker.kill()
    stage.lapse()
    provider = Provider(words(" noon."))
    await provider.give()
    produce = answer_with(ProvidedBackend(provider), instructions="Be brief.", **options)
    engine = await stage.engine(produce, on_interrupted="continue")
    assert (await finish(engine, NEXT, "And now?", model="m-2")).text == "It is noon."
    (prompt,) = provider.prompts
    return prompt


async def shown(stage: Stage) -> bool:
    store = await stage.store()
    return await store.read_run("chat:s:1") is not None and bool(await stage.frames(NEXT))


ASKED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "It is"},
]


async def test_a_model_is_asked_by_a_user_message_to_go_on(stage: Stage) -> None:
    prompt = await continued(stage)
    assert list(prompt.messages) == [*ASKED, {"role": "user", "content": GO_ON}]
    assert prompt.model == "m-2"


async def test_a_model_that_accepts_it_is_handed_the_beginning_of_its_answer(stage: Stage) -> None:
    prompt = await continued(stage, accepts_prefill=True)
    assert list(prompt.messages) == ASKED


async def test_to_go_on_is_another_question_than_to_begin(stage: Stage) -> None:
    provider = Provider([text("Hel"), text("lo"), upstream_end("stop")])
    await provider.give(1)
    produce = answer_with(ProvidedBackend(provider))
    worker = await stage.worker(produce)
    await worker.engine.submit(NEXT._replace(turn_index=0), "Hi")
    await until(lambda: has_frames(stage, 1))
    await worker.kill()
    stage.lapse()
    kept, provider.cut = provider.given, lambda _frame: ()
    assert kept == 1
    await provider.give()
    await finish(await stage.engine(produce, on_interrupted="continue"))
    first, second = (prompt.idempotency_key for prompt in provider.prompts)
    assert first is not None
    assert second == f"{first}:3"


def test_tools_that_answered_are_shown_and_open_calls_and_reasoning_are_not() -> None:
    assert messages_of(
        reasoning("hm"),
        text("Let me look."),
        tool_call("c1", "search", {"q": "é"}),
        tool_result("c1", {"found": 1}),
        tool_call("c2", "search", {"q": "b"}),
        tool_result("c2", error={"code": "broken", "message": "no"}),
        tool_call("c3", "search", {}),
        text("It says"),
    ) == [
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "search", "arguments": '{"q": "\\u00e9"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": '{"found": 1}'},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c2",
                    "type": "function",
                    "function": {"name": "search", "arguments": '{"q": "b"}'},
                }
            ],
        },
        {
            "role": "tool",
            "tool_call_id": "c2",
            "content": '{"code": "broken", "message": "no"}',
        },
        {"role": "assistant", "content": "It says"},
    ]


def test_a_backend_is_attachable_by_what_it_can_do() -> None:
    assert isinstance(ProvidedBackend(Provider()), AttachableBackend)
    assert not isinstance(OpenAIBackend(), AttachableBackend)
