"""The names of the GenAI semantic conventions, current and old, and what they say of a call.

All of them are still called development by OpenTelemetry; this is the one place that knows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from perdure.core.changes import SettleUsage
from perdure.observe.credentials import mask_text

Semconv = Literal["latest", "1.36", "both"]
Attributes = dict[str, str | int | float | bool | Sequence[str]]

OPERATION: Final = "gen_ai.operation.name"
ERROR: Final = "error.type"


def named(**values: str | int | float | bool | None) -> Attributes:
    """Return attributes from names with `__` for a dot; None is left out, credentials masked."""
    known: Attributes = {}
    for name, value in values.items():
        if value is not None:
            known[name.replace("__", ".")] = mask_text(value) if isinstance(value, str) else value
    return known


def is_old(semconv: Semconv) -> bool:
    return semconv in ("1.36", "both")


def is_latest(semconv: Semconv) -> bool:
    return semconv in ("latest", "both")


def model_attributes(provider: str | None, model: str | None, semconv: Semconv) -> Attributes:
    """Return who is asked for what; required of every model call."""
    known = named(gen_ai__operation__name="chat", gen_ai__request__model=model)
    if is_latest(semconv):
        known |= named(gen_ai__provider__name=provider or "unknown")
    if is_old(semconv):
        known |= named(gen_ai__system=provider or "_OTHER")
    return known


def answer_attributes(
    finish: str | None, first_chunk_s: float | None, semconv: Semconv
) -> Attributes:
    """Return how an answer came, as far as it is known."""
    known: Attributes = {}
    if finish is not None:
        known["gen_ai.response.finish_reasons"] = [mask_text(finish)]
    if first_chunk_s is not None and is_latest(semconv):
        known["gen_ai.response.time_to_first_chunk"] = first_chunk_s
    return known


def usage_attributes(usage: SettleUsage, semconv: Semconv) -> Attributes:
    """Return what a call used, as far as it is known."""
    known = named(
        gen_ai__response__id=usage.request_id,
        gen_ai__response__model=usage.model,
        gen_ai__usage__input_tokens=usage.tokens_in,
        gen_ai__usage__output_tokens=usage.tokens_out,
    )
    if is_latest(semconv):
        known |= named(
            gen_ai__usage__cache_read__input_tokens=usage.tokens_cached,
            gen_ai__usage__cache_write__input_tokens=usage.tokens_cache_written,
            gen_ai__usage__reasoning__output_tokens=usage.tokens_reasoning,
        )
    return known


def error_type(error: BaseException) -> str:
    """Return the low-cardinality name of a failure: never its message."""
    code = getattr(error, "code", None)
    return code if isinstance(code, str) and code else type(error).__qualname__
