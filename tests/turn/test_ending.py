"""What is recorded of a turn's answer and its price, and what is told of its failure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.core.frames import Frame, reasoning, source, text, upstream_end, usage
from perdure.errors import (
    BackendTimeoutError,
    BackendTransportError,
    StepFailedError,
    StoreUnavailableError,
    UsageError,
)
from perdure.turn.ending import IdleTimeoutError, ProducerLostError, failure_of
from tests.turn.stage import COMPLETED, TURN, Reader, Script, Stage, finish, until, within

# What is recorded.


async def test_the_answer_is_recorded_with_its_parts_and_counted(stage: Stage) -> None:
    script = Script([reasoning("Hm. "), text("Hé😀"), source("u", "t"), upstream_end("stop")])
    await finish(await stage.engine(script))
    assert await stage.answer() == {
        "finalText": "Hé😀",
        "parts": [
            {"k": "reasoning", "part": "p1", "d": "Hm. "},
            {"k": "text", "part": "p2", "d": "Hé😀"},
            {"k": "source", "url": "u", "title": "t"},
        ],
        "finishReason": "stop",
    }
    outcome = (await stage.run()).outcome
    assert outcome is not None
    assert (outcome.notes, outcome.metadata) == ("chat:turn-0", {"chars": 4})


async def test_an_answer_without_text_is_an_answer(stage: Stage) -> None:
    reader = await finish(await stage.engine(Script([upstream_end("stop")])))
    assert (reader.text, reader.kinds[-1]) == ("", COMPLETED)
    assert await stage.answer() == {"finalText": "", "parts": [], "finishReason": "stop"}


async def test_a_call_is_intended_before_it_is_made_and_settled_with_the_end(
    stage: Stage,
) -> None:
    seen: list[Any] = []

    async def produce(_turn: Any) -> Any:
        seen.extend((await stage.details()).usage)
        return Script([text("a"), usage(model="m-1", tokens_in=3, request_id="r")])(_turn)

    engine = await stage.engine(produce)
    await within(
        Reader().follow((await engine.submit(TURN, "Hi", model="m")).lines(wire="envelope"))
    )
    assert [(row.call, row.state, row.step_index, row.model) for row in seen] == [
        (0, "intended", 0, "m")
    ]
    (row,) = (await stage.details()).usage
    assert (row.state, row.model, row.tokens_in, row.tokens_out) == ("settled", "m-1", 3, None)
    assert row.request_id == "r"


@pytest.mark.parametrize("ending", ["completed", "failed", "stopped", "drained"])
async def test_what_a_call_used_is_unknown_where_nobody_said_so(stage: Stage, ending: str) -> None:
    last: dict[str, Any] = {"completed": upstream_end("stop"), "failed": RuntimeError("no")}
    engine = await stage.engine(Script([text("a"), last.get(ending, asyncio.Event())]))
    await engine.submit(TURN, "Hi")
    await until(stage.frames)
    if ending == "stopped":
        await within(engine.stop(TURN))
    await within(engine.aclose(drain_ms=0 if ending == "drained" else 5_000))
    (row,) = (await stage.details()).usage
    assert (row.state, row.tokens_in, row.tokens_out) == ("unknown", None, None)


# What a reader is told of a failure.
INSIDE = "key sk-123 of 10.0.0.7"


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (RuntimeError(INSIDE), "internal", True),
        (KeyError(INSIDE), "internal", True),
        (BackendTransportError(INSIDE, backend="b", retryable=False), "transport", False),
        (BackendTimeoutError(INSIDE, backend="b"), "backend_timeout", True),
        (IdleTimeoutError(INSIDE), "idle_timeout", True),
        (ProducerLostError(INSIDE), "producer_lost", True),
        (StoreUnavailableError(INSIDE), "store_unavailable", True),
        (StepFailedError(INSIDE), "step_failed", False),
    ],
)
def test_a_reader_is_told_the_kind_of_a_failure_and_nothing_of_the_inside(
    caplog: pytest.LogCaptureFixture, error: Exception, code: str, retryable: bool
) -> None:
    failure = failure_of(error, expose=False)
    assert (failure.code, failure.retryable) == (code, retryable)
    assert "sk-123" not in str(failure)
    assert failure.ref in caplog.text
    assert INSIDE in caplog.text
    assert INSIDE in failure_of(error, expose=True).message


def test_a_reader_is_not_sent_to_a_message_that_it_does_not_get() -> None:
    failure = failure_of(UsageError(INSIDE), expose=False)
    begin = "A value that the caller gave is not acceptable. Its reference is "
    assert failure.message == f"{begin}{failure.ref}."


def test_a_step_that_failed_for_a_known_reason_says_that() -> None:
    error = StepFailedError(INSIDE)
    error.__cause__ = BackendTransportError(INSIDE, backend="b", retryable=False)
    failure = failure_of(error, expose=False)
    assert (failure.code, failure.retryable) == ("transport", False)


def test_the_frame_of_a_failure_is_what_readers_get() -> None:
    failure = failure_of(RuntimeError("no"), expose=False)
    assert failure.frame() == Frame(
        0,
        0,
        "failed",
        {"code": "internal", "message": failure.message, "retryable": True, "ref": failure.ref},
    )
