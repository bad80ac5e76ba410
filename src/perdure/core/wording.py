"""How people are told of runs, moments and errors, and how they name a moment or a length."""

from __future__ import annotations

import re
from typing import Final

from perdure.core.effects import epoch_ms, iso_time
from perdure.core.identity import stored_id
from perdure.core.pricing import NANOS
from perdure.core.records import RunRecord
from perdure.errors import UsageError

BODY_CHARS_MAX: Final = 2_048
"""So much of a provider's words is kept with an error."""
_UNITS: Final = {
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 7 * 86_400_000,
}
_TOLD: Final = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000))
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?Z?)?", re.ASCII)


def error_text(error: BaseException) -> str:
    """Return what an error says, or the name of its type where it says nothing or fails to."""
    try:
        said = str(error)
    except Exception:  # Of code that is not ours; the error that is told of is what counts.
        said = ""
    return said or type(error).__qualname__


def cut_body(words: str) -> str:
    """Return what is kept of a provider's words with an error, and an ellipsis for the rest."""
    return words if len(words) <= BODY_CHARS_MAX else f"{words[:BODY_CHARS_MAX]}…"


def length_ms(text: str) -> int:
    """Return the milliseconds of a length such as `90s` or `1.5h`. Raises UsageError."""
    match = _LENGTH.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r:.40} is no length of time: write 500ms, 90s, 15m, 24h, 30d or 2w"
        )
    return round(float(match[1]) * _UNITS[match[2]])


def length_text(length_ms: float) -> str:
    """Return a length of time as people say it: `820ms`, `12s`, `3m 20s`, `5h`, `12d`."""
    if length_ms < 1_000:
        return f"{max(0, round(length_ms))}ms"
    for place, (unit, size) in enumerate(_TOLD):
        if length_ms >= size:
            whole, rest = divmod(length_ms, size)
            text = f"{whole:.0f}{unit}"
            if unit in "hm" and whole < 10:
                smaller, smaller_size = _TOLD[place + 1]
                part = int(rest // smaller_size)
                return f"{text} {part}{smaller}" if part else text
            return text
    raise AssertionError(length_ms)


def when(moment: str | None, now: str) -> str | None:
    """Return a stored moment relative to another: `3m ago`, `in 12s`; None for none."""
    if moment is None:
        return None
    past_ms = epoch_ms(now) - epoch_ms(moment)
    return f"{length_text(past_ms)} ago" if past_ms >= 0 else f"in {length_text(-past_ms)}"


def moment_of(text: str, now: str, *, name: str = "since") -> str:
    """Return the moment that `24h` ago was, or that a date (UTC) is.

    Raises UsageError, which calls what is neither `name`.
    """
    if _DATE.fullmatch(text) is not None:
        moment = text.replace(" ", "T").removesuffix("Z")
        try:
            return iso_time(epoch_ms(moment + ("+00:00" if "T" in moment else "T00:00:00+00:00")))
        except ValueError as error:
            raise UsageError(f"{name} {text!r} is no date: {error}") from error
    try:
        return iso_time(max(0, epoch_ms(now) - length_ms(text.removesuffix(" ago"))))
    except UsageError:
        raise UsageError(
            f"{name} {text!r:.40} is no moment: write 24h, 30d, 2026-01-31 or 2026-01-31T09:05"
        ) from None


def cost_text(nanos: int | None, currency: str | None) -> str:
    """Return a cost in billionths with as many digits as it needs, or that it is unknown."""
    if nanos is None:
        return "unknown"
    whole, rest = divmod(abs(nanos), NANOS)
    digits = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nanos < 0 else ''}{whole}.{digits} {currency or '?'}"


def id_of(run: RunRecord) -> str:
    """Return the id that names a run to whoever looks after a store, its tenant included."""
    return stored_id(run.tenant, run.run_id)


def note_of(run: RunRecord, now: str) -> str | None:
    """Return what is to be known of a run beside its state, if there is something."""
    if run.state == "running":
        if run.stop_requested_at is not None:
            return "a stop is asked for"
        if run.lease_holder_id is None:
            return "given back, waits for a worker"
        if (run.lease_expires_at or "") <= now:
            return "its worker is gone, waits for another"
        if run.strikes:
            return "1 crash" if run.strikes == 1 else f"{run.strikes} crashes"
        return None
    if run.state in ("sleeping", "waiting"):
        what = f"for {run.wake_key}, " if run.wake_key is not None else ""
        until = "due now" if (run.wake_at or "9") <= now else f"until {when(run.wake_at, now)}"
        return f"{what}{until if run.wake_at is not None else 'without end'}"
    return run.reason
