"""When a schedule is due: at the moments of a cron expression in its time zone, or at intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, tzinfo
from typing import Final, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from perdure.core.lengths import check_length
from perdure.core.limits import SCHEDULE_EVERY_MIN_MS
from perdure.errors import UsageError

_FIELDS: Final = 5


class Timing(Protocol):
    """The due times of a schedule, in milliseconds since the epoch."""

    def after(self, moment_ms: int) -> int:
        """Return the first due time later than the moment."""
        ...

    def newest(self, due_ms: int, now_ms: int) -> int:
        """Return the last due time that is not later than now, where `due_ms` is an earlier one."""
        ...


class Interval(NamedTuple):
    """Every so many milliseconds from `anchor_ms` on."""

    every_ms: int
    anchor_ms: int

    def after(self, moment_ms: int) -> int:
        passed = max(0, moment_ms - self.anchor_ms) // self.every_ms
        return self.anchor_ms + (passed + 1) * self.every_ms

    def newest(self, due_ms: int, now_ms: int) -> int:
        return due_ms + (now_ms - due_ms) // self.every_ms * self.every_ms


class Cron:
    """The moments of a cron expression with five fields, in a time zone.

    An expression whose minute and hour are both given names wall-clock times: one that the clock
    skips in spring is due when the clock goes on, one that comes twice in autumn is due the first
    time. With a `*` in its minute or hour it counts real time: what the clock skips is left out,
    and what comes twice is due twice.
    """

    def __init__(self, expression: str, zone: tzinfo) -> None:
        self._simulate, broken = _load()
        self._expression = expression
        self._zone = zone
        if type(expression) is not str or len(expression.split()) != _FIELDS:
            raise UsageError(
                f"cron must have five fields, minute hour day month weekday, not {expression!r:.60}"
            )
        try:
            self._simulate(expression, datetime(2000, 1, 1, tzinfo=zone))
        except broken as error:
            raise UsageError(f"{expression!r:.60} is no cron expression: {error}") from error

    def after(self, moment_ms: int) -> int:
        """Raises UsageError if there is none within 50 years."""
        for moment in self._simulate(self._expression, self._local(moment_ms)):
            # A wall-clock time may lie before the hour that comes twice, and be found within it.
            due_ms = round(moment.timestamp() * 1_000)
            if due_ms > moment_ms:
                return due_ms
        raise UsageError(f"the cron expression {self._expression!r:.60} never comes due")

    def newest(self, due_ms: int, now_ms: int) -> int:
        newest_ms = due_ms
        # Long ago is not walked through; backwards the last one may be missed, never invented.
        backwards = self._simulate(self._expression, self._local(now_ms + 1_000), True)
        for moment in backwards:
            found_ms = round(moment.timestamp() * 1_000)
            if found_ms <= now_ms:
                newest_ms = max(due_ms, found_ms)
                break
        while (next_ms := self.after(newest_ms)) <= now_ms:
            newest_ms = next_ms
        return newest_ms

    def _local(self, moment_ms: int) -> datetime:
        return datetime.fromtimestamp(moment_ms // 1_000, self._zone)


def timing_of(*, cron: str | None, every_ms: int | None, timezone: str, anchor_ms: int) -> Timing:
    """Return the due times of a schedule; those of an interval count from `anchor_ms`.

    Raises UsageError for what is no cron expression, time zone or length, and ImportError
    without the library that reads cron expressions.
    """
    if (cron is None) == (every_ms is None):
        raise UsageError("a schedule needs either cron or every_ms")
    if every_ms is not None:
        check_length(every_ms, name="every_ms", least=SCHEDULE_EVERY_MIN_MS)
        if timezone != "UTC":
            raise UsageError("an interval counts real time: timezone is for cron")
        return Interval(every_ms, anchor_ms)
    assert cron is not None
    return Cron(cron, zone_of(timezone))


def zone_of(name: str) -> tzinfo:
    """Return the time zone of an IANA name. Raises UsageError."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise UsageError(
            f"there is no time zone {name!r:.60} here: give an IANA name such as 'Europe/Berlin'; "
            "a machine without a time zone database needs pip install 'perdure[schedules]'"
        ) from error


def _load() -> tuple[Callable[..., Iterator[datetime]], type[Exception]]:
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as error:
        raise ImportError(
            "cron expressions need cronsim: pip install 'perdure[schedules]'"
        ) from error
    return CronSim, CronSimError
