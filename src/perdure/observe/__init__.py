"""Watching: what may leave the process about a run, in which words, and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.core.lazily import lazily

if TYPE_CHECKING:
    from perdure.observe.collector import RuntimeEventCollector as RuntimeEventCollector
    from perdure.observe.collector import RuntimeStreamEventCollector as RuntimeStreamEventCollector
    from perdure.observe.collector import RuntimeStreamEventSummary as RuntimeStreamEventSummary
    from perdure.observe.collector import (
        create_runtime_event_collector as create_runtime_event_collector,
    )
    from perdure.observe.collector import (
        create_runtime_stream_event_collector as create_runtime_stream_event_collector,
    )
    from perdure.observe.ledger import UsageSummary as UsageSummary
    from perdure.observe.ledger import run_usage as run_usage
    from perdure.observe.ledger import usage_summary as usage_summary
    from perdure.observe.logs import MaskingFormatter as MaskingFormatter
    from perdure.observe.otel import instrument_opentelemetry as instrument_opentelemetry
    from perdure.observe.prices import GenaiPrices as GenaiPrices
    from perdure.observe.prices import ModelPrice as ModelPrice
    from perdure.observe.prices import PriceList as PriceList
    from perdure.observe.sanitize import (
        sanitize_agent_runtime_event as sanitize_agent_runtime_event,
    )
    from perdure.observe.sanitize import sanitize_event as sanitize_event
    from perdure.observe.sanitize import (
        sanitize_knowledge_readiness_report as sanitize_knowledge_readiness_report,
    )
    from perdure.observe.sanitize import (
        sanitize_runtime_stream_event as sanitize_runtime_stream_event,
    )
    from perdure.observe.sanitized import (
        SanitizedKnowledgeReadinessReport as SanitizedKnowledgeReadinessReport,
    )
    from perdure.observe.sanitized import (
        SanitizedKnowledgeRequirement as SanitizedKnowledgeRequirement,
    )
    from perdure.observe.sanitized_events import SanitizedRuntimeEvent as SanitizedRuntimeEvent
    from perdure.observe.sanitized_events import SanitizedStreamEvent as SanitizedStreamEvent
    from perdure.observe.sse import encode_server_sent_event as encode_server_sent_event
    from perdure.observe.sse import readiness_server_sent_event as readiness_server_sent_event
    from perdure.observe.sse import (
        runtime_stream_server_sent_event as runtime_stream_server_sent_event,
    )
    from perdure.observe.sse import sse_stream as sse_stream
    from perdure.observe.telemetry import RuntimeTelemetryOptions as RuntimeTelemetryOptions
    from perdure.observe.telemetry import telemetry_client as telemetry_client
    from perdure.observe.telemetry import telemetry_log as telemetry_log
    from perdure.observe.trace import TraceBridge as TraceBridge
    from perdure.observe.trace import TraceEvent as TraceEvent
    from perdure.observe.trace import create_trace_bridge as create_trace_bridge
    from perdure.observe.trace import to_agent_eval_trace as to_agent_eval_trace
    from perdure.observe.trace_records import TraceBudgetEntry as TraceBudgetEntry
    from perdure.observe.trace_records import TraceEventQuery as TraceEventQuery
    from perdure.observe.trace_records import TraceOutcome as TraceOutcome
    from perdure.observe.trace_records import TraceRun as TraceRun
    from perdure.observe.trace_records import TraceRunQuery as TraceRunQuery
    from perdure.observe.trace_records import TraceSpan as TraceSpan
    from perdure.observe.trace_records import TraceSpanQuery as TraceSpanQuery
    from perdure.observe.trace_store import InMemoryTraceStore as InMemoryTraceStore
    from perdure.observe.trace_store import TraceStore as TraceStore

__all__ = [
    "GenaiPrices",
    "InMemoryTraceStore",
    "MaskingFormatter",
    "ModelPrice",
    "PriceList",
    "RuntimeEventCollector",
    "RuntimeStreamEventCollector",
    "RuntimeStreamEventSummary",
    "RuntimeTelemetryOptions",
    "SanitizedKnowledgeReadinessReport",
    "SanitizedKnowledgeRequirement",
    "SanitizedRuntimeEvent",
    "SanitizedStreamEvent",
    "TraceBridge",
    "TraceBudgetEntry",
    "TraceEvent",
    "TraceEventQuery",
    "TraceOutcome",
    "TraceRun",
    "TraceRunQuery",
    "TraceSpan",
    "TraceSpanQuery",
    "TraceStore",
    "UsageSummary",
    "create_runtime_event_collector",
    "create_runtime_stream_event_collector",
    "create_trace_bridge",
    "encode_server_sent_event",
    "instrument_opentelemetry",
    "readiness_server_sent_event",
    "run_usage",
    "runtime_stream_server_sent_event",
    "sanitize_agent_runtime_event",
    "sanitize_event",
    "sanitize_knowledge_readiness_report",
    "sanitize_runtime_stream_event",
    "sse_stream",
    "telemetry_client",
    "telemetry_log",
    "to_agent_eval_trace",
    "usage_summary",
]

__getattr__ = lazily(
    __name__,
    {
        "perdure.observe.collector": (
            "RuntimeEventCollector",
            "RuntimeStreamEventCollector",
            "RuntimeStreamEventSummary",
            "create_runtime_event_collector",
            "create_runtime_stream_event_collector",
        ),
        "perdure.observe.ledger": (
            "UsageSummary",
            "run_usage",
            "usage_summary",
        ),
        "perdure.observe.logs": ("MaskingFormatter",),
        "perdure.observe.otel": ("instrument_opentelemetry",),
        "perdure.observe.prices": (
            "GenaiPrices",
            "ModelPrice",
            "PriceList",
        ),
        "perdure.observe.sanitize": (
            "sanitize_agent_runtime_event",
            "sanitize_event",
            "sanitize_knowledge_readiness_report",
            "sanitize_runtime_stream_event",
        ),
        "perdure.observe.sanitized": (
            "SanitizedKnowledgeReadinessReport",
            "SanitizedKnowledgeRequirement",
        ),
        "perdure.observe.sanitized_events": (
            "SanitizedRuntimeEvent",
            "SanitizedStreamEvent",
        ),
        "perdure.observe.sse": (
            "encode_server_sent_event",
            "readiness_server_sent_event",
            "runtime_stream_server_sent_event",
            "sse_stream",
        ),
        "perdure.observe.telemetry": (
            "RuntimeTelemetryOptions",
            "telemetry_client",
            "telemetry_log",
        ),
        "perdure.observe.trace": (
            "TraceBridge",
            "TraceEvent",
            "create_trace_bridge",
            "to_agent_eval_trace",
        ),
        "perdure.observe.trace_records": (
            "TraceBudgetEntry",
            "TraceEventQuery",
            "TraceOutcome",
            "TraceRun",
            "TraceRunQuery",
            "TraceSpan",
            "TraceSpanQuery",
        ),
        "perdure.observe.trace_store": ("InMemoryTraceStore", "TraceStore"),
    },
)
