"""How people are told of runs and moments."""

from __future__ import annotations

import pytest

from perdure.core.records import RunRecord
from perdure.core.wording import error_text, length_text, moment_of, note_of, when

NOW = "2026-01-31T09:05:07.042Z"
LATER = "2026-01-31T09:06:07.042Z"
RUN = RunRecord("r", "h", "p", "running", "running", NOW, NOW)


@pytest.mark.parametrize(
    ("run", "note"),
    [
        (RUN, "given back, waits for a worker"),
        (RUN._replace(lease_holder_id="w", lease_expires_at=LATER), None),
        (RUN._replace(lease_holder_id="w", lease_expires_at=LATER, strikes=1), "1 crash"),
        (RUN._replace(lease_holder_id="w", lease_expires_at=LATER, strikes=2), "2 crashes"),
        (
            RUN._replace(lease_holder_id="w", lease_expires_at=NOW),
            "its worker is gone, waits for another",
        ),
        (RUN._replace(stop_requested_at=NOW), "a stop is asked for"),
        (RUN._replace(state="sleeping", wake_at=LATER), "until in 1m"),
        (RUN._replace(state="waiting", wake_key="paid"), "for paid, without end"),
        (RUN._replace(state="waiting", wake_key="paid", wake_at=NOW), "for paid, due now"),
        (RUN._replace(state="parked", reason="strikes"), "strikes"),
        (RUN._replace(state="completed"), None),
    ],
)
def test_a_run_is_explained(run: RunRecord, note: str | None) -> None:
    assert note_of(run, NOW) == note


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1h", "2026-01-31T08:05:07.042Z"),
        ("1h ago", "2026-01-31T08:05:07.042Z"),
        ("2026-01-30", "2026-01-30T00:00:00.000Z"),
        ("2026-01-30 12:30", "2026-01-30T12:30:00.000Z"),
        ("2026-01-30T12:30:01.5Z", "2026-01-30T12:30:01.500Z"),
        ("9999w", "1970-01-01T00:00:00.000Z"),
    ],
)
def test_a_moment_is_a_length_ago_or_a_date(text: str, moment: str) -> None:
    assert moment_of(text, NOW) == moment


@pytest.mark.parametrize(
    ("length_ms", "text"),
    [
        (-5, "0ms"),
        (820, "820ms"),
        (12_400, "12s"),
        (200_000, "3m 20s"),
        (5 * 3_600_000, "5h"),
        (12 * 86_400_000 + 5, "12d"),
    ],
)
def test_a_length_is_told_as_people_say_it(length_ms: float, text: str) -> None:
    assert length_text(length_ms) == text


def test_a_moment_is_told_from_another_one() -> None:
    assert when(NOW, LATER) == "1m ago"
    assert when(LATER, NOW) == "in 1m"
    assert when(None, NOW) is None


def test_an_error_that_says_nothing_or_fails_to_is_told_by_its_type() -> None:
    class SpeechlessError(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    assert error_text(OSError("the disk is full")) == "the disk is full"
    assert error_text(TimeoutError()) == "TimeoutError"
    assert error_text(SpeechlessError()).endswith("SpeechlessError")
