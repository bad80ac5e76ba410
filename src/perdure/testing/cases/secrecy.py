"""What a backend keeps to itself: nothing secret leaves with its events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from perdure.agent.backend import AgentBackendInput
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import InMemoryRuntimeSessionStore
from perdure.agent.stream_events import event_to_wire
from perdure.core.records import AgentTaskSpec
from perdure.core.secret import Secret
from perdure.observe.collector import create_runtime_stream_event_collector
from perdure.testing.asking import final, told
from perdure.testing.backend_lab import BackendLab, Plan
from perdure.testing.lab import check

# A word that looks like no credential, so that nothing masks it.
CANARY: Final = "canary-4k8w2x"
ASKED: Final = AgentBackendInput(
    task=AgentTaskSpec(
        "conformance", "Answer a question", inputs={"x": CANARY}, metadata={"x": CANARY}
    ),
    message=f"Hello {CANARY}",
    inputs={"x": CANARY},
)


async def what_a_backend_is_asked_does_not_reach_a_log(lab: BackendLab) -> None:
    await _is_kept_from_logs(lab, "answers")


async def what_a_backend_is_asked_does_not_reach_a_log_by_a_failure(lab: BackendLab) -> None:
    await _is_kept_from_logs(lab, "fails")


async def a_resume_token_stays_in_its_session(lab: BackendLab) -> None:
    store = InMemoryRuntimeSessionStore()
    async with lab.backend() as backend:
        events = await told(backend, session=SessionChoice(store))
    session = final(events).session
    assert session is not None
    kept = await store.get(session.id)
    token = None if kept is None else kept.resume_token
    if isinstance(token, Secret):
        sent = _json([event_to_wire(event) for event in events])
        check(token.reveal() not in sent, "the resume token stands in an event")


async def _is_kept_from_logs(lab: BackendLab, plan: Plan) -> None:
    collector = create_runtime_stream_event_collector()
    async with lab.backend(plan) as backend:
        for event in await told(backend, asked=ASKED):
            collector.on_event(event)
    for event in collector.events:
        check(CANARY not in _json([event]), f"what was asked is shown by {event['type']}")


def _json(events: Sequence[Any]) -> str:
    return json.dumps(events, ensure_ascii=False, default=repr)
