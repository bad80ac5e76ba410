"""Agents whose calls of models and tools are recorded, and those that they hand over to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from agents import (
    Agent,
    FunctionTool,
    GuardrailFunctionOutput,
    Handoff,
    InputGuardrail,
    Model,
    OutputGuardrail,
    RunConfig,
)
from agents.tool import ApplyPatchTool, ComputerTool, CustomTool, LocalShellTool, ShellTool, Tool

from perdure.agent.adapter import resolve
from perdure.core.records import JsonValue
from perdure.engines.openai_agents.models import RecordedModel
from perdure.engines.openai_agents.recording import Recorder
from perdure.errors import UsageError

AnyAgent = Agent[Any]

UNRECORDED: Final = (ApplyPatchTool, ComputerTool, CustomTool, LocalShellTool, ShellTool)
"""Tools that act on this machine in ways of their own, which no step holds."""


class RecordedAgents:
    """Gives for each agent one that records, once, so that agents may hand over in circles."""

    def __init__(self, recorder: Recorder, config: RunConfig) -> None:
        self._recorder = recorder
        self._config = config
        self._made: dict[int, tuple[AnyAgent, AnyAgent]] = {}

    def of(self, agent: AnyAgent) -> AnyAgent:
        """Return the agent that records. Raises UsageError for one whose calls it could not."""
        for original, made in self._made.values():
            if agent is made or agent is original:
                return made
        _check(agent)
        tools = {tool.name: tool for tool in agent.tools if isinstance(tool, FunctionTool)}
        made = agent.clone(
            model=self._model(agent, tools),
            tools=[self._tool(tool) for tool in agent.tools],
            input_guardrails=[self._input_guardrail(each) for each in agent.input_guardrails],
            output_guardrails=[self._output_guardrail(each) for each in agent.output_guardrails],
            handoffs=[],
        )
        self._made[id(agent)] = (agent, made)
        made.handoffs = [self._handoff(each) for each in agent.handoffs]
        return made

    def _model(self, agent: AnyAgent, tools: dict[str, FunctionTool]) -> Model:
        wanted = self._config.model or agent.model

        def inner() -> Model:
            if isinstance(wanted, Model):
                return wanted
            return self._config.model_provider.get_model(wanted)

        name = wanted if isinstance(wanted, str) else None
        return RecordedModel(self._recorder, agent.name, inner, tools, model=name)

    def _tool(self, tool: Tool) -> Tool:
        if not isinstance(tool, FunctionTool):
            return tool
        recorder, invoke = self._recorder, tool.on_invoke_tool

        async def recorded(context: Any, arguments: str) -> Any:
            given = recorder.arguments.get(context.tool_call_id, arguments)
            return await recorder.call(
                context.tool_call_id, tool.name, lambda: invoke(context, given)
            )

        made = copy.copy(tool)
        made.on_invoke_tool = recorded
        return made

    def _handoff(self, target: AnyAgent | Handoff[Any, Any]) -> AnyAgent | Handoff[Any, Any]:
        if isinstance(target, Agent):
            return self.of(target)
        invoke = target.on_invoke_handoff

        async def recorded(context: Any, arguments: str) -> AnyAgent:
            return self.of(await invoke(context, arguments))

        made = copy.copy(target)
        made.on_invoke_handoff = recorded
        return made

    # Guardrails: what one has said once it says again, even if a model answers for it.

    def _input_guardrail(self, guardrail: InputGuardrail[Any]) -> InputGuardrail[Any]:
        judge = guardrail.guardrail_function
        intent = f"{self._recorder.name}: guardrail {guardrail.get_name()}"

        async def recorded(context: Any, agent: Any, given: Any) -> GuardrailFunctionOutput:
            async def body() -> dict[str, JsonValue]:
                return _judged(await resolve(judge(context, agent, given)))

            return GuardrailFunctionOutput(*(await self._recorder.run.step(intent, body)).values())

        # One that ran beside the model would take its position before or after that, as it comes.
        return replace(
            guardrail,
            guardrail_function=recorded,
            name=guardrail.get_name(),
            run_in_parallel=False,
        )

    def _output_guardrail(self, guardrail: OutputGuardrail[Any]) -> OutputGuardrail[Any]:
        judge = guardrail.guardrail_function
        intent = f"{self._recorder.name}: guardrail {guardrail.get_name()}"

        async def recorded(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
            async def body() -> dict[str, JsonValue]:
                return _judged(await resolve(judge(context, agent, output)))

            return GuardrailFunctionOutput(*(await self._recorder.run.step(intent, body)).values())

        return replace(guardrail, guardrail_function=recorded, name=guardrail.get_name())


def _judged(output: GuardrailFunctionOutput) -> dict[str, JsonValue]:
    """Return a judgement as it is recorded, in the order of its fields."""
    info: Any = output.output_info
    plain = info if isinstance(info, str | int | float | bool | type(None)) else str(info)
    return {"info": plain, "tripwire": output.tripwire_triggered}


def _check(agent: AnyAgent) -> None:
    names: Sequence[str] = [
        type(tool).__name__ for tool in agent.tools if isinstance(tool, UNRECORDED)
    ]
    if agent.mcp_servers:
        names = [*names, "MCP servers"]
    if names:
        raise UsageError(
            f"the agent {agent.name!r:.60} has {', '.join(names)}, whose calls could not be "
            "recorded: give it function tools that do the same"
        )
