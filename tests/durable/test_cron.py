"""When schedules are due, over the days on which the clock is changed too."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from perdure.core.effects import epoch_ms, iso_time
from perdure.durable.cron import Cron, Timing, timing_of, zone_of
from perdure.errors import UsageError

HOUR_MS = 60 * 60 * 1_000
DAY_MS = 24 * HOUR_MS


def cron(expression: str, zone: str = "UTC") -> Timing:
    return timing_of(cron=expression, every_ms=None, timezone=zone, anchor_ms=0)


def moments(timing: Timing, start: str, count: int) -> list[str]:
    """Return the first due times behind `start`, to the minute."""
    found: list[str] = []
    moment_ms = epoch_ms(start)
    for _ in range(count):
        moment_ms = timing.after(moment_ms)
        found.append(iso_time(moment_ms)[:16])
    return found


def test_an_expression_is_read_in_its_time_zone() -> None:
    start = "2026-01-31T09:05:07.042Z"
    assert moments(cron("0 3 * * *"), start, 2) == ["2026-02-01T03:00", "2026-02-02T03:00"]
    berlin = cron("0 3 * * *", "Europe/Berlin")
    assert moments(berlin, start, 2) == ["2026-02-01T02:00", "2026-02-02T02:00"]
    kathmandu = cron("0 3 * * *", "Asia/Kathmandu")
    assert moments(kathmandu, start, 1) == ["2026-01-31T21:15"]


def test_a_due_time_is_later_than_the_moment_that_it_is_looked_for_from() -> None:
    every_minute = cron("* * * * *")
    due_ms = epoch_ms("2026-01-31T09:05:00.000Z")
    assert every_minute.after(due_ms - 1) == due_ms
    assert every_minute.after(due_ms) == due_ms + 60_000
    assert every_minute.after(due_ms + 999) == due_ms + 60_000


def test_days_and_weekdays_are_read_as_cron_reads_them() -> None:
    # Both restricted: one of them is enough.
    either = cron("0 0 1 * MON")
    assert moments(either, "2026-01-30T00:00:00.000Z", 3) == [
        "2026-02-01T00:00",
        "2026-02-02T00:00",
        "2026-02-09T00:00",
    ]
    last_day = cron("0 0 L * *")
    assert moments(last_day, "2028-02-01T00:00:00.000Z", 1) == ["2028-02-29T00:00"]


# The days on which the clock is changed.


def test_a_time_that_the_clock_skips_is_due_when_the_clock_goes_on() -> None:
    # On 29 March 2026 at 01:00 UTC the clocks of Berlin go from 02:00 to 03:00.
    nightly = cron("30 2 * * *", "Europe/Berlin")
    assert moments(nightly, "2026-03-27T12:00:00.000Z", 4) == [
        "2026-03-28T01:30",
        "2026-03-29T01:00",
        "2026-03-30T00:30",
        "2026-03-31T00:30",
    ]


def test_two_times_that_the_clock_skips_are_due_once() -> None:
    twice = cron("0,30 2 * * *", "Europe/Berlin")
    assert moments(twice, "2026-03-28T12:00:00.000Z", 2) == ["2026-03-29T01:00", "2026-03-30T00:00"]


def test_a_time_that_comes_twice_is_due_the_first_time() -> None:
    # On 25 October 2026 at 01:00 UTC the clocks of Berlin go from 03:00 back to 02:00.
    nightly = cron("30 2 * * *", "Europe/Berlin")
    assert moments(nightly, "2026-10-24T12:00:00.000Z", 2) == [
        "2026-10-25T00:30",
        "2026-10-26T01:30",
    ]


@pytest.mark.parametrize("minutes", range(0, 180, 7))
def test_from_every_moment_of_that_night_the_next_is_later(minutes: int) -> None:
    start_ms = epoch_ms("2026-10-25T00:00:00.000Z") + minutes * 60_000
    for expression in ("30 2 * * *", "0 2 * * *", "59 2 * * *", "0 3 * * *", "*/20 2 * * *"):
        due_ms = cron(expression, "Europe/Berlin").after(start_ms)
        assert start_ms < due_ms <= start_ms + 2 * DAY_MS


def test_what_counts_by_the_hour_or_minute_counts_real_time() -> None:
    hourly = cron("15 * * * *", "Europe/Berlin")
    half_hourly = cron("*/30 * * * *", "Europe/Berlin")
    for night in ("2026-03-28T22:00:00.000Z", "2026-10-24T22:00:00.000Z"):
        for timing, length_ms in ((hourly, HOUR_MS), (half_hourly, HOUR_MS // 2)):
            found = [epoch_ms(f"{each}:00.000Z") for each in moments(timing, night, 16)]
            lengths = {later - earlier for earlier, later in pairwise(found)}
            assert lengths == {length_ms}


def test_a_zone_whose_clock_is_changed_by_half_an_hour() -> None:
    nightly = cron("15 2 * * *", "Australia/Lord_Howe")
    assert moments(nightly, "2026-10-02T00:00:00.000Z", 3) == [
        "2026-10-02T15:45",
        # From 02:00 to 02:30 on the fourth.
        "2026-10-03T15:30",
        "2026-10-04T15:15",
    ]


# What was missed.


@pytest.mark.parametrize(
    ("expression", "zone"),
    [
        ("30 2 * * *", "Europe/Berlin"),
        ("0,30 2,3 * * *", "Europe/Berlin"),
        ("*/30 * * * *", "Europe/Berlin"),
        ("15 */2 * * *", "America/St_Johns"),
        ("0 0 1 * *", "UTC"),
    ],
)
@pytest.mark.parametrize("start", ["2026-03-27T12:34:56.789Z", "2026-10-23T12:34:56.789Z"])
def test_the_newest_is_the_one_that_a_walk_through_all_of_them_ends_at(
    expression: str, zone: str, start: str
) -> None:
    timing = cron(expression, zone)
    due_ms = timing.after(epoch_ms(start))
    walked_ms, next_ms = due_ms, timing.after(due_ms)
    for now_ms in range(due_ms, due_ms + 3 * DAY_MS, 10 * 60_000 + 1):
        while next_ms <= now_ms:
            walked_ms, next_ms = next_ms, timing.after(next_ms)
        assert timing.newest(due_ms, now_ms) == walked_ms


def test_a_year_that_was_missed_is_not_walked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = Cron("* * * * *", zone_of("Europe/Berlin"))
    due_ms = epoch_ms("2025-01-01T00:00:00.000Z")
    walked: list[int] = []
    after = timing.after

    def walk(moment_ms: int) -> int:
        walked.append(moment_ms)
        return after(moment_ms)

    monkeypatch.setattr(timing, "after", walk)
    now_ms = due_ms + 365 * DAY_MS + 42_000
    assert timing.newest(due_ms, now_ms) == due_ms + 365 * DAY_MS
    assert len(walked) <= 3


# Intervals.


def test_an_interval_counts_from_its_anchor() -> None:
    timing = timing_of(cron=None, every_ms=1_000, timezone="UTC", anchor_ms=500)
    assert [timing.after(moment) for moment in (0, 500, 1_499, 1_500, 9_999)] == [
        1_500,
        1_500,
        1_500,
        2_500,
        10_500,
    ]
    assert [timing.newest(1_500, now) for now in (1_500, 2_499, 2_500, 99_999)] == [
        1_500,
        1_500,
        2_500,
        99_500,
    ]


# What is refused.


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({}, "either"),
        ({"cron": "0 3 * * *", "every_ms": 1_000}, "either"),
        ({"cron": ""}, "five fields"),
        ({"cron": "0 3 * *"}, "five fields"),
        ({"cron": "0 0 3 * * *"}, "five fields"),
        ({"cron": 7}, "five fields"),
        ({"cron": "60 3 * * *"}, "minute"),
        ({"cron": "0 3 * * XYZ"}, "day-of-week"),
        ({"cron": "0 3 31 2 *"}, "day-of-month"),
        ({"cron": "0 3 * * *", "timezone": "Europe/Atlantis"}, "Europe/Atlantis"),
        ({"cron": "0 3 * * *", "timezone": "../../etc/passwd"}, "time zone"),
        ({"cron": "0 3 * * *", "timezone": "Europe"}, "time zone"),
        ({"cron": "0 3 * * *", "timezone": ""}, "time zone"),
        ({"cron": "0 3 * * *", "timezone": None}, "time zone"),
        ({"every_ms": 99}, "every_ms"),
        ({"every_ms": 1.5}, "every_ms"),
        ({"every_ms": 1_000, "timezone": "Europe/Berlin"}, "timezone"),
    ],
)
def test_what_is_no_timing_is_refused(options: dict[str, Any], culprit: str) -> None:
    whole: dict[str, Any] = {"cron": None, "every_ms": None, "timezone": "UTC", **options}
    with pytest.raises(UsageError, match=culprit):
        timing_of(**whole, anchor_ms=0)


def test_an_expression_that_never_comes_due_is_refused_when_it_is_asked() -> None:
    # The first of a month is never a second Monday.
    with pytest.raises(UsageError, match="never comes due"):
        cron("0 0 */31 * MON#2").after(0)


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(ImportError, match=r"perdure\[schedules\]"):
        cron("0 3 * * *")
    interval = timing_of(cron=None, every_ms=1_000, timezone="UTC", anchor_ms=0)
    assert interval.after(int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1_000) % 1_000 == 0
