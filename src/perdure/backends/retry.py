"""When a call of a backend is made again: the policy, and what a provider asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from perdure.errors import UsageError

RETRY_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
REQUEST_TIMEOUT_MS: Final = 120_000
RESERVE_MAX: Final = 100

_EARNED: Final = 0.2
"""What an answer that began at once adds to the retries that are left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRetry:
    """How often a call is tried before its answer begins, and how long to wait in between.

    The wait before try n + 1 is `backoff_ms * 2 ** (n - 1)`, at most `backoff_max_ms`, of
    which the fraction `jitter` is random: 1 spreads the tries of many clients best, 0 waits
    exactly. `tries_max` counts all tries; 1 turns retries off. A try ends after
    `request_timeout_ms` without a first byte of the answer; 0 waits for ever.

    `reserve_max` is how many retries the calls of one backend have together; with none left a
    failure is not tried again, so that a provider in trouble is asked once by each call, not
    `tries_max` times. An answer that begins after a retry gives one back, any other a fifth of
    one; 0 sets no such limit. Raises UsageError.
    """

    tries_max: int = 5
    backoff_ms: float = 1_000
    backoff_max_ms: float = 30_000
    jitter: float = 1.0
    retry_statuses: frozenset[int] = RETRY_STATUSES
    request_timeout_ms: float = REQUEST_TIMEOUT_MS
    reserve_max: int = RESERVE_MAX

    def __post_init__(self) -> None:
        if self.tries_max < 1:
            raise UsageError(f"tries_max is {self.tries_max}, but must be 1 or more")
        for name in ("backoff_ms", "backoff_max_ms", "request_timeout_ms"):
            wait_ms = getattr(self, name)
            if not 0 <= wait_ms < math.inf:
                raise UsageError(f"{name} is {wait_ms}, but must be 0 or more, and finite")
        if not 0 <= self.jitter <= 1:
            raise UsageError(f"jitter is {self.jitter}, but must be from 0 to 1")
        if self.reserve_max < 0:
            raise UsageError(f"reserve_max is {self.reserve_max}, but must be 0 or more")

    def wait_ms(self, tries: int, *, chance: float, retry_after_ms: float | None = None) -> float:
        """Return the wait after the failed try number `tries` (from 1).

        `chance` is a random number from 0 to 1. What the provider asked for is waited instead,
        but never more than `backoff_max_ms`.
        """
        if retry_after_ms is not None:
            return min(retry_after_ms, self.backoff_max_ms)
        doublings = min(tries - 1, 64)
        whole = min(self.backoff_ms * 2.0**doublings, self.backoff_max_ms)
        return whole * (1 - self.jitter * chance)


class RetryReserve:
    """The retries that are left to all calls of one endpoint, `most` at the beginning."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._left: float = most

    def take(self) -> bool:
        """Take one retry; False if none is left."""
        if self._most and self._left < 1:
            return False
        self._left -= 1
        return True

    def answered(self, *, tries: int) -> None:
        """Give back what an answer earns that began with this try."""
        self._left = min(self._left + (1 if tries > 1 else _EARNED), self._most)


def retry_after_ms(headers: Mapping[str, str], *, now_ms: float) -> float | None:
    """Return how long a response asks to wait, None if it does not say or nobody can read it.

    Reads `retry-after-ms`, then `Retry-After` as seconds or as a date; a past date is 0.
    """
    for name, unit_ms in (("retry-after-ms", 1), ("retry-after", 1_000)):
        wait = _number(headers.get(name, ""))
        if wait is not None:
            return wait * unit_ms
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, moment.timestamp() * 1_000 - now_ms)


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None
