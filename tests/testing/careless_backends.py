"""More backends with one planted fault each: in what they count, keep, and leave behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from perdure.agent.sessions import RuntimeSession, touched
from perdure.agent.stream_events import (
    LlmCallEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
)
from perdure.testing import Plan
from tests.testing.broken_backends import Fault, SoundBackend

# What is told.


class LosesItsLastPiece(SoundBackend):
    async def stream(self, input: Any, context: Any) -> AsyncIterator[Any]:
        async for event in super().stream(input, context):
            yield replace(event, text="Hell") if isinstance(event, TextDeltaEvent) else event


class TellsItsPiecesBackwards(SoundBackend):
    async def stream(self, input: Any, context: Any) -> AsyncIterator[Any]:
        yield TextDeltaEvent(text="lo")
        async for event in super().stream(input, context):
            yield replace(event, text="Hel") if isinstance(event, TextDeltaEvent) else event


class TellsItsTextTwice(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        return [TextDeltaEvent(text="Hello")]


class LosesItsUsage(SoundBackend):
    async def stream(self, input: Any, context: Any) -> AsyncIterator[Any]:
        async for event in super().stream(input, context):
            if not isinstance(event, LlmCallEvent):
                yield event


class CountsItsUsageTwice(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        return [LlmCallEvent(model="m", tokens_in=7, tokens_out=3)]


class NamesToolsAnew(SoundBackend):
    async def stream(self, input: Any, context: Any) -> AsyncIterator[Any]:
        async for event in super().stream(input, context):
            named = isinstance(event, ToolCallEvent | ToolResultEvent)
            yield replace(event, tool_name="tool") if named else event


class BeginsFailuresAnew(SoundBackend):
    async def stream(self, input: Any, context: Any) -> AsyncIterator[Any]:
        if self.plan == "fails":
            yield TextDeltaEvent(text="Sorry. ")
        async for event in super().stream(input, context):
            yield event


class CutsCharacters(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        return [TextDeltaEvent(text="\ud83d"), TextDeltaEvent(text="\ude00")]


class TellsTimesAsNumbers(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        moment: Any = "1778371200000"
        return [ToolCallEvent(tool_name="find", tool_call_id="d", timestamp=moment)]


class CountsInFractions(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        half: Any = 3.5
        return [LlmCallEvent(model="m", tokens_in=half)]


class CostsInfinitely(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        return [LlmCallEvent(model="m", tokens_in=1, cost_usd=float("inf"))]


class GivesTwoCallsOneId(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        return [ToolCallEvent(tool_name="find", tool_call_id="c")]


class MixesTools(SoundBackend):
    """Has one place for the calls of all answers."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.waiting: list[ToolCallEvent] = []

    async def rest(self, input: Any, context: Any) -> AsyncIterator[Any]:
        async for event in super().rest(input, context):
            yield event
        self.waiting.append(ToolCallEvent(tool_name="look"))
        await asyncio.sleep(0)
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            yield call


class CountsForOthers(SoundBackend):
    """Has one meter for all answers."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.tokens_in = 0

    async def rest(self, input: Any, context: Any) -> AsyncIterator[Any]:
        async for event in super().rest(input, context):
            yield event
        self.tokens_in += 7
        await asyncio.sleep(0)
        yield LlmCallEvent(model="m", tokens_in=self.tokens_in)
        await asyncio.sleep(0)
        self.tokens_in = 0


class WritesIntoTheTask(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        for values in (input.task.inputs or {}).values():
            values.append(2)
        return []


class WritesIntoItsSession(SoundBackend):
    def start(self, input: Any, context: Any) -> Any:
        return replace(super().start(input, context), metadata={"calls": []})

    def more(self, input: Any, context: Any) -> list[Any]:
        context.session.metadata["calls"].append(1)
        return []


class NeverEnds(SoundBackend):
    async def rest(self, input: Any, context: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield None


class GivesACoroutine(SoundBackend):
    def stream(self, input: Any, context: Any) -> Any:
        async def events() -> list[Any]:
            return []

        return events()


# Its sessions.


class HangsInItsStart(SoundBackend):
    async def start(self, input: Any, context: Any) -> Any:
        await asyncio.Event().wait()


class TellsOfItsFirstSession(SoundBackend):
    first: RuntimeSession | None = None

    def more(self, input: Any, context: Any) -> list[Any]:
        self.first = self.first or context.session
        return [ToolCallEvent(tool_name="find", session=self.first)]


class BeginsAnewWhenItResumes(SoundBackend):
    async def resume(self, session: RuntimeSession, input: Any, context: Any) -> RuntimeSession:
        return replace(touched(session, status="active"), created_at="2020-01-01T00:00:00.000Z")


class LosesItsToken(SoundBackend):
    async def resume(self, session: RuntimeSession, input: Any, context: Any) -> RuntimeSession:
        return replace(touched(session, status="active"), resume_token=None)


class ResumesOnce(SoundBackend):
    async def resume(self, session: RuntimeSession, input: Any, context: Any) -> RuntimeSession:
        if session.metadata:
            raise ConnectionError("this session was resumed already")
        return replace(touched(session, status="active"), metadata={"resumed": True})


class ResumesOnlyWhatIsWhole(SoundBackend):
    async def resume(self, session: RuntimeSession, input: Any, context: Any) -> RuntimeSession:
        if session.status == "failed":
            raise ConnectionError("this session has failed")
        return touched(session, status="active")


# What is left behind.


class SaysGoodbye(SoundBackend):
    async def stream(self, input: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for event in super().stream(input, context):
                yield event
        finally:
            yield TextDeltaEvent(text="Bye")


class FailsToClose(SoundBackend):
    async def stream(self, input: Any, context: Any) -> AsyncIterator[Any]:
        is_whole = False
        try:
            async for event in super().stream(input, context):
                yield event
            is_whole = True
        finally:
            if not is_whole and self.plan == "answers":
                raise ConnectionError("there is nothing to close")


class IsSpentWhenItIsClosed(SoundBackend):
    is_spent = False

    async def stream(self, input: Any, context: Any) -> AsyncIterator[Any]:
        if self.is_spent:
            return
        self.is_spent = True
        async for event in super().stream(input, context):
            yield event
        self.is_spent = False


class TakesACancellationForAnEnd(SoundBackend):
    async def rest(self, input: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for event in super().rest(input, context):
                yield event
        except asyncio.CancelledError:
            return


class TakesACancellationForAFailure(SoundBackend):
    async def rest(self, input: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for event in super().rest(input, context):
                yield event
        except asyncio.CancelledError as error:
            raise ConnectionError("the call was cut off") from error


class LeavesATaskBehind(SoundBackend):
    async def rest(self, input: Any, context: Any) -> AsyncIterator[Any]:
        self.pinging = asyncio.create_task(self.ping())
        async for event in super().rest(input, context):
            yield event
        self.pinging.cancel()

    async def ping(self) -> None:
        # Ends with the loop of the test.
        await asyncio.Event().wait()


class BlocksTheLoop(SoundBackend):
    def more(self, input: Any, context: Any) -> list[Any]:
        time.sleep(0.25)
        return []


class HangsInItsStop(SoundBackend):
    async def stop(self, session: RuntimeSession, reason: str) -> None:
        await asyncio.Event().wait()


class StopsEverySession(SoundBackend):
    is_stopped = False

    def stop(self, session: RuntimeSession, reason: str) -> None:
        self.is_stopped = True

    async def rest(self, input: Any, context: Any) -> AsyncIterator[Any]:
        async for event in super().rest(input, context):
            yield event
        if self.is_stopped:
            raise ConnectionError("the line is closed")


PLANNED = "an_answer_is_told_as_it_was_planned"
CLOSED = "an_answer_that_is_closed_early_says_nothing_more"
CANCELLED = "a_call_that_is_cancelled_ends_cancelled"
RESUMED = "a_session_is_resumed_as_itself"

MORE_FAULTS: list[Fault] = [
    (LosesItsLastPiece, PLANNED, "text of the answer: expected 'Hello', found 'Hell'"),
    (TellsItsPiecesBackwards, PLANNED, "expected 'Hello', found 'loHel'"),
    (TellsItsTextTwice, PLANNED, "expected 'Hello', found 'HelloHello'"),
    (LosesItsUsage, PLANNED, "tokens_in of all llm_call events: expected 7, found None"),
    (CountsItsUsageTwice, PLANNED, "expected 7, found 14"),
    (NamesToolsAnew, PLANNED, r"tools that were called: expected \('find',\), found \('tool',\)"),
    (BeginsFailuresAnew, "a_failure_is_raised_behind_what_was_said", "'Sorry. Hello' was said"),
    (CutsCharacters, "an_answer_has_text_and_no_empty_piece", "a character is cut in two"),
    (TellsTimesAsNumbers, "a_moment_is_utc_text_with_milliseconds", "tool_call is '1778371200000'"),
    (CountsInFractions, "usage_is_counted_and_never_invented", "no number of tokens: 3.5"),
    (CostsInfinitely, "usage_is_counted_and_never_invented", "no amount of money: inf"),
    (CostsInfinitely, "every_event_is_plain_json_and_reads_back", "this llm_call is no JSON"),
    (GivesTwoCallsOneId, "a_result_of_a_tool_belongs_to_a_call", "two calls have the id 'c'"),
    (MixesTools, "answers_at_once_do_not_mix", "three answers at once.*tool_call look"),
    (CountsForOthers, "answers_at_once_do_not_mix", "three answers at once"),
    (WritesIntoTheTask, "what_a_backend_is_asked_stays_as_it_is", r"\{'a': \[1, 2\]\}"),
    (WritesIntoItsSession, "what_a_backend_is_asked_stays_as_it_is", "metadata of the session"),
    (NeverEnds, "an_answer_keeps_to_the_grammar_of_streams", "'sound' is not over after"),
    (GivesACoroutine, "an_answer_keeps_to_the_grammar_of_streams", "must return an async iterator"),
    (HangsInItsStart, "a_session_is_of_its_backend", "begin of a session is not over after"),
    (
        TellsOfItsFirstSession,
        "an_event_is_of_the_session_that_it_is_told_in",
        "session of tool_call",
    ),
    (BeginsAnewWhenItResumes, RESUMED, "id, kind, status and begin of the session"),
    (LosesItsToken, RESUMED, "lost its resume token"),
    (ResumesOnce, "a_resumed_session_answers", "this session was resumed already"),
    (
        ResumesOnlyWhatIsWhole,
        "a_session_that_failed_is_resumed_and_answers",
        "this session has failed",
    ),
    (SaysGoodbye, CLOSED, "async generator ignored GeneratorExit"),
    (FailsToClose, CLOSED, "there is nothing to close"),
    (IsSpentWhenItIsClosed, CLOSED, "the next is empty"),
    (TakesACancellationForAnEnd, CANCELLED, "as if it were whole"),
    (TakesACancellationForAFailure, CANCELLED, "the call was cut off"),
    (LeavesATaskBehind, "a_call_that_is_over_leaves_no_task_behind", "LeavesATaskBehind.ping"),
    (BlocksTheLoop, "an_answer_leaves_the_loop_to_others", "stops the event loop for"),
    (HangsInItsStop, "to_stop_is_harmless_however_often", "to stop a session is not over after"),
    (StopsEverySession, "to_stop_one_session_leaves_another_its_answer", "another session"),
]
