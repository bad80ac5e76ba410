"""Backends with one planted fault each, and the case of the contract that must find it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

from perdure.agent.sessions import RuntimeSession, new_session, touched
from perdure.agent.stream_events import (
    ArtifactEvent,
    FinalEvent,
    LlmCallEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
)
from perdure.core.secret import Secret
from perdure.testing import BackendLab, Plan, PlannedAnswer


class SoundBackend:
    """Does as planned, with a session and tools of its own; the faults below change one thing."""

    def __init__(self, plan: Plan) -> None:
        self.kind = "sound"
        self.plan = plan
        self.calls = 0

    def start(self, input: Any, context: Any) -> Any:
        return new_session(self.kind, session_id=context.requested_session_id, resume_token="tok-1")

    async def resume(self, session: RuntimeSession, input: Any, context: Any) -> RuntimeSession:
        return touched(session, status="active")

    def stop(self, session: RuntimeSession, reason: str) -> Any: ...

    async def stream(self, input: Any, context: Any) -> AsyncIterator[Any]:
        self.calls += 1
        yield TextDeltaEvent(text="Hello")
        yield ToolCallEvent(tool_name="find", tool_call_id="c", args={"a": 1})
        yield ToolResultEvent(tool_name="find", tool_call_id="c", result=[1])
        async for event in self.rest(input, context):
            yield event
        yield LlmCallEvent(model="m", tokens_in=7, tokens_out=3)

    async def rest(self, input: Any, context: Any) -> AsyncIterator[Any]:
        if self.plan == "fails":
            raise ConnectionError("the line is dead")
        if self.plan == "hangs":
            await asyncio.Event().wait()
        for event in self.more(input, context):
            yield event

    def more(self, input: Any, context: Any) -> list[Any]:
        """Return what stands in the middle of an answer."""
        return []


class FailsOnItsOwn(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        raise ConnectionError("the line is dead")


class EndsTheTaskItself(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        done = FinalEvent(task=input.task, timestamp="", status="completed", reason="done")
        return [done]


class TellsAnEmptyPiece(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        return [TextDeltaEvent(text="")]


class HasAKindOfItsOwnEachTime(SoundBackend):
    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.kind = f"sound-{plan}"


class GivesAnObjectToATool(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        return [ToolCallEvent(tool_name="find", args={"a": object()})]


class ChangesWhatItIsAsked(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        for message in input.messages:
            message["metadata"]["n"].append(2)
        return []


class NumbersItsAnswers(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        return [TextDeltaEvent(text=f" {self.calls}")]


class MixesAnswers(SoundBackend):
    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.open = 0

    async def rest(self, input: Any, context: Any) -> AsyncIterator[Any]:
        self.open += 1
        await asyncio.sleep(0)
        async for event in super().rest(input, context):
            yield event
        yield TextDeltaEvent(text="." * self.open)
        await asyncio.sleep(0)
        self.open -= 1


class BeginsSessionsOfAnother(SoundBackend):
    def start(self, input: Any, context: Any) -> Any:
        return replace(super().start(input, context), backend="another")


class HasOneSessionForAll(SoundBackend):
    def start(self, input: Any, context: Any) -> Any:
        return replace(super().start(input, context), id="the-session")


class ResumesAnother(SoundBackend):
    async def resume(self, session: RuntimeSession, input: Any, context: Any) -> RuntimeSession:
        return cast("RuntimeSession", self.start(input, context))


class AnswersNewSessionsOnly(SoundBackend):
    resumed = False

    async def resume(self, session: RuntimeSession, input: Any, context: Any) -> RuntimeSession:
        self.resumed = True
        return touched(session, status="active")

    def more(self, input: Any, context: Any) -> list[Any]:
        if self.resumed:
            raise ConnectionError("this session is over")
        return []


class HidesItsFailures(SoundBackend):
    async def rest(self, input: Any, context: Any) -> AsyncIterator[Any]:
        if self.plan != "fails":
            async for event in super().rest(input, context):
                yield event


class IsOfNoUseBehindAFailure(SoundBackend):
    def stream(self, input: Any, context: Any) -> AsyncIterator[Any]:
        if self.calls and self.plan == "fails":
            raise ConnectionError("the client is closed")
        return super().stream(input, context)


class GoesOnWhenCancelled(SoundBackend):
    async def rest(self, input: Any, context: Any) -> AsyncIterator[Any]:
        while self.plan == "hangs":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                # Ends with the loop of the test, at its second cancellation.
                await asyncio.Event().wait()
        async for event in super().rest(input, context):
            yield event


class StopsOnlyOnce(SoundBackend):
    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.stopped = False

    def stop(self, session: RuntimeSession, reason: str) -> None:
        if self.stopped:
            raise ConnectionError("there is nothing to stop")
        self.stopped = True


class InventsUsage(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        return [LlmCallEvent(model="m", cost_usd=0.0)]


class TakesUsageBack(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        return [LlmCallEvent(model="m", tokens_in=-3)]


class HasResultsWithoutCalls(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        return [ToolResultEvent(tool_name="find", tool_call_id="lost", result=1)]


class NamesAnArtifactAfterWhatItIsAsked(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        return [ArtifactEvent(artifact_id="a", name=input.last_message)]


class NamesItsToolsAfterWhatItIsAsked(SoundBackend):
    async def stream(self, input: Any, context: Any) -> AsyncIterator[Any]:
        if self.plan == "fails":
            yield ToolCallEvent(tool_name=f"answer {input.last_message}")
        async for event in super().stream(input, context):
            yield event


class TellsItsToken(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        token = cast("Secret", context.session.resume_token)
        return [ToolCallEvent(tool_name="find", args={"token": token.reveal()})]


Fault = tuple[type[SoundBackend], str, str]
"""A backend, the case that finds what is wrong with it, and words in which it says so."""

FAULTS: list[Fault] = [
    (
        FailsOnItsOwn,
        "an_answer_keeps_to_the_grammar_of_streams",
        r"fit no grammar: .* backend_error task_end final \(the line is dead\)",
    ),
    (EndsTheTaskItself, "a_backend_tells_only_what_is_a_backends_to_tell", "FinalEvent"),
    (EndsTheTaskItself, "an_answer_keeps_to_the_grammar_of_streams", "'final', which only the"),
    (TellsAnEmptyPiece, "an_answer_has_text_and_no_empty_piece", "a piece of it is empty"),
    (HasAKindOfItsOwnEachTime, "a_kind_is_a_name_that_stays", "'sound-fails'"),
    (GivesAnObjectToATool, "every_event_is_plain_json_and_reads_back", "this tool_call is no JSON"),
    (ChangesWhatItIsAsked, "what_a_backend_is_asked_stays_as_it_is", "the input after the call"),
    (NumbersItsAnswers, "one_backend_answers_again_and_again", "asked again: .*'Hello 2'"),
    (MixesAnswers, "answers_at_once_do_not_mix", "three answers at once"),
    (BeginsSessionsOfAnother, "a_session_is_of_its_backend", "'another'"),
    (HasOneSessionForAll, "two_sessions_are_two", "'the-session'"),
    (ResumesAnother, "a_session_is_resumed_as_itself", "the session that was resumed"),
    (AnswersNewSessionsOnly, "a_resumed_session_answers", "this session is over"),
    (HidesItsFailures, "a_failure_is_raised_behind_what_was_said", "fit no grammar"),
    (IsOfNoUseBehindAFailure, "a_backend_that_failed_can_be_asked_again", "different answers"),
    (GoesOnWhenCancelled, "a_signal_ends_an_answer_that_hangs", "the call goes on"),
    (GoesOnWhenCancelled, "who_leaves_early_ends_the_call", "the call goes on"),
    (StopsOnlyOnce, "to_stop_is_harmless_however_often", "there is nothing to stop"),
    (InventsUsage, "usage_is_counted_and_never_invented", "nobody has counted"),
    (TakesUsageBack, "usage_is_counted_and_never_invented", "no number of tokens: -3"),
    (HasResultsWithoutCalls, "a_result_of_a_tool_belongs_to_a_call", "'lost' was never called"),
    (
        NamesAnArtifactAfterWhatItIsAsked,
        "what_a_backend_is_asked_does_not_reach_a_log",
        "shown by artifact",
    ),
    (
        NamesItsToolsAfterWhatItIsAsked,
        "what_a_backend_is_asked_does_not_reach_a_log_by_a_failure",
        "shown by tool_call",
    ),
    (TellsItsToken, "a_resume_token_stays_in_its_session", "token stands in an event"),
]

ANSWER = PlannedAnswer(text="Hello", tools=("find",), tokens_in=7, tokens_out=3)
"""What a sound backend answers."""


def opening(kind: Callable[[Plan], Any]) -> Callable[[Plan], Any]:
    return lambda plan: nullcontext(kind(plan))


def lab_of(kind: Callable[[Plan], Any]) -> BackendLab:
    return BackendLab(opening(kind), answer=ANSWER)
