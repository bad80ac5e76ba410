"""The operations of an agent as steps: which kind each is, what it is called, what it reports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final, Literal, TypedDict, cast, get_args

from pydantic_ai import RunContext
from pydantic_ai.durable_exec import (
    DurableOperationId,
    JournalCallableOperationBackend,
    ModelCompactMessagesId,
    ModelRequestId,
    RoleBasedOperationConfig,
    ToolsetCallToolId,
)

from perdure.core import frames, observing
from perdure.core.frames import Frame
from perdure.core.observing import Told
from perdure.core.records import Effect, Retry
from perdure.durable.scope import report_usage
from perdure.engines.pydantic_ai.work import AgentWork, current_work
from perdure.engines.showing import Showing
from perdure.errors import UsageError

CONFIG_KEY: Final = "perdure"
"""Under which key a tool's metadata say how its step is to be."""

Body = Callable[[], Awaitable[object]]

stream_showing: ContextVar[Showing | None] = ContextVar("perdure_agent_stream", default=None)
"""Where the model stream that is consumed now shows its frames."""


class StepConfig(TypedDict, total=False):
    """How an operation is a step; what is missing is as for `DurableContext.step`, or `Turn.step`.

    `effect` counts for tools, and says whether a call that was interrupted is made again.
    """

    effect: Effect
    retry: Retry
    timeout_ms: int


class AgentOperations(JournalCallableOperationBackend[StepConfig]):
    """Executes each operation of an agent as a step of the work that it belongs to.

    The names of operations are Pydantic AI's for journals; numbered, they are the intents of the
    steps. They are stored: a change of them parks the runs that are under way.
    """

    def __init__(self, agent: str, *, model: StepConfig, event: StepConfig) -> None:
        self._agent = agent
        super().__init__(
            agent_name=agent,
            config=RoleBasedOperationConfig[StepConfig](
                model=model, event=event, capability={}, tool={}, resolve_tool=_tool_config
            ),
        )

    async def execute(
        self,
        *,
        operation_id: DurableOperationId,
        name: str,
        body: Body,
        cache_key: tuple[object, ...],
        config: StepConfig,
    ) -> object:
        work = current_work()
        if work is None:
            return await body()
        others: Any = {key: value for key, value in config.items() if key != "effect"}
        if isinstance(operation_id, ModelRequestId):
            request = work.next_number(f"{self._agent} model")
            intent = f"{name} #{request}"
            if work.turn is not None and operation_id.streaming:
                response = await _streamed(work, intent, body)
            else:
                response = await work.run.step(intent, _billed(body), kind="llm", **others)
            work.note_calls(self._agent, request, response)
            return response
        if isinstance(operation_id, ModelCompactMessagesId):
            intent = f"{name} #{work.next_number(name)}"
            return await work.run.step(intent, _billed(body), kind="llm", **others)
        if isinstance(operation_id, ToolsetCallToolId):
            tool, _, context, _ = cache_key
            call = cast("RunContext[Any]", context).tool_call_id
            number = work.number_of(self._agent, call)
            # The name of an MCP operation does not say which tool it calls.
            of_tool = name if name.endswith(f":{tool}") else f"{name}:{tool}"
            intent = f"{of_tool} #{number}"
            effect = config.get("effect")

            async def named() -> object:
                observing.tell(Told(tool=str(tool), call=call))
                return await body()

            return await work.run.step(intent, named, kind="tool", effect=effect, **others)
        return await work.run.step(f"{name} #{work.next_number(name)}", body, **others)


def _tool_config(
    operation_id: DurableOperationId, tool: object | None, tool_name: str
) -> StepConfig | Literal[False]:
    """Return what a tool's metadata say. Raises UsageError for what is no such thing."""
    metadata: Any = getattr(getattr(tool, "tool_def", None), "metadata", None) or {}
    found: Any = metadata.get(CONFIG_KEY, {})
    if found is False:
        return False
    if not isinstance(found, Mapping):
        raise UsageError(
            f"the metadata {CONFIG_KEY!r} of the tool {tool_name!r:.80} are a StepConfig, "
            f"like {{'effect': 'pure'}}, or False; not {found!r:.60}"
        )
    config = cast("Mapping[str, Any]", found)
    unknown = [key for key in config if key not in StepConfig.__annotations__]
    effect = config.get("effect")
    if unknown or (effect is not None and effect not in get_args(Effect)):
        allowed = ", ".join(StepConfig.__annotations__)
        raise UsageError(
            f"the metadata {CONFIG_KEY!r} of the tool {tool_name!r:.80} may say {allowed}, "
            f"the effect being {' or '.join(get_args(Effect))}; not {found!r:.80}"
        )
    return cast("StepConfig", dict(config))


# Model requests.


def _billed(body: Body) -> Body:
    """Return a body that says what its request has used."""

    async def billed() -> object:
        response = await body()
        _report(cast("Mapping[str, Any]", response))
        return response

    return billed


async def _streamed(work: AgentWork, intent: str, body: Body) -> Any:
    """Make a request as a streamed step of a turn, and return its recorded response."""
    assert work.turn is not None
    assert work.showing is not None
    responses: list[Any] = []

    async def request(shown: Showing) -> None:
        token = stream_showing.set(shown)
        try:
            response = cast("Mapping[str, Any]", await body())
        finally:
            stream_showing.reset(token)
        _report(response)
        if response["finish_reason"] is not None:
            await shown.show(frames.upstream_end(response["finish_reason"]))
        responses.append(response)

    def opened() -> AsyncIterator[Frame]:
        shown = Showing()
        return shown.frames(request(shown))

    stream = work.turn.stream(intent, opened, result=lambda _: responses[0])
    async for frame in stream:
        await work.showing.show(frame)
    return stream.result


def _report(response: Mapping[str, Any]) -> None:
    """Tell the ledger what a response has used, as far as its provider said."""
    used = response["usage"]
    if not any(used[key] for key in ("input_tokens", "output_tokens")):
        return
    reasoning = used.get("output_reasoning_tokens") or used["details"].get("reasoning_tokens")
    report_usage(
        provider=response["provider_name"],
        model=response["model_name"],
        tokens_in=used["input_tokens"],
        tokens_out=used["output_tokens"],
        tokens_cached=used["cache_read_tokens"] or None,
        tokens_cache_written=used["cache_write_tokens"] or None,
        tokens_reasoning=reasoning or None,
        request_id=response["provider_response_id"],
    )
