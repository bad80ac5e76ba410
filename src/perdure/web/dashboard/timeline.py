"""Where on a line of time the attempts, leases, waits and steps of a run stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from perdure.core.effects import epoch_ms
from perdure.core.records import AttemptRecord, RunRecord, StepRecord
from perdure.core.transitions import RESTING_STATES
from perdure.core.wording import length_text

TICKS_MAX: Final = 5
WIDTH_MIN: Final = 0.6
"""What is shorter is drawn as wide as this, in percent."""
LEASE_SHARE: Final = 0.15
"""How much of the line a lease may take that lasts on, as a share of what has passed."""
_NICE: Final = tuple(
    factor * unit
    for unit, factors in (
        (1, (1, 2, 5, 10, 20, 50, 100, 200, 500)),
        (1_000, (1, 2, 5, 10, 15, 30)),
        (60_000, (1, 2, 5, 10, 15, 30)),
        (3_600_000, (1, 2, 3, 6, 12)),
        (86_400_000, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)),
    )
    for factor in factors
)


class Bar(NamedTuple):
    """A piece of a line: from `x`, `width` wide, in percent; `kind` says how it is drawn."""

    x: float
    width: float
    kind: str
    label: str


class Tick(NamedTuple):
    """A mark on the line, in percent, with the time since its begin."""

    x: float
    label: str


class Lane(NamedTuple):
    """A step and its piece of the line; None: nobody knows when it was."""

    step: StepRecord
    bar: Bar | None
    took_ms: int | None


class Timeline(NamedTuple):
    """A run over time. `run` has its queueing, attempts and waits, `leases` who held it."""

    ticks: Sequence[Tick]
    run: Sequence[Bar]
    leases: Sequence[Bar]
    lanes: Sequence[Lane]
    length_ms: int


def timeline_of(
    run: RunRecord, attempts: Sequence[AttemptRecord], steps: Sequence[StepRecord], now: str
) -> Timeline:
    """Return the line of a run, from its creation to its end, or to now."""
    axis = _Axis(run, attempts, steps, now)
    return Timeline(
        ticks=axis.ticks(),
        run=[*_waits(axis, run, attempts), *_attempts(axis, attempts)],
        leases=_leases(axis, run, attempts),
        lanes=[_lane(axis, run, attempts, step) for step in steps],
        length_ms=axis.now_ms - axis.begin_ms,
    )


class _Axis:
    """Turns moments into percent."""

    def __init__(
        self,
        run: RunRecord,
        attempts: Sequence[AttemptRecord],
        steps: Sequence[StepRecord],
        now: str,
    ) -> None:
        self.begin_ms = epoch_ms(run.created_at)
        ends = [run.completed_at or run.updated_at]
        ends += [attempt.ended_at or attempt.started_at for attempt in attempts]
        ends += [moment for step in steps if (moment := step.completed_at or step.started_at)]
        if run.state not in RESTING_STATES:
            ends.append(now)
        self.now_ms = max(self.begin_ms + 1, *map(epoch_ms, ends))
        span_ms = self.now_ms - self.begin_ms
        self.lease_ms = self.now_ms
        if run.state == "running" and run.lease_expires_at is not None:
            lasts_ms = epoch_ms(run.lease_expires_at)
            room_ms = max(1, round(span_ms * LEASE_SHARE))
            self.lease_ms = max(self.now_ms, min(lasts_ms, self.now_ms + room_ms))
        self.length_ms = self.lease_ms - self.begin_ms

    def bar(self, begin_ms: int, end_ms: int, kind: str, label: str) -> Bar:
        x = self._percent(begin_ms)
        width = max(WIDTH_MIN, self._percent(end_ms) - x)
        return Bar(round(min(x, 100 - width), 2), round(width, 2), kind, label)

    def _percent(self, moment_ms: int) -> float:
        return min(100.0, max(0.0, 100 * (moment_ms - self.begin_ms) / self.length_ms))

    def ticks(self) -> list[Tick]:
        # A label stands to the right of its mark and needs room there.
        every = next((size for size in _NICE if self.length_ms / size <= TICKS_MAX), _NICE[-1])
        places = range(0, max(1, round(self.length_ms * 0.94)), every)
        marks = list(places)[: TICKS_MAX + 1]
        return [
            Tick(round(100 * place / self.length_ms, 2), length_text(place) if place else "0")
            for place in marks
        ]


def _ended_ms(axis: _Axis, attempt: AttemptRecord) -> int:
    return axis.now_ms if attempt.ended_at is None else epoch_ms(attempt.ended_at)


def _waits(axis: _Axis, run: RunRecord, attempts: Sequence[AttemptRecord]) -> list[Bar]:
    """Return the pieces in which nobody worked: before, between and behind the attempts."""
    bars: list[Bar] = []
    since_ms, why = axis.begin_ms, "queued"
    for attempt in attempts:
        begun_ms = epoch_ms(attempt.started_at)
        if begun_ms > since_ms:
            bars.append(_wait(axis, since_ms, begun_ms, why))
        since_ms, why = _ended_ms(axis, attempt), attempt.ended or "running"
    if run.state not in RESTING_STATES and axis.now_ms > since_ms:
        bars.append(_wait(axis, since_ms, axis.now_ms, why if attempts else run.state))
    return bars


def _wait(axis: _Axis, begin_ms: int, end_ms: int, why: str) -> Bar:
    return axis.bar(begin_ms, end_ms, "wait", f"{why} for {length_text(end_ms - begin_ms)}")


def _attempts(axis: _Axis, attempts: Sequence[AttemptRecord]) -> list[Bar]:
    bars: list[Bar] = []
    for attempt in attempts:
        begin_ms, end_ms = epoch_ms(attempt.started_at), _ended_ms(axis, attempt)
        ended = attempt.ended or "goes on"
        label = f"attempt {attempt.epoch}, {ended}, {length_text(end_ms - begin_ms)}"
        bars.append(axis.bar(begin_ms, end_ms, _kind_of(attempt), label))
    return bars


def _kind_of(attempt: AttemptRecord) -> str:
    if attempt.ended is None:
        return "running"
    if attempt.ended in ("lost", "failed", "parked"):
        return attempt.ended
    return "completed" if attempt.ended == "completed" else "left"


def _leases(axis: _Axis, run: RunRecord, attempts: Sequence[AttemptRecord]) -> list[Bar]:
    """Return who held the run; all pieces of a worker are drawn alike."""
    holders = list(dict.fromkeys(attempt.holder for attempt in attempts))
    bars: list[Bar] = []
    for attempt in attempts:
        place = holders.index(attempt.holder) % 4
        begin_ms, end_ms = epoch_ms(attempt.started_at), _ended_ms(axis, attempt)
        bars.append(axis.bar(begin_ms, end_ms, f"holder-{place}", f"held by {attempt.holder}"))
    if axis.lease_ms > axis.now_ms and attempts and attempts[-1].ended is None:
        label = f"lease of {run.lease_holder_id} until {run.lease_expires_at}"
        bars.append(axis.bar(axis.now_ms, axis.lease_ms, "lease", label))
    return bars


def _lane(axis: _Axis, run: RunRecord, attempts: Sequence[AttemptRecord], step: StepRecord) -> Lane:
    begun, ended = step.started_at or step.completed_at, step.completed_at
    if begun is None:
        return Lane(step, None, None)
    begin_ms = epoch_ms(begun)
    if ended is not None:
        end_ms = epoch_ms(ended)
    else:
        end_ms = axis.now_ms
        for attempt in attempts:
            if attempt.epoch == step.epoch:
                end_ms = _ended_ms(axis, attempt)
        if is_wait(step) and run.state not in RESTING_STATES:
            end_ms = axis.now_ms
    kind = "wait" if is_wait(step) and step.status != "failed" else step.status
    took_ms = max(0, end_ms - begin_ms)
    bar = axis.bar(begin_ms, end_ms, kind, f"{step.status}, {length_text(took_ms)}")
    return Lane(step, bar, took_ms if step.started_at is not None else None)


def is_wait(step: StepRecord) -> bool:
    """Return whether the step is no work but a pause."""
    return step.kind == "event" or step.intent.startswith(("sleep:", "event:"))
