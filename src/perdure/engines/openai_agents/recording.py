"""What a run of agents records: each call of a model and of a tool, in the order of the answers."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from agents import FunctionTool, ModelResponse, Usage
from agents.items import TResponseOutputItem
from agents.tool import ToolOutputFileContent, ToolOutputImage, ToolOutputText
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel, TypeAdapter

from perdure.agent.calls import Recording
from perdure.core import frames, observing
from perdure.core.frames import Frame
from perdure.core.jsonvalue import decode_value, encode_value
from perdure.core.observing import Told
from perdure.core.records import Effect, JsonValue
from perdure.durable.scope import report_usage
from perdure.engines.showing import Showing
from perdure.errors import NotSerializableError
from perdure.turn.handout import Turn

ITEMS: Final[TypeAdapter[list[TResponseOutputItem]]] = TypeAdapter(list[TResponseOutputItem])
USAGE: Final[TypeAdapter[Usage]] = TypeAdapter(Usage)
OUTPUTS: Final[Mapping[str, type[BaseModel]]] = {
    kind.__name__: kind for kind in (ToolOutputText, ToolOutputImage, ToolOutputFileContent)
}

HANDOFF_FRAME: Final = "handoff"
"""The name of the `data` frame that says which agent has taken over."""

Invoke = Callable[[], Awaitable[Any]]


@dataclass(slots=True)
class Planned:
    """A tool call that a model asked for: its step has its position, and waits for its body."""

    step: Awaitable[Any]
    invoke: Invoke | None = None
    result: JsonValue = None
    is_made: bool = False


@dataclass(slots=True)
class Recorder:
    """Records what agents do within a durable run, or within a turn that shows it too.

    The calls of one answer take their positions when the answer is there, in its order; the SDK
    may begin them in any. One that is not begun (a human decides about it, a guardrail forbids
    it) is recorded as that, and takes a new position when it is.
    """

    run: Recording
    name: str
    effects: Mapping[str, Effect]
    turn: Turn | None = None
    showing: Showing | None = None
    model_calls: int = 0
    arguments: dict[str, str] = field(default_factory=dict[str, str])
    """By call id, the arguments with which a human approved it."""
    _planned: dict[str, Planned] = field(default_factory=dict[str, Planned])
    _numbers: dict[str, str] = field(default_factory=dict[str, str])
    _speaker: str | None = None

    async def begin(self, agent: str) -> str:
        """Return the intent of the next model call, once all that came before it is settled."""
        await self.settle()
        if self._speaker not in (None, agent):
            await self.show(frames.data(HANDOFF_FRAME, {"from": self._speaker, "to": agent}))
        self._speaker = agent
        self.model_calls += 1
        return f"{self.name}: {agent} model {self.model_calls}"

    async def plan(
        self, output: Sequence[TResponseOutputItem], tools: Mapping[str, FunctionTool]
    ) -> None:
        """Give each call of an answer its position, and show them, before the first one begins."""
        asked = [each for each in output if isinstance(each, ResponseFunctionToolCall)]
        mine = [each for each in asked if each.name in tools]
        for place, call in enumerate(mine, 1):
            self._numbers[call.call_id] = f"{self.model_calls}.{place}"
            self._plan(call.name, call.call_id)
        for call in mine:
            # The step says whether the call may be made again.
            arguments = arguments_of(call.arguments)
            await self.show(
                frames.tool_call(call.call_id, call.name, arguments, effect="idempotent")
            )

    def plan_again(self, calls: Sequence[tuple[str, str]]) -> None:
        """Give calls, by name and id, that a human has approved their positions."""
        for name, call_id in calls:
            if call_id in self._numbers:
                self._numbers[call_id] += "'"
                self._plan(name, call_id)

    async def call(self, call_id: str, name: str, invoke: Invoke) -> Any:
        """Return what the call has come to, made now or recorded."""
        if call_id not in self._planned:
            self._numbers.setdefault(call_id, f"{self.model_calls}.{call_id}")
            self._plan(name, call_id)
        planned = self._planned[call_id]
        planned.invoke, planned.is_made = invoke, True
        made = await planned.step
        planned.result = made["value"]
        return output_of(made)

    async def settle(self) -> None:
        """Show what the calls have come to, and record of those that were not begun just that."""
        settled, self._planned = self._planned, {}
        await asyncio.gather(*(each.step for each in settled.values() if not each.is_made))
        for call_id, each in settled.items():
            if each.is_made:
                await self.show(frames.tool_result(call_id, each.result))

    async def show(self, frame: Frame) -> None:
        """Show a frame to the readers of the turn, if it is one."""
        if self.showing is not None:
            await self.showing.show(frame)

    def drop(self) -> None:
        """Forget what was not begun: the run is over."""
        for planned in self._planned.values():
            if not planned.is_made and inspect.iscoroutine(planned.step):
                planned.step.close()
        self._planned.clear()

    def _plan(self, name: str, call_id: str) -> None:
        planned: list[Planned] = []

        async def body() -> JsonValue:
            invoke = planned[0].invoke
            observing.tell(Told(tool=name, call=call_id))
            return {"begun": False} if invoke is None else recorded_output(await invoke())

        step = self.run.step(
            f"{self.name}: {name} {self._numbers[call_id]}",
            body,
            kind="tool",
            effect=self.effects.get(name),
        )
        planned.append(Planned(step))
        self._planned[call_id] = planned[0]


# What is recorded.


def recorded_response(response: ModelResponse) -> dict[str, JsonValue]:
    """Return a model's response as it is recorded."""
    return {
        "output": [item.model_dump(mode="json", exclude_unset=True) for item in response.output],
        "usage": USAGE.dump_python(response.usage, mode="json", warnings=False),
        "responseId": response.response_id,
        "requestId": response.request_id,
    }


def response_of(recorded: Mapping[str, Any]) -> ModelResponse:
    """Return a recorded response."""
    return ModelResponse(
        output=ITEMS.validate_python(recorded["output"]),
        usage=USAGE.validate_python(recorded["usage"]),
        response_id=recorded["responseId"],
        request_id=recorded["requestId"],
    )


def report(response: ModelResponse, model: str | None) -> None:
    """Say what a model call used, to the ledger."""
    used = response.usage
    if used.requests:
        report_usage(
            model=model,
            tokens_in=used.input_tokens,
            tokens_out=used.output_tokens,
            # The SDK has 0 where a provider tells none of it.
            tokens_cached=used.input_tokens_details.cached_tokens or None,
            tokens_reasoning=used.output_tokens_details.reasoning_tokens or None,
            request_id=response.request_id,
        )


def recorded_output(output: Any) -> dict[str, JsonValue]:
    """Return a tool's output as it is recorded: the SDK's kinds and plain JSON, else its text."""
    if type(output).__name__ in OUTPUTS and isinstance(output, BaseModel):
        return {"kind": type(output).__name__, "value": output.model_dump(mode="json")}
    try:
        return {"value": decode_value(encode_value(output))}
    except NotSerializableError:
        return {"value": str(output)}


def output_of(recorded: Mapping[str, Any]) -> Any:
    """Return the tool's output that was recorded."""
    kind = OUTPUTS.get(recorded.get("kind", ""))
    return recorded["value"] if kind is None else kind.model_validate(recorded["value"])


def arguments_of(text: str) -> dict[str, JsonValue]:
    """Return a call's arguments, as a human is shown them."""
    try:
        found: Any = json.loads(text or "{}")
    except ValueError:
        found = None
    return cast("dict[str, JsonValue]", found) if isinstance(found, dict) else {"arguments": text}
