"""The metrics: what calls used and how long each kind of work took, without any words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from opentelemetry.metrics import Histogram, Meter

from perdure.core.changes import SettleUsage
from perdure.observe.otel.conventions import (
    ERROR,
    OPERATION,
    Attributes,
    Semconv,
    is_latest,
    is_old,
    named,
)

_PREFIX: Final = "gen_ai.client.inference"
_KINDS: Final = (
    ("input_tokens", "tokens_in"),
    ("output_tokens", "tokens_out"),
    ("cache_read.input_tokens", "tokens_cached"),
    ("cache_write.input_tokens", "tokens_cache_written"),
    ("reasoning.output_tokens", "tokens_reasoning"),
)
_ALWAYS: Final = ("input_tokens", "output_tokens")
"""What a failed call counts as 0, so that it is not missing."""
_TOKENS: Final = [4**power for power in range(14)]
"""The bounds of the buckets of a histogram, as the conventions advise: of tokens, of seconds."""
_SECONDS: Final = [0.01 * 2**power for power in range(14)]
_SECONDS_TO_FIRST: Final = [
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
]
_NUMBERS: Final = [1, 2, 4, 8, 16, 32, 64, 128]
_ABOUT_CALLS: Final[tuple[str, ...]] = (
    OPERATION,
    "gen_ai.provider.name",
    "gen_ai.system",
    "gen_ai.request.model",
    "gen_ai.response.model",
    ERROR,
)


class Meters:
    """Where figures are counted, under the names that `semconv` asks for."""

    def __init__(self, meter: Meter, semconv: Semconv) -> None:
        self._latest = is_latest(semconv)
        self._old = is_old(semconv)

        def histogram(name: str, unit: str, bounds: Sequence[float]) -> Histogram:
            return meter.create_histogram(name, unit, explicit_bucket_boundaries_advisory=bounds)

        self._counters = {
            name: meter.create_counter(f"{_PREFIX}.usage.{name}", unit="{token}")
            for name, _ in _KINDS
            if self._latest
        }
        self._token_sizes = {
            name: histogram(f"{_PREFIX}.operation.{name}", "{token}", _TOKENS)
            for name in _ALWAYS
            if self._latest
        }
        names = ["invoke_agent", "invoke_workflow", "execute_tool", "client.inference"]
        self._durations = {
            name: histogram(f"gen_ai.{name}.duration", "s", _SECONDS)
            for name in names
            if self._latest
        }
        if self._latest:
            self._first_chunk = histogram(f"{_PREFIX}.time_to_first_chunk", "s", _SECONDS_TO_FIRST)
        self._calls = {
            name: histogram(f"gen_ai.invoke_agent.{name}", f"{{{unit}}}", _NUMBERS)
            for name, unit in (("inference_calls", "inference_call"), ("tool_calls", "tool_call"))
            if self._latest
        }
        if self._old:
            self._old_tokens = histogram("gen_ai.client.token.usage", "{token}", _TOKENS)
            self._old_duration = histogram("gen_ai.client.operation.duration", "s", _SECONDS)

    def model_call(
        self,
        attributes: Attributes,
        usage: SettleUsage | None,
        duration_s: float,
        first_chunk_s: float | None = None,
    ) -> None:
        """Count one model call. What is not known is not counted, a failed call as 0."""
        about: Attributes = {name: attributes[name] for name in _ABOUT_CALLS if name in attributes}
        has_failed = ERROR in attributes
        if self._latest:
            self._durations["client.inference"].record(duration_s, about)
            if first_chunk_s is not None:
                self._first_chunk.record(first_chunk_s, about)
            modality: Attributes = {**about, "gen_ai.token.modality": "unknown"}
            for name, field in _KINDS:
                count = None if usage is None else getattr(usage, field)
                if count is None and has_failed and name in _ALWAYS:
                    count = 0
                if count is not None:
                    self._counters[name].add(count, modality)
                    if name in _ALWAYS:
                        self._token_sizes[name].record(count, about)
        if self._old:
            self._old_duration.record(duration_s, about)
            for kind, field in (("input", "tokens_in"), ("output", "tokens_out")):
                count = None if usage is None else getattr(usage, field)
                if count is not None:
                    self._old_tokens.record(count, {**about, "gen_ai.token.type": kind})

    def work(self, name: str, attributes: Attributes, duration_s: float) -> None:
        """Record how long an `invoke_agent`, `invoke_workflow` or `execute_tool` took."""
        if self._latest:
            self._durations[name].record(duration_s, attributes)

    def calls(self, agent: str, *, models: int, tools: int) -> None:
        """Record how many model and tool calls one attempt at a turn has made itself."""
        if self._latest:
            about = named(gen_ai__agent__name=agent)
            self._calls["inference_calls"].record(models, about)
            self._calls["tool_calls"].record(tools, about)
