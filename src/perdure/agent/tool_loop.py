"""ToolLoop: a model that calls tools until it answers, with every call recorded once."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from perdure.agent.adapter import answer_of, resolve
from perdure.agent.calls import Recording
from perdure.agent.model_backend import ModelOptions
from perdure.agent.tool_approval import NotifyApprover
from perdure.agent.tool_calling import ToolBatch
from perdure.agent.tool_history import (
    Asking,
    Message,
    asked_in,
    call_message,
    check_messages,
    repaired,
    result_message,
)
from perdure.agent.tool_limits import CostUsd, Reached, ToolLimits, ToolLoopEnd, ToolMeter
from perdure.agent.tool_model import Answer, ModelCall, RecordedAnswer, Shown, passing_failures
from perdure.agent.tools import Tool, ToolOutcome
from perdure.backends.protocol import AttachableBackend, Backend, Prompt
from perdure.backends.replay import REPLAY, without_replay
from perdure.core import frames, identity
from perdure.core.frames import Frame
from perdure.core.records import JsonValue
from perdure.durable.context import DurableContext
from perdure.errors import UsageError

logger = logging.getLogger("perdure.agent")

LIMIT_FRAME: Final = "tool_loop_limit"
"""The name of the `data` frame that says which limit has ended a loop."""
NAME_CHARACTERS_MAX: Final = 64

OnFrame = Callable[[Frame], Awaitable[object] | object]


class ToolTurn(Recording, Asking, Protocol):
    """What the loop uses of a turn."""

    @property
    def model(self) -> str | None: ...
    def stream(
        self,
        intent: str,
        fn: Callable[[], AsyncIterator[Frame]],
        *,
        result: Callable[[Sequence[Frame]], Any],
    ) -> Answer: ...


MessagesOf = Callable[[Any], Sequence[Message] | Awaitable[Sequence[Message]]]
"""Makes of a Turn the messages that the model is asked with; plain or async."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLoopResult:
    """What a loop came to. `end` says why it ended, `detail` which limit was reached and how.

    `text` is the model's last text. `messages` is the whole conversation, valid for any provider,
    without the instructions. `cost_usd` is None if the cost of any call is not known. `work_ms` is
    how long the recorded calls took.
    """

    text: str
    end: ToolLoopEnd
    detail: str
    finish: str | None
    messages: tuple[Message, ...]
    model_calls: int
    tool_calls: int
    cost_usd: float | None
    work_ms: float


class ToolLoop:
    """Asks a model, calls the tools that it asks for, and asks again, until it answers.

    It is the producer of a durable turn (`ChatTurnEngine(store, produce=loop)`), and runs within
    a durable run with `run`. Each call of the model and of a tool is a step: recorded once, never
    made again once it is recorded. The tools of one answer are called at once, as many as `limits`
    allow.

    `tools` are functions, or Tools that declare more; a plain function is a Tool whose calls
    happen at most once. What a model does wrong (an unknown tool, arguments that do not fit) and
    what a tool raises is told to the model. Every history that goes to the provider is valid, and
    has what the provider wants back with the results, such as the signed thoughts of the model.

    `options` say how the model is to answer (its `tool_choice` holds for the first call only, its
    `tools` are those that the provider runs itself, such as a search of the web), and
    `limits` what the loop may use up; `cost_usd` gives the cost of a call. `notify` is told of each
    call that waits for a human, at least once. `messages_of` makes the messages of a turn (without
    the instructions) in place of its history and the user's message, with its attachments, say.
    `name` stands in the records, and tells the loops of one run apart.

    Raises UsageError for what cannot be used.
    """

    def __init__(
        self,
        backend: Backend,
        tools: Sequence[Tool | Callable[..., Any]],
        *,
        options: ModelOptions | None = None,
        limits: ToolLimits | None = None,
        cost_usd: CostUsd | None = None,
        notify: NotifyApprover | None = None,
        messages_of: MessagesOf | None = None,
        name: str = "loop",
    ) -> None:
        _check_given(options=(options, ModelOptions), limits=(limits, ToolLimits))
        _check_functions(cost_usd=cost_usd, notify=notify, messages_of=messages_of)
        if not callable(getattr(backend, "stream", None)):
            raise UsageError(f"backend must be a Backend, which has `stream`, not {backend!r:.60}")
        self.provider = backend.name
        self.model = backend.model
        self.shows_attachments = messages_of is not None
        self.backend = backend
        self.options = options or ModelOptions()
        self.limits = limits or ToolLimits()
        self.cost_usd = cost_usd
        self.notify = notify
        self.name = identity.check_id(name, name="name")
        if len(name) > NAME_CHARACTERS_MAX:
            raise UsageError(f"the name of a loop has {NAME_CHARACTERS_MAX} characters at the most")
        self.tools = _named(tools)
        self._messages_of = messages_of
        if any(tool.get("type", "function") == "function" for tool in self.options.tools):
            raise UsageError(
                "the tools of a loop are given to the loop; those in its options the provider runs"
            )
        if self.limits.cost_usd_max is not None and cost_usd is None:
            raise UsageError("cost_usd_max needs `cost_usd`, which gives the cost of a call")

    async def __call__(self, turn: ToolTurn) -> AsyncIterator[Frame]:
        """Answer a turn: text, reasoning and tools as frames, and one `data` frame for a limit."""
        if self._messages_of is None:
            way_out = "give ToolLoop `messages_of`"
            asked: Sequence[Message] = asked_in(turn, way_out=way_out)
        else:
            asked = await resolve(self._messages_of(turn))

        def ask(intent: str, call: ModelCall) -> Answer:
            return turn.stream(intent, call.open_kept, result=call.summary)

        work = _Work(self, turn, ask, messages=asked, model=turn.model)
        async for frame in work.frames():
            yield frame
        if work.reached is not None:
            yield frames.upstream_end(f"limit_{work.reached.end}")

    async def cancel(self, handle: JsonValue) -> None:
        """End an answer that goes on upstream: its turn was stopped, or has failed."""
        if isinstance(self.backend, AttachableBackend):
            await self.backend.cancel(handle)

    async def run(
        self,
        context: DurableContext,
        messages: str | Sequence[Message],
        *,
        model: str | None = None,
        on_frame: OnFrame | None = None,
    ) -> ToolLoopResult:
        """Run within a durable run, and return how the loop ended.

        `messages` is a question, or a conversation. `on_frame` is told what happens, as frames,
        in each attempt from the beginning; a failure of it disturbs nothing. The model is asked
        again, up to three times, when its answer is lost on the way. What concerns the run itself
        is raised, StepFailedError when the model does not answer, and UsageError, which names the
        message, for messages that are none.
        """
        asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages

        async def tell(frame: Frame) -> None:
            if on_frame is None:
                return
            try:
                await answer_of(on_frame, frame)
            except Exception as error:
                logger.warning("who is told of a tool loop failed: %r", error)

        def ask(intent: str, call: ModelCall) -> Answer:
            return RecordedAnswer(context, intent, call, tell=tell, retry=passing_failures())

        work = _Work(self, context, ask, messages=asked, model=model)
        async for frame in work.frames():
            await tell(frame)
        return work.result()


class _Work:
    """One loop under way; everything in it follows from what is recorded."""

    def __init__(
        self,
        loop: ToolLoop,
        run: Recording,
        ask: Callable[[str, ModelCall], Answer],
        *,
        messages: Sequence[Message],
        model: str | None,
    ) -> None:
        self.loop = loop
        self.run = run
        self.ask = ask
        self.messages = repaired(check_messages(messages))
        self.model = model
        self.meter = ToolMeter(loop.limits)
        self.reached: Reached | None = None
        self._text = ""
        self._finish: str | None = None
        self._ids = {message["tool_call_id"] for message in self.messages if _is_result(message)}

    async def frames(self) -> AsyncIterator[Frame]:
        """Work until the model answers or a limit is reached, and yield what readers see."""
        while self.reached is None:
            self.reached = self.meter.before_model_call()
            if self.reached is not None:
                break
            answer = self._ask()
            async for frame in _shown(answer):
                yield frame
            calls = self._heard(answer.result)
            if not calls:
                break
            batch = self._batch(calls)
            async for frame in batch.perform():
                yield frame
            self.meter.tools_called(batch.work_ms)
            for one in batch.planned:
                assert one.outcome is not None
                told = one.outcome.told(one.note)
                self.messages.append(result_message(one.call["id"], told))
        if self.reached is not None:
            if self.meter.leaves_an_answer(self.reached):
                answer = self._ask(is_last=True)
                async for frame in _shown(answer):
                    yield frame
                self._refuse(self._said(answer.result), self.reached)
            yield frames.data(LIMIT_FRAME, self.reached._asdict())

    def result(self) -> ToolLoopResult:
        """Return how it ended."""
        end = self.reached or Reached("answered", "")
        return ToolLoopResult(
            text=self._text,
            end=end.end,
            detail=end.detail,
            finish=self._finish,
            messages=tuple(without_replay(self.messages)),
            model_calls=self.meter.model_calls,
            tool_calls=self.meter.tool_calls,
            cost_usd=self.meter.cost_usd,
            work_ms=self.meter.work_ms,
        )

    def _ask(self, *, is_last: bool = False) -> Answer:
        loop, options = self.loop, self.loop.options
        messages = [*self.messages]
        if options.instructions is not None:
            messages.insert(0, {"role": "system", "content": options.instructions})
        # A choice that forces a call would otherwise force one for ever.
        choice = options.tool_choice if self.meter.model_calls == 0 else None
        prompt = Prompt(
            messages,
            self.model,
            tools=[*options.tools, *(tool.definition() for tool in loop.tools.values())],
            tool_choice="none" if is_last else choice,
            response_format=options.response_format,
            temperature=options.temperature,
            max_tokens=options.max_tokens,
            extra_body=options.extra_body,
        )
        call = ModelCall(
            loop.backend, prompt, limit_ms=self.meter.remaining_ms, cost_usd=loop.cost_usd
        )
        return self.ask(f"{loop.name}: model {self.meter.model_calls + 1}", call)

    def _heard(self, said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Take in an answer; return the calls to make, none if the loop is over."""
        calls = self._said(said)
        if said.get("cut"):
            self.reached = self.meter.time_is_over() or Reached("wall_time", "no time is left")
        elif calls:
            self.reached = self.meter.before_tools(calls, self._may_repeat)
        if self.reached is None:
            return calls
        self._refuse(calls, self.reached)
        return []

    def _said(self, said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Put an answer into the conversation; return its calls, none of them made."""
        self.meter.model_called(said)
        self._text, self._finish = said["text"], said["finish"]
        calls = [self._with_own_id(call) for call in said["calls"]]
        if calls or self._text:
            self.messages.append(call_message(self._text, calls, replay=said.get(REPLAY)))
        return calls

    def _refuse(self, calls: Sequence[Mapping[str, Any]], reached: Reached) -> None:
        told = f"the tool was not called, since the limit {reached.end!r} was reached"
        for call in calls:
            outcome = ToolOutcome.failed("not_called", told)
            self.messages.append(result_message(call["id"], outcome.told()))

    def _with_own_id(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the call with an id that no other call has: some providers count from 0 again."""
        wanted = call["id"] or "call"
        id, number = wanted, 1
        while id in self._ids:
            number += 1
            id = f"{wanted}_{number}"
        self._ids.add(id)
        return {**call, "id": id}

    def _may_repeat(self, name: str) -> bool:
        tool = self.loop.tools.get(name)
        return tool is not None and tool.may_repeat

    def _batch(self, calls: Sequence[Mapping[str, Any]]) -> ToolBatch:
        loop = self.loop
        return ToolBatch(
            self.run,
            loop.tools,
            calls,
            name=loop.name,
            number=self.meter.model_calls,
            limit_ms=self.meter.remaining_ms,
            at_once_max=loop.limits.calls_at_once_max,
            notify=loop.notify,
        )


async def _shown(answer: Answer) -> AsyncIterator[Frame]:
    shown = Shown()
    stream = aiter(answer)
    async with AsyncExitStack() as stack:
        close = getattr(stream, "aclose", None)
        if close is not None:
            stack.push_async_callback(close)
        async for frame in stream:
            for each in shown.of(frame):
                yield each


def _check_given(**given: tuple[object, type]) -> None:
    for name, (value, kind) in given.items():
        if value is not None and not isinstance(value, kind):
            raise UsageError(f"{name} must be {kind.__name__} or None, not {value!r:.60}")


def _check_functions(**given: object) -> None:
    for name, value in given.items():
        if value is not None and not callable(value):
            raise UsageError(f"{name} must be a function or None, not {value!r:.60}")


def _named(tools: Sequence[Tool | Callable[..., Any]]) -> dict[str, Tool]:
    if not isinstance(cast("object", tools), Sequence):
        raise UsageError(f"tools must be a list of functions and Tools, not {tools!r:.60}")
    named: dict[str, Tool] = {}
    for each in tools:
        tool = each if isinstance(each, Tool) else Tool(each)
        if tool.name in named:
            raise UsageError(f"two tools are named {tool.name!r}")
        named[tool.name] = tool
    return named


def _is_result(message: Message) -> bool:
    return message.get("role") == "tool" and isinstance(
        cast("JsonValue", message.get("tool_call_id")), str
    )
