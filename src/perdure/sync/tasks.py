"""Agent tasks for threads that wait."""

from __future__ import annotations

from perdure.agent.adapter import AgentAdapter, AgentKnowledgeProvider
from perdure.agent.cancel import CancelSignal
from perdure.agent.events import AgentRuntimeEventSink
from perdure.agent.hooks import ControlOptions
from perdure.agent.preflight import ReadinessPolicy
from perdure.agent.task import AgentTaskRunResult, run_agent_task
from perdure.agent.type_variables import ActionResultT, ActionT, StateT
from perdure.core.records import AgentTaskSpec
from perdure.store.protocol import RunStore
from perdure.sync.doors import SyncStore
from perdure.sync.loop import THREAD


def run_agent_task_sync(
    task: AgentTaskSpec,
    adapter: AgentAdapter[StateT, ActionT, ActionResultT],
    *,
    knowledge: AgentKnowledgeProvider | None = None,
    on_event: AgentRuntimeEventSink | None = None,
    signal: CancelSignal | None = None,
    readiness: ReadinessPolicy | None = None,
    control: ControlOptions | None = None,
    durable: tuple[SyncStore, str] | None = None,
) -> AgentTaskRunResult[StateT, ActionT, ActionResultT]:
    """Do a task as `run_agent_task` does, and wait for how it ended.

    The adapter, the provider and the sink are called on the loop of the one thread behind
    `perdure.sync`; a plain method that waits there holds up every other task of the process.
    """

    async def work() -> AgentTaskRunResult[StateT, ActionT, ActionResultT]:
        opened: tuple[RunStore, str] | None = None if store is None else (store, run_id)
        return await run_agent_task(
            task,
            adapter,
            knowledge=knowledge,
            on_event=on_event,
            signal=signal,
            readiness=readiness,
            control=control,
            durable=opened,
        )

    store, run_id = (None, "") if durable is None else (durable[0].open(), durable[1])
    return THREAD.run(work())
