"""Where a tool loop ends that does not end by itself: counts, money, time, and no progress."""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

from perdure.core.pricing import NANOS, ModelCall, PriceTable, usd_sum
from perdure.core.records import JsonValue
from perdure.errors import UsageError

MODEL_CALLS_MAX: Final = 16
TOOL_CALLS_MAX: Final = 128
SAME_CALLS_MAX: Final = 3
CALLS_AT_ONCE_MAX: Final = 8

ToolLoopEnd = Literal["answered", "model_calls", "tool_calls", "cost", "wall_time", "no_progress"]
"""Why a loop ended: the model answered, or the limit of that name."""
OnLimit = Literal["end", "answer"]

_LEAVES_AN_ANSWER: Final = frozenset({"model_calls", "tool_calls", "no_progress"})
"""The limits behind which there is money and time for one more call of the model."""


class ModelUsage(NamedTuple):
    """What one model call used, as far as the provider said; None is unknown."""

    provider: str | None = None
    model: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    tokens_reasoning: int | None = None
    tokens_cache_written: int | None = None


CostUsd = Callable[[ModelUsage], float | None]
"""Returns what a call costs in US dollars; None if that is not known."""


def usd_by(prices: PriceTable) -> CostUsd:
    """Return what asks a table of prices, such as `perdure.observe.prices.PriceList`."""

    def cost_usd(usage: ModelUsage) -> float | None:
        if usage.model is None or usage.tokens_in is None or usage.tokens_out is None:
            return None
        call = ModelCall(
            usage.model,
            usage.tokens_in,
            usage.tokens_out,
            provider=usage.provider,
            tokens_cached=usage.tokens_cached,
            tokens_reasoning=usage.tokens_reasoning,
            tokens_cache_written=usage.tokens_cache_written,
        )
        price = prices.price(call)
        if price is None or price.currency.upper() != "USD":
            return None
        return price.cost_nanos / NANOS

    return cost_usd


_COUNTED: Final = (
    "model_calls_max",
    "tool_calls_max",
    "wall_ms_max",
    "same_calls_max",
    "calls_at_once_max",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimits:
    """What a loop may use up; what is None is not limited.

    `model_calls_max` and `tool_calls_max` count all calls of the loop. `cost_usd_max` is compared
    with the cost of the recorded model calls before the next one; a call whose cost nobody knows
    ends a loop that has this limit. `wall_ms_max` is time at work, of calls that were recorded;
    waiting for a human is none. Calls at once count as long as the longest of them, one that has
    to wait for its place behind those that it waits for; with no time left it is not made.
    `same_calls_max` is how often one tool may be called with equal arguments. `calls_at_once_max`
    is how many calls of one answer are made at once; the others wait for these.

    `on_limit` says what a limit of calls, or of progress, leaves: "end" the conversation as it
    stands; "answer" one last call of the model, which may call no tools any more and says what it
    has. That call is one of `model_calls_max`.
    """

    model_calls_max: int | None = MODEL_CALLS_MAX
    tool_calls_max: int | None = TOOL_CALLS_MAX
    cost_usd_max: float | None = None
    wall_ms_max: int | None = None
    same_calls_max: int | None = SAME_CALLS_MAX
    calls_at_once_max: int | None = CALLS_AT_ONCE_MAX
    on_limit: OnLimit = "end"

    def __post_init__(self) -> None:
        for name in _COUNTED:
            value: object = getattr(self, name)
            if value is not None and not (type(value) is int and value >= 1):
                raise UsageError(f"{name} must be an int from 1, or None, not {value!r:.40}")
        cost = self.cost_usd_max
        if cost is not None and not _is_cost(cost):
            raise UsageError(f"cost_usd_max must be a number from 0, or None, not {cost!r:.40}")
        if self.on_limit not in get_args(OnLimit):
            raise UsageError(f"on_limit must be 'end' or 'answer', not {self.on_limit!r:.40}")
        if self.on_limit == "answer" and self.model_calls_max == 1:
            raise UsageError("on_limit='answer' keeps one call back: model_calls_max must be 2")


class Reached(NamedTuple):
    """A limit that ends the loop, and what was too much."""

    end: ToolLoopEnd
    detail: str


class ToolMeter:
    """Counts what a loop uses. All of it is recorded, so every attempt counts alike."""

    def __init__(self, limits: ToolLimits) -> None:
        self.model_calls = 0
        self.tool_calls = 0
        self.work_ms = 0.0
        self.cost_usd: float | None = 0.0
        """None: the cost of some call is not known."""
        self._limits = limits
        self._same: Counter[str] = Counter()

    @property
    def remaining_ms(self) -> float | None:
        """How long the next call may take."""
        limit_ms = self._limits.wall_ms_max
        return None if limit_ms is None else max(0.0, limit_ms - self.work_ms)

    def before_model_call(self, *, is_last: bool = False) -> Reached | None:
        """Return what forbids another model call; the last one may be kept back for the end."""
        limits = self._limits
        kept_back = 1 if limits.on_limit == "answer" and not is_last else 0
        most = limits.model_calls_max
        if most is not None and self.model_calls >= most - kept_back:
            return Reached("model_calls", f"the model was called {self.model_calls} times")
        if limits.cost_usd_max is not None:
            if self.cost_usd is None:
                return Reached("cost", "the cost of a model call is not known")
            if self.cost_usd >= limits.cost_usd_max:
                told = f"{self.cost_usd:.6f} of {limits.cost_usd_max:.6f} US dollars are spent"
                return Reached("cost", told)
        return self.time_is_over()

    def leaves_an_answer(self, reached: Reached) -> bool:
        """Return whether the model may say what it has, although this limit was reached."""
        if self._limits.on_limit != "answer" or reached.end not in _LEAVES_AN_ANSWER:
            return False
        return self.before_model_call(is_last=True) is None

    def time_is_over(self) -> Reached | None:
        """Return the limit of time if it is used up."""
        if self.remaining_ms is None or self.remaining_ms > 0:
            return None
        return Reached("wall_time", f"{self._limits.wall_ms_max} ms of work are over")

    def model_called(self, answer: Mapping[str, Any]) -> None:
        """Count a recorded answer of the model."""
        self.model_calls += 1
        self.work_ms += answer["durationMs"]
        cost = answer.get("costUsd")
        if cost is None or self.cost_usd is None:
            self.cost_usd = None
        else:
            self.cost_usd = usd_sum(self.cost_usd, cost)

    def before_tools(
        self, calls: Sequence[Mapping[str, JsonValue]], repeatable: Callable[[str], bool]
    ) -> Reached | None:
        """Count what the model asks for; return what forbids to do it."""
        self.tool_calls += len(calls)
        most = self._limits.tool_calls_max
        if most is not None and self.tool_calls > most:
            return Reached("tool_calls", f"the model asked for {self.tool_calls} tool calls")
        for call in calls:
            if self._limits.same_calls_max is None or repeatable(call["name"]):
                continue
            same = json.dumps([call["name"], call["arguments"]], sort_keys=True)
            self._same[same] += 1
            if self._same[same] > self._limits.same_calls_max:
                told = f"{call['name']!r:.80} was asked for with equal arguments"
                return Reached("no_progress", f"{told} {self._same[same]} times")
        return None

    def tools_called(self, work_ms: float) -> None:
        """Count how long the calls of one answer took together."""
        self.work_ms += work_ms


def free_at_ms(durations_ms: Sequence[float | None], at_once_max: int) -> list[float]:
    """Return when each of so many places is free, the first one first, behind these calls.

    They are begun in order, each when a place is free for it; None: it still goes on.
    """
    free_ms = [0.0] * at_once_max
    for duration_ms in durations_ms:
        ends_ms = math.inf if duration_ms is None else free_ms[0] + duration_ms
        heapq.heapreplace(free_ms, ends_ms)
    return sorted(free_ms)


def _is_cost(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value >= 0
