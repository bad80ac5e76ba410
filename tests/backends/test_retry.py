"""The retry policy: how long is waited, and what a provider may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from perdure.backends.retry import BackendRetry, RetryReserve, retry_after_ms
from perdure.errors import UsageError

NOW_MS = 1_700_000_000_000.0
NOW_AS_DATE = "Tue, 14 Nov 2023 22:13:20 GMT"


def test_appendix_b_the_wait_doubles_up_to_its_ceiling() -> None:
    retry = BackendRetry(jitter=0)
    waits = [retry.wait_ms(tries, chance=0.5) for tries in range(1, 8)]
    assert waits == [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]


def test_the_ceiling_holds_after_any_number_of_tries() -> None:
    assert BackendRetry(jitter=0).wait_ms(100_000, chance=0) == 30_000


def test_bb_11_the_jitter_is_full_unless_told() -> None:
    assert BackendRetry().wait_ms(3, chance=0) == 4_000
    assert BackendRetry().wait_ms(3, chance=0.75) == 1_000
    assert BackendRetry(jitter=0.5).wait_ms(3, chance=1) == 2_000


def test_bb_11_what_the_provider_asks_for_is_waited_up_to_the_ceiling() -> None:
    retry = BackendRetry(backoff_max_ms=5_000)
    assert retry.wait_ms(1, chance=0.9, retry_after_ms=3_000) == 3_000
    assert retry.wait_ms(1, chance=0.9, retry_after_ms=0) == 0
    assert retry.wait_ms(1, chance=0.9, retry_after_ms=3_600_000) == 5_000


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"tries_max": 0}, "tries_max"),
        ({"backoff_ms": -1}, "backoff_ms"),
        ({"backoff_ms": float("nan")}, "backoff_ms"),
        ({"backoff_max_ms": float("inf")}, "backoff_max_ms"),
        ({"request_timeout_ms": -1}, "request_timeout_ms"),
        ({"jitter": -0.1}, "jitter"),
        ({"jitter": 1.1}, "jitter"),
        ({"reserve_max": -1}, "reserve_max"),
    ],
)
def test_bb_11_a_policy_out_of_range_is_refused_by_name(values: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=name):
        BackendRetry(**values)


def test_bb_11_retries_are_taken_from_a_reserve_that_answers_fill_up_again() -> None:
    reserve = RetryReserve(2)
    assert [reserve.take() for _ in range(3)] == [True, True, False]
    reserve.answered(tries=3)
    assert [reserve.take() for _ in range(2)] == [True, False]
    for _ in range(5):
        reserve.answered(tries=1)
    assert [reserve.take() for _ in range(2)] == [True, False]
    for _ in range(50):
        reserve.answered(tries=1)
    assert [reserve.take() for _ in range(3)] == [True, True, False]


def test_a_reserve_of_nothing_sets_no_limit() -> None:
    reserve = RetryReserve(0)
    assert all(reserve.take() for _ in range(1_000))


@pytest.mark.parametrize(
    ("headers", "wait_ms"),
    [
        ({}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "2"}, 2_000),
        ({"retry-after": "0.5"}, 500),
        ({"retry-after": "2", "retry-after-ms": "150"}, 150),
        ({"retry-after": "2", "retry-after-ms": "x"}, 2_000),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:27 GMT"}, 7_000),
        ({"retry-after": NOW_AS_DATE}, 0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:00 GMT"}, 0),
        ({"retry-after": "Tue, 99 Nov 2023 22:13:00 GMT"}, None),
    ],
)
def test_retry_after_is_read(headers: Mapping[str, str], wait_ms: float | None) -> None:
    assert retry_after_ms(headers, now_ms=NOW_MS) == wait_ms


def test_9_4_the_policy_of_who_gives_none() -> None:
    policy = BackendRetry()
    assert (policy.tries_max, policy.backoff_ms, policy.backoff_max_ms) == (5, 1_000, 30_000)
    assert policy.retry_statuses == {408, 425, 429, 500, 502, 503, 504}
    assert policy.request_timeout_ms == 120_000
