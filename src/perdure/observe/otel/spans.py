"""The spans: one for each attempt, and below it one for each step, model call and tool."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
)

from perdure.core.changes import SettleUsage
from perdure.core.effects import monotonic_ms, system_clock
from perdure.core.observing import AttemptSeen, StepSeen, Told, TraceLink
from perdure.observe.otel.conventions import (
    ERROR,
    OPERATION,
    Attributes,
    Semconv,
    answer_attributes,
    error_type,
    is_latest,
    model_attributes,
    named,
    usage_attributes,
)
from perdure.observe.otel.meters import Meters

logger = logging.getLogger("perdure.observe")

_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_FAILED: Final = ("failed", "parked", "lost", "left")

Ended = Callable[["SpanWatch", Attributes, SettleUsage | None], None]


class SpanWatch:
    """One span. `about` is what its metrics are told apart by, `ended` counts them."""

    def __init__(
        self, span: Span, ended: Ended, about: Attributes, *, began_ago_ms: float = 0
    ) -> None:
        self.span = span
        self.models = 0
        self.tools = 0
        self.heard = Told()
        self.first_chunk_s: float | None = None
        self._ended = ended
        self._about = about
        self._begun_ms = monotonic_ms() - began_ago_ms

    @property
    def duration_s(self) -> float:
        return (monotonic_ms() - self._begun_ms) / 1_000

    @property
    def traceparent(self) -> str | None:
        at = self.span.get_span_context()
        if not at.is_valid:
            return None
        return f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags:02x}"

    @contextmanager
    def active(self) -> Generator[None, None, None]:
        """Make this the span, and the attempt, that what begins inside belongs to."""
        mark = _active.set(self)
        try:
            with trace.use_span(self.span, record_exception=False, set_status_on_exception=False):
                yield
        finally:
            _active.reset(mark)

    def hear(self, told: Told) -> None:
        """Take in what is told of the work."""
        if told.has_begun and not self.heard.has_begun:
            self.first_chunk_s = self.duration_s
        self.heard = self.heard._replace(**{k: v for k, v in told._asdict().items() if v})

    def end(
        self,
        *,
        outcome: str | None = None,
        error: BaseException | None = None,
        usage: SettleUsage | None = None,
    ) -> None:
        """End the span; of an error only its kind is told, since a message may hold anything."""
        about = dict(self._about)
        if isinstance(error, Exception):
            about[ERROR] = error_type(error)
        elif error is not None:
            outcome = outcome or "interrupted"
        elif outcome in _FAILED:
            about[ERROR] = outcome
        elif self.heard.error is not None:
            about |= named(error__type=self.heard.error)
        try:
            if ERROR in about:
                self.span.set_status(Status(StatusCode.ERROR))
            self.span.set_attributes(about | named(perdure__outcome=outcome))
            self._ended(self, about, usage)
            self.span.end()
        except Exception:
            logger.exception("a span could not be ended")


class AttemptWatch(SpanWatch):
    """The span of an attempt; counts the calls that begin inside."""

    @contextmanager
    def active(self) -> Generator[None, None, None]:
        mark = _attempt.set(self)
        try:
            with super().active():
                yield
        finally:
            _attempt.reset(mark)


_active: Final[ContextVar[SpanWatch | None]] = ContextVar("perdure_active", default=None)
_attempt: Final[ContextVar[AttemptWatch | None]] = ContextVar("perdure_attempt", default=None)


class OpenTelemetryObserver:
    """Makes a span of whatever it is told of, and counts what the span has come to."""

    def __init__(self, tracer: Tracer, meters: Meters, semconv: Semconv) -> None:
        self._tracer = tracer
        self._meters = meters
        self._semconv: Semconv = semconv

    def attempt(self, seen: AttemptSeen) -> AttemptWatch:
        run, agent = seen.run, seen.agent
        operation = "invoke_workflow" if agent is None else "invoke_agent"
        workflow = (run.handler or run.scenario_id) if agent is None else None
        # The old conventions know agents, but no workflows.
        is_known = agent is not None or is_latest(self._semconv)
        about = named(
            gen_ai__operation__name=operation if is_known else None,
            gen_ai__agent__name=agent,
            gen_ai__workflow__name=workflow if is_known else None,
        )
        span = self._tracer.start_span(
            " ".join((operation, agent or workflow or "")).strip(),
            context=_continued(seen.earlier),
            kind=SpanKind.INTERNAL,
            attributes=about
            | named(
                gen_ai__conversation__id=run.session_id,
                perdure__run__id=run.run_id,
                perdure__run__attempt=seen.epoch,
                perdure__run__strikes=run.strikes or None,
                perdure__tenant=run.tenant or None,
                perdure__turn__index=run.turn_index,
                perdure__turn__revision=run.revision or None,
            ),
            links=_links(seen.earlier),
        )

        def ended(watch: SpanWatch, about: Attributes, usage: SettleUsage | None) -> None:
            self._meters.work(operation, about, watch.duration_s)
            if agent is not None:
                self._meters.calls(agent, models=watch.models, tools=watch.tools)

        return AttemptWatch(span, ended, about)

    def step(self, seen: StepSeen) -> SpanWatch:
        where = named(
            perdure__step__position=seen.position,
            perdure__step__intent=seen.intent,
            perdure__step__kind=seen.kind,
            perdure__step__try=seen.tries,
        )
        match seen.kind:
            case "llm":
                return self._model_span(None, None, where)
            case "tool":
                return self._tool_span(seen.intent, where)
            case _:
                span = self._tracer.start_span(f"step {where['perdure.step.intent']}")
                span.set_attributes(where)
                return SpanWatch(span, _uncounted, {})

    def model_call(
        self, *, provider: str | None, model: str | None, began_ago_ms: float = 0
    ) -> SpanWatch:
        return self._model_span(provider, model, {}, began_ago_ms=began_ago_ms)

    def told(self, told: Told) -> None:
        watch = _active.get()
        if watch is not None:
            watch.hear(told)

    def _tool_span(self, name: str, where: Attributes) -> SpanWatch:
        """Return the span of a call; unless its tool is told, it has the name of its step."""
        about = named(gen_ai__operation__name="execute_tool", gen_ai__tool__name=name)
        span = self._tracer.start_span(
            f"execute_tool {about['gen_ai.tool.name']}", attributes=about | where
        )
        attempt = _attempt.get()
        if attempt is not None:
            attempt.tools += 1

        def ended(watch: SpanWatch, about: Attributes, usage: SettleUsage | None) -> None:
            heard = watch.heard
            if heard.tool is not None:
                about |= named(gen_ai__tool__name=heard.tool)
                watch.span.update_name(f"execute_tool {about['gen_ai.tool.name']}")
                call = named(gen_ai__tool__call__id=heard.call, gen_ai__tool__type="function")
                watch.span.set_attributes(about | call)
            self._meters.work("execute_tool", about, watch.duration_s)

        return SpanWatch(span, ended, about)

    def _model_span(
        self,
        provider: str | None,
        model: str | None,
        where: Attributes,
        *,
        began_ago_ms: float = 0,
    ) -> SpanWatch:
        """Return the span of a model call; who was asked may be known only at its end."""
        begun_ns = round((system_clock() - began_ago_ms) * 1_000_000) if began_ago_ms else None
        span = self._tracer.start_span("chat", kind=SpanKind.CLIENT, start_time=begun_ns)
        span.set_attributes(where)
        attempt = _attempt.get()
        if attempt is not None:
            attempt.models += 1

        def ended(watch: SpanWatch, about: Attributes, usage: SettleUsage | None) -> None:
            heard = watch.heard
            asked = heard.model or model or (usage.model if usage else None)
            answering = heard.provider or provider or (usage.provider if usage else None)
            known = about | model_attributes(answering, asked, self._semconv)
            if usage is not None:
                known |= usage_attributes(usage, self._semconv)
            if asked is not None:
                watch.span.update_name(f"{known[OPERATION]} {asked}")
            answer = answer_attributes(heard.finish, watch.first_chunk_s, self._semconv)
            watch.span.set_attributes(known | answer)
            self._meters.model_call(known, usage, watch.duration_s, watch.first_chunk_s)

        return SpanWatch(span, ended, {}, began_ago_ms=began_ago_ms)


def _uncounted(watch: SpanWatch, about: Attributes, usage: SettleUsage | None) -> None:
    """A step that only computes has no metric of its own."""


def _continued(earlier: tuple[TraceLink, ...]) -> Context | None:
    """Return the context of the trace that the first attempt has begun; None: the current one."""
    for link in earlier:
        at = _span_context(link.traceparent)
        if at is not None:
            return trace.set_span_in_context(NonRecordingSpan(at))
    return None


def _links(earlier: tuple[TraceLink, ...]) -> list[Link]:
    """Return a link to the attempt before this one, which says whether it was lost."""
    if not earlier:
        return []
    last = earlier[-1]
    at = _span_context(last.traceparent)
    known = named(perdure__run__attempt=last.epoch, perdure__attempt__lost=last.is_lost)
    return [] if at is None else [Link(at, known)]


def _span_context(traceparent: str) -> SpanContext | None:
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
