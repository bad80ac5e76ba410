"""The canaries of an agent task: what is planted leaves by no door that promises to keep it in."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, cast

import pytest

from perdure.agent.adapter import AgentTaskContext
from perdure.agent.backend import IterableBackend
from perdure.agent.evals import ControlEvalResult, objective_eval
from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import InMemoryRuntimeSessionStore, RuntimeSession, new_session
from perdure.agent.steps import Continue, ControlDecision, Stop
from perdure.agent.stored_sessions import DurableSessionStore
from perdure.agent.stream import run_agent_task_stream
from perdure.agent.stream_events import (
    ArtifactEvent,
    FinalEvent,
    ProposalCreatedEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
)
from perdure.agent.stream_frames import AgentTaskProducer
from perdure.agent.task import run_agent_task
from perdure.agent.tool_loop import ToolLoop
from perdure.backends.protocol import Backend
from perdure.backends.scripted import ScriptedBackend
from perdure.core import frames
from perdure.core.records import AgentTaskSpec
from perdure.core.secret import Secret
from perdure.errors import BackendTransportError
from perdure.observe.collector import (
    create_runtime_event_collector,
    create_runtime_stream_event_collector,
)
from perdure.observe.sse import sse_stream
from perdure.observe.telemetry import RuntimeTelemetryOptions, telemetry_client, telemetry_log
from perdure.observe.trace import create_trace_bridge
from perdure.store.memory import MemoryStore
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.identity import ChatTurnIdentity
from tests.agent.strict_provider import StrictProvider, calls, says
from tests.canary.planting import NEVER, PLACES, canary, seen
from tests.observe.spanning import watching
from tests.turn.stage import events_of

SWITCHES = RuntimeTelemetryOptions._fields[:-1]
ALL = RuntimeTelemetryOptions()._replace(**dict.fromkeys(SWITCHES, True), text_characters_max=None)
NEEDED = [
    KnowledgeRequirement("plain", canary("requirement_description"), fallback_policy="block"),
    KnowledgeRequirement("secret", canary("secret_description"), sensitivity="secret"),
    KnowledgeRequirement("web", canary("requirement_description"), acquisition_mode="search_web"),
]
TASK = AgentTaskSpec(
    "t",
    "Find what is asked for",
    inputs={"x": canary("task_inputs")},
    metadata={"x": canary("task_metadata")},
    required_knowledge=NEEDED,
)
STREAMED = (
    ToolCallEvent(tool_name="find", tool_call_id="c", args={"x": canary("tool_args")}),
    ToolResultEvent(tool_name="find", tool_call_id="c", result=[canary("tool_result")]),
    ArtifactEvent(
        artifact_id="a",
        uri=canary("artifact_uri"),
        content=canary("artifact_content"),
        metadata={"x": canary("artifact_metadata")},
    ),
    ProposalCreatedEvent(proposal_id="p", title=canary("proposal_title")),
    TextDeltaEvent(text=canary("final_text")),
)


class Provider:
    """Answers with words, and with a credential."""

    def answer_questions(self, questions: Any, task: Any) -> Mapping[str, Any]:
        words = {"plain": canary("answer"), "secret": canary("credential_answer")}
        return {each.id: words[each.requirement_id] for each in questions}

    def execute_acquisition_plans(self, plans: Any, task: Any) -> list[str]:
        return ["evidence-1"]


class Adapter:
    """Acts once, and says something secret wherever an adapter can."""

    def observe(self, context: AgentTaskContext) -> Any:
        return {"x": canary("state"), "n": len(context.history)}

    def validate(self, context: AgentTaskContext) -> list[ControlEvalResult]:
        detail, evidence = canary("eval_detail"), canary("eval_evidence")
        return [objective_eval("e", False, severity="error", detail=detail, evidence=evidence)]

    def decide(self, context: AgentTaskContext) -> ControlDecision:
        if not context.history:
            return Continue({"x": canary("action")}, reason=canary("error_message"))
        return Stop(canary("error_message"), passed=True)

    def act(self, action: Any, context: AgentTaskContext) -> Any:
        return canary("action_result")


def backend(failure: Exception | None = None) -> IterableBackend:
    def start(input: Any, context: Any) -> RuntimeSession:
        return new_session(
            "b",
            resume_token=canary("resume_token"),
            metadata={"x": canary("session_metadata")},
        )

    async def stream(input: Any, context: Any) -> AsyncIterator[Any]:
        for event in STREAMED:
            yield event
        if failure is not None:
            raise failure

    return IterableBackend("b", stream, start=start)


async def events_of_a_task(**options: Any) -> list[Any]:
    events: list[Any] = []
    result = await run_agent_task(
        TASK, Adapter(), knowledge=Provider(), on_event=events.append, **options
    )
    assert result.status == "completed"
    return events


async def events_of_streams() -> list[Any]:
    """Return the events of a stream that ends well, and of one that fails."""
    store = InMemoryRuntimeSessionStore()
    refusal = BackendTransportError(
        canary("error_message"), backend="b", status=500, body=canary("error_body")
    )
    events: list[Any] = []
    for failure in (None, refusal):
        stream = run_agent_task_stream(
            TASK, backend(failure), knowledge=Provider(), session=SessionChoice(store)
        )
        events += [event async for event in stream]
    assert [event.status for event in events if event.type == "final"] == ["completed", "failed"]
    last = events[-1]
    planted = FinalEvent(
        task=last.task,
        timestamp=last.timestamp,
        status="completed",
        reason="done",
        metadata={"x": canary("final_metadata")},
    )
    return [*events, planted]


async def every_event() -> list[Any]:
    return [*await events_of_a_task(), *await events_of_streams()]


def collected(events: list[Any], options: RuntimeTelemetryOptions | None) -> str:
    plain = create_runtime_event_collector(options)
    streamed = create_runtime_stream_event_collector(options)
    for event in events:
        plain.on_event(event)
        streamed.on_event(event)
    assert "sanitizeError" not in json.dumps(plain.events)
    return json.dumps([plain.events, streamed.events, streamed.summary()])


async def sent(events: list[Any], options: RuntimeTelemetryOptions | None) -> str:
    async def source() -> AsyncIterator[Any]:
        for event in events:
            yield event

    return b"".join([piece async for piece in sse_stream(source(), options)]).decode()


def traced(events: list[Any], options: RuntimeTelemetryOptions | None) -> str:
    bridge = create_trace_bridge(run_id="r", options=options)
    return json.dumps([each.payload for each in bridge.drain(events)])


async def test_by_default_no_canary_reaches_a_collector_a_trace_or_a_log_of_events() -> None:
    events = await every_event()
    for options in (None, telemetry_log()):
        assert seen(collected(events, options)) == set()
        assert seen(traced(events, options)) == set()
    assert seen(await sent(events, telemetry_log())) == set()


async def test_the_owners_browser_gets_words_and_questions_and_nothing_else() -> None:
    events = await every_event()
    words = {"final_text", "error_message", "requirement_description"}
    assert seen(await sent(events, None)) == words
    assert seen(collected(events, telemetry_client())) == words


async def test_with_all_switches_each_canary_is_there_but_what_never_leaves() -> None:
    assert seen(collected(await every_event(), ALL)) == set(PLACES)


async def test_secrets_do_not_even_show_when_an_event_is_printed() -> None:
    events = await every_event()
    shown = f"{events!r} {[str(event) for event in events]}"
    assert seen(shown, ("resume_token", "credential_answer")) == set()


async def test_spans_and_metrics_of_a_durable_task_hold_no_canary() -> None:
    with watching() as watched:
        await events_of_a_task(durable=(MemoryStore(), "r"))
        shown = json.dumps([json.loads(span.to_json()) for span in watched.spans])
        assert watched.spans
        data = watched.reader.get_metrics_data()
        assert data is not None
        assert seen(f"{shown} {data.to_json()}") == set()


def leaky(word: str) -> str:
    """Say something secret, or fail with it."""
    if word == canary("error_body"):
        raise ValueError(canary("error_message"))
    return canary("tool_result")


async def test_spans_and_metrics_of_turns_with_tools_hold_no_canary() -> None:
    asked = [(place, "leaky", {"word": canary(place)}) for place in ("tool_args", "error_body")]
    provider = StrictProvider(calls(*asked), says(canary("final_text")))
    refused = BackendTransportError(canary("error_message"), backend="b", body=canary("error_body"))
    failing = ScriptedBackend([frames.text(canary("final_text")), refused])
    with watching() as watched:
        backends: list[Backend] = [provider.backend(), failing]
        for index, backend in enumerate(backends):
            engine = ChatTurnEngine(MemoryStore(), produce=ToolLoop(backend, [leaky]))
            identity = ChatTurnIdentity("", "s", "ann", index)
            told = await events_of(await engine.submit(identity, canary("task_inputs")))
            assert canary("final_text") in str(told)
            await engine.aclose()
        shown = json.dumps([json.loads(span.to_json()) for span in watched.spans])
        assert shown.count("execute_tool leaky") == 2
        data = watched.reader.get_metrics_data()
        assert data is not None
        assert seen(f"{shown} {data.to_json()}") == set()


@pytest.mark.parametrize("failure", [None, ValueError(canary("error_message"))])
async def test_a_turn_shows_its_reader_the_words_and_tools_of_a_task_and_nothing_else(
    failure: Exception | None,
) -> None:
    store = MemoryStore()
    producer = AgentTaskProducer(
        backend(failure),
        task_of=lambda turn: TASK,
        sessions=DurableSessionStore(store),
        knowledge=cast("Any", Provider()),
    )
    engine = ChatTurnEngine(store, produce=producer)
    identity = ChatTurnIdentity("", "s", "ann", 0)
    lines = b"".join([line async for line in (await engine.submit(identity, "Hello")).lines()])
    again = b"".join([line async for line in (await engine.submit(identity, "Hello")).lines()])
    await engine.aclose()
    words = {"final_text", "requirement_description", "tool_args", "tool_result"}
    assert seen(lines.decode()) == seen(again.decode()) == words


KEY = "sk-" + "proj-Ab12Cd34Ef56Gh78Ij90"


@pytest.mark.parametrize("fail", [lambda: ConnectionError(f"Bearer {KEY}"), lambda: OSError(KEY)])
async def test_a_log_line_about_a_failure_holds_no_credential(
    fail: Callable[[], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def failing(*_: Any) -> None:
        raise fail()

    class Store(InMemoryRuntimeSessionStore):
        async def append_event(self, session_id: str, event: Any) -> None:
            if event.type == "final":
                raise fail()
            await super().append_event(session_id, event)

    await run_agent_task(TASK, Adapter(), knowledge=Provider(), on_event=failing)
    broken = IterableBackend("b", backend(fail()).stream, stop=failing)
    stream = run_agent_task_stream(
        TASK, broken, knowledge=Provider(), session=SessionChoice(Store())
    )
    events = [event async for event in stream]
    assert len(caplog.records) >= 3
    assert KEY not in caplog.text
    assert KEY not in collected(events, ALL)
    assert seen(caplog.text) == set()


def test_every_place_is_planted_and_has_a_word_of_its_own() -> None:
    words = {canary(place) for place in PLACES + NEVER}
    assert len(words) == len(PLACES + NEVER)
    assert str(Secret(canary("resume_token"))) == "[redacted]"
