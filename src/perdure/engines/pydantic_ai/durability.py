"""PerdureDurability: the capability that makes an agent's requests and calls steps of a run."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping
from datetime import datetime
from typing import Any, Final

from pydantic_ai import CustomEvent, DeferredToolRequests, DeferredToolResults, RunContext
from pydantic_ai.agent import EventStreamHandler
from pydantic_ai.agent.abstract import AbstractAgent
from pydantic_ai.capabilities.abstract import WrapRunHandler
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    DurabilityEngineSpec,
    conversation_id_from_run_id,
    external_event_scope,
)
from pydantic_ai.messages import AgentStreamEvent, CapabilityEvent
from pydantic_ai.models import Model
from pydantic_ai.run import AgentRunResult
from pydantic_ai.tools import AgentDepsT

from perdure.agent.tool_approval import NotifyApprover
from perdure.core.effects import iso_time, system_clock
from perdure.engines.pydantic_ai.asking import Approving, EventWaiter
from perdure.engines.pydantic_ai.operations import (
    CONFIG_KEY,
    AgentOperations,
    StepConfig,
    stream_showing,
)
from perdure.engines.pydantic_ai.shown import done_in, tapped
from perdure.engines.pydantic_ai.work import claim_work, current_work

_OVERRIDDEN: Final = (
    "_bind_to_agent", "_dispatch_event_stream_event", "_model_stream_event_handler"
)  # fmt: skip
"""What is Pydantic AI's for engines, but not in the list of its public names."""

for _name in _OVERRIDDEN:
    if not hasattr(BaseDurabilityCapability, _name):
        raise ImportError(
            f"this version of Pydantic AI has no {_name}, without which events are lost: "
            "pip install -U 'perdure[pydantic-ai]'"
        )


class PerdureDurability(BaseDurabilityCapability[AgentDepsT]):
    """Makes an agent durable: `Agent(…, name=…, capabilities=[PerdureDurability()])`.

    Within `durably(ctx)`, or as the producer of a turn by AgentTurns, each model request is a step
    (kind "llm", billed), and so is each call of a tool (kind "tool"), of any toolset and MCP
    server: recorded once, not made again when it is. Elsewhere the agent is as it was, and one
    that a step's body runs is part of that step.

    A tool's metadata, `{"perdure": StepConfig}`, say its `effect`, `retry` and `timeout_ms`;
    `{"perdure": False}` has the tool run outside of any step, again in every attempt. Without, an
    interrupted call is made again in a run, and fails a turn, as everywhere in Perdure.
    `model_config` is the StepConfig of model requests: without a `retry` a failed one is retried
    by the provider's client alone, and one Retry here multiplies with that.

    Calls that need an approval wait for an event, and `pending_approvals`, `answer_approval` and
    the dashboard know of them; `notify` is told at least once; nobody in `approval_timeout_ms`
    (None: for ever) is a no. `asks` False leaves them to the agent's DeferredToolRequests.

    `event_stream_handler` gets a model's events while the model speaks, in the step of the
    request, and each event of a tool in a step of its own: what was handled and recorded is not
    handled again. `name`, if not the agent's, stands in the records; `models` are Pydantic AI's.
    """

    engine_spec = DurabilityEngineSpec(
        engine_name="Perdure",
        durable_unit_noun="step",
        durable_container_noun="run",
        codec=JSON_CODEC,
        toolset_lifecycles={
            "function": "enter-always",
            "mcp": "enter-in-durable-unit",
            "dynamic": "enter-never",
        },
        unsupported_runtime_toolset_kinds=frozenset({"function", "mcp", "dynamic"}),
        tool_config_key=CONFIG_KEY,
    )

    def __init__(
        self,
        *,
        name: str | None = None,
        models: Mapping[str, Model] | None = None,
        event_stream_handler: EventStreamHandler[AgentDepsT] | None = None,
        model_config: StepConfig | None = None,
        asks: bool = True,
        notify: NotifyApprover | None = None,
        approval_timeout_ms: int | None = None,
    ) -> None:
        super().__init__(models=models, event_stream_handler=event_stream_handler, name=name)
        self._model_config: StepConfig = model_config or {}
        self._asks = asks
        self._notify = notify
        self._approval_timeout_ms = approval_timeout_ms
        self._operations: AgentOperations | None = None

    def _bind_to_agent(self, agent: AbstractAgent[AgentDepsT, Any]) -> None:
        self._operations = AgentOperations(self.name, model=self._model_config, event={})
        super()._bind_to_agent(agent)

    def get_durable_operation_backend(self) -> AgentOperations:
        assert self._operations is not None
        return self._operations

    @property
    def in_durable_context(self) -> bool:
        return current_work() is not None

    # What would differ in every attempt.

    def get_default_run_id(self) -> str | None:
        work = current_work()
        return None if work is None else f"{work.run_id}:{work.next_number('agent run')}"

    def get_default_conversation_id(self, run_id: str) -> str | None:
        return conversation_id_from_run_id(run_id) if self.in_durable_context else None

    async def get_run_start_time(self, run_id: str) -> datetime | None:
        work = current_work()
        if work is None:
            return None
        intent = f"{self.name}__run_start_time #{work.next_number(f'{self.name} start')}"
        return datetime.fromisoformat(await work.run.step(intent, _now))

    async def wrap_run(
        self, ctx: RunContext[AgentDepsT], *, handler: WrapRunHandler
    ) -> AgentRunResult[Any]:
        work, agent = current_work(), self.agent
        claim_work()
        if work is None or agent is None:
            return await super().wrap_run(ctx, handler=handler)
        # Events of tools at once come in the order of the calls, since each may be a step.
        with (
            agent.parallel_tool_call_execution_mode("parallel_ordered_events"),
            external_event_scope(EventWaiter(work, self.name)),
        ):
            return await super().wrap_run(ctx, handler=handler)

    async def handle_deferred_tool_calls(
        self, ctx: RunContext[AgentDepsT], *, requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        work = current_work()
        if work is None or not self._asks:
            return None
        approving = Approving(self.name, self._notify, self._approval_timeout_ms)
        return await approving.decided(work, requests)

    # Events.

    @property
    def has_wrap_run_event_stream(self) -> bool:
        work = current_work()
        return super().has_wrap_run_event_stream or (work is not None and work.turn is not None)

    async def wrap_run_event_stream(
        self, ctx: RunContext[AgentDepsT], *, stream: AsyncIterable[AgentStreamEvent]
    ) -> AsyncIterable[AgentStreamEvent]:
        work = current_work()
        async for event in super().wrap_run_event_stream(ctx, stream=stream):
            # What a model said was shown while it said it.
            frame = None if work is None else done_in(event)
            if work is not None and work.showing is not None and frame is not None:
                await work.showing.show(frame)
            yield event

    def _model_stream_event_handler(self) -> EventStreamHandler[AgentDepsT] | None:
        handler, showing = super()._model_stream_event_handler(), stream_showing.get()
        return handler if showing is None else tapped(showing, handler)

    async def _dispatch_event_stream_event(
        self, ctx: RunContext[AgentDepsT], event: AgentStreamEvent
    ) -> None:
        handler = self._effective_event_stream_handler()
        if isinstance(event, CustomEvent | CapabilityEvent) and event.tool_call_id is not None:
            # A tool that is recorded does not emit it again, and when it comes nothing fixes.
            assert handler is not None
            await handler(ctx, self._single_event_stream(event))
            return
        await super()._dispatch_event_stream_event(ctx, event)


async def _now() -> str:
    return iso_time(system_clock())
