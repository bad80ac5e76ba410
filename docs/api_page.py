"""The page of the public names, written from their signatures and docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Final

import perdure
from docs.markdown import code, in_one_line, opening_of, page, table
from perdure import frames

LINE_CHARACTERS_MAX: Final = 88

GROUPS: Final = {
    "Opening a store": ("open_store", "RunStore", "MemoryStore", "SqlStore", "Sqlite"),
    "Running durably": (
        "run_durable",
        "RunResult",
        "DurableContext",
        "current_step",
        "report_usage",
        "Retry",
        "emit_event",
        "Worker",
        "Schedule",
        "fork",
        "preview_fork",
        "ForkPreview",
        "fork_origin",
        "ForkOrigin",
    ),
    "Cleaning up": ("collect_garbage", "Collected", "erase_session", "erase_user", "Erased"),
    "Chat turns": (
        "ChatTurnEngine",
        "answer_with",
        "ChatTurnIdentity",
        "SubmittedTurn",
        "Turn",
        "Frame",
        "frames",
        "ChatTurnHooks",
        "FinishedTurn",
        "InterruptedTurn",
        "run_durable_turn",
        "durable_chat_turn_engine",
    ),
    "Records": (
        "RunManifest",
        "AgentTaskSpec",
        "RunRecord",
        "RunOutcome",
        "StepRecord",
        "EventRecord",
        "SessionKey",
    ),
    "Identity": (
        "canonical_json",
        "canonical_hash",
        "manifest_hash",
        "step_id",
        "derive_worker_id",
    ),
}
ELSEWHERE: Final = {
    "Backends": (
        "perdure.backends.OpenAIBackend",
        "perdure.backends.OpenAIResponsesBackend",
        "perdure.backends.AnthropicBackend",
        "perdure.backends.BackendRetry",
        "perdure.backends.ScriptedBackend",
        "perdure.backends.Backend",
        "perdure.backends.AttachableBackend",
        "perdure.backends.Prompt",
    ),
    "The application": (
        "perdure.web.app.create_app",
        "perdure.web.fastapi.chat_router",
        "perdure.web.lifespan.lifespan_of",
        "perdure.web.responses.answer_error",
        "perdure.web.responses.Unauthorized",
        "perdure.web.requests.session_id_of",
        "perdure.web.requests.turn_index_of",
        "perdure.web.requests.message_of",
        "perdure.web.bodies.message_in",
        "perdure.web.app.Caller",
        "perdure.web.admission.AdmissionLimits",
    ),
    "Without `await`": (
        "perdure.sync.open_store",
        "perdure.sync.run_durable",
        "perdure.sync.SyncStore",
        "perdure.sync.SyncEngine",
        "perdure.sync.in_thread",
        "perdure.sync.run_agent_task_sync",
    ),
    "Agent tasks": (
        "perdure.agent.run_agent_task",
        "perdure.agent.AgentTaskRunResult",
        "perdure.agent.summarize_agent_task_run",
        "perdure.agent.AgentAdapter",
        "perdure.agent.AgentTaskContext",
        "perdure.agent.AgentKnowledgeProvider",
        "perdure.agent.ReadinessPolicy",
        "perdure.agent.KnowledgeRequirement",
        "perdure.agent.score_knowledge_readiness",
        "perdure.agent.decide_knowledge_readiness",
        "perdure.agent.objective_eval",
        "perdure.agent.subjective_eval",
        "perdure.agent.Continue",
        "perdure.agent.Stop",
        "perdure.agent.ControlBudget",
        "perdure.agent.ControlOptions",
        "perdure.agent.ControlStopPolicies",
        "perdure.agent.CancelSignal",
    ),
    "Streamed tasks": (
        "perdure.agent.run_agent_task_stream",
        "perdure.agent.SessionChoice",
        "perdure.agent.RuntimeSession",
        "perdure.agent.InMemoryRuntimeSessionStore",
        "perdure.agent.DurableSessionStore",
        "perdure.agent.AgentExecutionBackend",
        "perdure.agent.AgentBackendInput",
        "perdure.agent.AgentBackendContext",
        "perdure.agent.backend.UpstreamAnswer",
        "perdure.agent.IterableBackend",
        "perdure.agent.CallableBackend",
        "perdure.agent.ModelBackend",
        "perdure.agent.ModelOptions",
        "perdure.agent.create_openai_compatible_backend",
        "perdure.agent.SandboxPromptBackend",
        "perdure.agent.stream_frames.AgentTaskProducer",
        "perdure.agent.start_runtime_run",
        "perdure.agent.RuntimeRun",
        "perdure.agent.stored_rows.DurableRunRows",
    ),
    "Profiles and intent": (
        "perdure.agent.AgentProfile",
        "perdure.agent.AgentSubagentProfile",
        "perdure.agent.merge_agent_profiles",
        "perdure.agent.classify_intent",
        "perdure.agent.SubagentMatcher",
        "perdure.agent.ClassifyIntentResult",
        "perdure.agent.check_profile_conformance",
        "perdure.agent.assert_profile_conformance",
        "perdure.agent.ConformanceOptions",
        "perdure.agent.ConformanceResult",
        "perdure.agent.run_chat_turn",
        "perdure.agent.ChatTurnSandbox",
        "perdure.agent.ChatTurnOverlay",
        "perdure.agent.chat_turn.ChatTurnCalling",
        "perdure.agent.chat_turn_events.collect_chat_turn",
        "perdure.agent.chat_turn_events.ChatTurnResult",
        "perdure.agent.run_records.validate_run_record",
    ),
    "Watching": (
        "perdure.observe.RuntimeTelemetryOptions",
        "perdure.observe.telemetry.telemetry_log",
        "perdure.observe.telemetry.telemetry_client",
        "perdure.observe.sanitize.sanitize_event",
        "perdure.observe.create_runtime_event_collector",
        "perdure.observe.create_runtime_stream_event_collector",
        "perdure.observe.encode_server_sent_event",
        "perdure.observe.sse.sse_stream",
        "perdure.observe.create_trace_bridge",
        "perdure.observe.instrument_opentelemetry",
        "perdure.observe.otel.uninstrument_opentelemetry",
    ),
    "What it costs": (
        "perdure.observe.usage_summary",
        "perdure.observe.UsageSummary",
        "perdure.observe.run_usage",
        "perdure.store.ledger.UsageSum",
        "perdure.store.priced.with_prices",
        "perdure.observe.PriceList",
        "perdure.observe.ModelPrice",
        "perdure.observe.prices.GenaiPrices",
        "perdure.core.pricing.PriceTable",
        "perdure.core.pricing.ModelCall",
        "perdure.core.pricing.Price",
    ),
    "Other engines and frameworks": (
        "perdure.engines.restate.task_workflow",
        "perdure.engines.restate.run_on_restate",
        "perdure.engines.restate.RestateSessions",
        "perdure.engines.cloudflare.run_on_workflow_step",
        "perdure.engines.cloudflare.run_on_workflow",
        "perdure.engines.cloudflare.answer_on_workflow",
        "perdure.engines.cloudflare.WorkflowStep",
        "perdure.engines.dbos.task_workflow",
        "perdure.engines.dbos.run_on_dbos",
        "perdure.engines.dbos.emit",
        "perdure.engines.pydantic_ai.PerdureDurability",
        "perdure.engines.pydantic_ai.durably",
        "perdure.engines.pydantic_ai.AgentTurns",
        "perdure.engines.pydantic_ai.StepConfig",
        "perdure.engines.langgraph.PerdureSaver",
        "perdure.engines.langgraph.GraphTurns",
        "perdure.engines.openai_agents.run_agent",
        "perdure.engines.openai_agents.AgentTurns",
        "perdure.engines.openai_agents.PerdureSession",
        "perdure.engines.hosting.TaskHost",
        "perdure.engines.hosting.TurnHost",
        "perdure.engines.hosted_task.HostedContext",
        "perdure.engines.hosted_turn.HostedTurns",
    ),
    "The test kit": (
        "perdure.testing.check_run_store",
        "perdure.testing.StoreLab",
        "perdure.testing.ManualClock",
        "perdure.testing.crash_everywhere",
        "perdure.testing.CrashReport",
        "perdure.testing.CrashPoint",
        "perdure.testing.Crash",
        "perdure.testing.check_replay",
        "perdure.testing.backend_conformance",
        "perdure.testing.BackendLab",
        "perdure.testing.session_store_conformance",
        "perdure.testing.SessionStoreLab",
        "perdure.testing.host_conformance",
        "perdure.testing.HostLab",
        "perdure.testing.HostEnd",
    ),
}
"""Public names of other modules, some of which need an extra."""
CONSTANTS: Final = {
    "DURABLE_SCHEMA_SQL": "the schema that the TypeScript library made, as SQL; idempotent",
    "DURABLE_SCHEMA_VERSION": "the version of that schema",
    "perdure.testing.STORE_CASES": "the cases that every store must pass",
    "perdure.testing.UPKEEP_CASES": "those of a store that has `upkeep()`",
    "perdure.testing.SCHEDULE_CASES": "those of a store that has `schedules()`",
    "perdure.testing.ERASURE_CASES": "those of a store that has `erasure()`",
    "perdure.testing.BACKEND_CASES": "the cases that every execution backend must pass",
    "perdure.testing.SESSION_STORE_CASES": "the cases that every store of agent sessions must pass",
    "perdure.testing.COMPARING_SESSION_STORE_CASES": "those of a store of sessions with `put_if`",
    "perdure.testing.HOST_CASES": "what a task does on every engine, also behind a kill",
    "perdure.testing.HOST_TASKS": "the tasks that a worker of a host under test serves, by name",
    "perdure.testing.NewHostLab": "the type of what makes a `HostLab` whose worker is ready",
    "perdure.testing.Plan": "what a backend under test is to do: `answers`, `fails` or `hangs`",
    "perdure.testing.OpenBackend": "the type of what gives a `BackendLab` a backend by its plan",
    "perdure.testing.NewSessionStoreLab": "the type of what makes a `SessionStoreLab` with fresh "
    "data",
    "perdure.testing.Case": "the type of a case: an async function of a `StoreLab`",
    "perdure.testing.NewLab": "the type of what makes a `StoreLab` with fresh data",
    "perdure.testing.OpenHandle": "the type of what opens a handle for a `StoreLab`: "
    "`(clock, code_version)` in, a store out",
    "perdure.testing.Scenario": "the type of what `crash_everywhere` is given: a store in, a value "
    "out, again and again",
}
OF_RUN_STORE: Final = {"MemoryStore", "SqlStore", "Sqlite"}
"""Classes whose methods are described elsewhere, or are for stores alone."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def definition_of(value: Any) -> ast.ClassDef | Function:
    node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    assert isinstance(node, ast.ClassDef | Function)
    return node


def argument_text(argument: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    return f"{argument.arg}{kind}" + (f" = {ast.unparse(default)}" if default else "")


def arguments_of(node: Function) -> list[str]:
    """Return the arguments of a function as a caller sees them."""
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    missing = len(positional) - len(given.defaults)
    defaults: list[ast.expr | None] = [*([None] * missing), *given.defaults]
    texts = [
        argument_text(argument, default)
        for argument, default in zip(positional, defaults, strict=True)
        if argument.arg != "self"
    ]
    if given.vararg:
        texts.append(f"*{argument_text(given.vararg, None)}")
    elif given.kwonlyargs:
        texts.append("*")
    texts.extend(map(argument_text, given.kwonlyargs, given.kw_defaults))
    if given.kwarg:
        texts.append(f"**{argument_text(given.kwarg, None)}")
    return texts


def signature(node: Function, name: str) -> str:
    """Return how a function is called, with an argument a line where one line is too short."""
    prefix = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    answer = (
        "" if node.name == "__init__" else f" -> {ast.unparse(node.returns or ast.Name('Any'))}"
    )
    arguments = arguments_of(node)
    line = f"{prefix}{name}({', '.join(arguments)}){answer}"
    if len(line) <= LINE_CHARACTERS_MAX:
        return line
    inner = ",\n    ".join(arguments)
    return f"{prefix}{name}(\n    {inner},\n){answer}"


def functions_of(node: ast.ClassDef) -> list[Function]:
    return [each for each in node.body if isinstance(each, Function)]


def is_property(node: Function) -> bool:
    return any("property" in ast.unparse(each) for each in node.decorator_list)


def how_made(name: str, node: ast.ClassDef) -> str | None:
    """Return the fields of a record, or the call that makes an object of a class."""
    if any("Protocol" in ast.unparse(parent) for parent in node.bases):
        return None
    fields = [ast.unparse(each) for each in node.body if isinstance(each, ast.AnnAssign)]
    if fields:
        return code("\n".join([name, *(f"    {field}" for field in fields)]))
    made = next((each for each in functions_of(node) if each.name == "__init__"), None)
    return code(signature(made, name)) if made is not None and made.args.kwonlyargs else None


def attributes_of(node: ast.ClassDef) -> Iterator[str]:
    for each in functions_of(node):
        if is_property(each) and not each.name.startswith("_") and each.returns is not None:
            text = in_one_line(ast.get_docstring(each) or "")
            yield f"- `{each.name}: {ast.unparse(each.returns)}`" + (f": {text}" if text else "")


def methods_of(name: str, node: ast.ClassDef) -> Iterator[str]:
    """Yield the blocks of every public method that has a contract of its own."""
    for each in functions_of(node):
        text = ast.get_docstring(each)
        if each.name.startswith("_") or is_property(each) or text is None:
            continue
        yield f"#### {name}.{each.name}"
        yield code(signature(each, each.name))
        yield text


def class_blocks(name: str, value: Any) -> list[str]:
    node = definition_of(value)
    assert isinstance(node, ast.ClassDef)
    made = how_made(name, node)
    blocks = [made] if made else []
    blocks.append(inspect.getdoc(value) or "")
    if name in OF_RUN_STORE:
        return blocks
    attributes = list(attributes_of(node))
    if attributes:
        blocks.append("\n".join(attributes))
    return [*blocks, *methods_of(name, node)]


def frame_rows() -> Iterator[tuple[str, str]]:
    """Yield the functions that make what a producer yields."""
    for name, value in vars(frames).items():
        if not inspect.isfunction(value) or name == "part_frame":
            continue
        node = definition_of(value)
        if isinstance(node, Function) and node.returns and ast.unparse(node.returns) == "Frame":
            yield f"`frames.{name}({', '.join(arguments_of(node))})`", opening_of(value)


def name_blocks(path: str) -> Sequence[str]:
    module, _, name = path.rpartition(".")
    value = getattr(importlib.import_module(module or "perdure"), name)
    heading = f"### {path}"
    if isinstance(value, ModuleType):
        return heading, opening_of(value), table(("call", "meaning"), frame_rows())
    if inspect.isfunction(value):
        node = definition_of(value)
        assert isinstance(node, Function)
        return heading, code(signature(node, name)), inspect.getdoc(value) or ""
    return heading, *class_blocks(name, value if isinstance(value, type) else type(value))


def api_page() -> str:
    opening = """
What can be imported from `perdure`, and below it what is public of its other modules. Lengths are
in milliseconds and end in `_ms`; moments are ISO-8601 text; everything behind the second parameter
is given by keyword. A default in capitals is a [limit](limits.md).
"""
    blocks: list[str] = []
    for title, names in {**GROUPS, **ELSEWHERE}.items():
        blocks.append(f"## {title}")
        for name in names:
            blocks.extend(name_blocks(name))
    described = {*CONSTANTS, *(name for names in GROUPS.values() for name in names)}
    failures = sorted(set(perdure.__all__) - described)
    return page(
        "The public names",
        opening,
        *blocks,
        "## Constants and types",
        table(("name", "meaning"), [(f"`{name}`", text) for name, text in CONSTANTS.items()]),
        "## Errors",
        "Their codes, and the way out of each, stand on [the page of errors](errors.md).",
        table(
            ("name", "meaning"),
            [(f"`{name}`", opening_of(getattr(perdure, name))) for name in failures],
        ),
    )
