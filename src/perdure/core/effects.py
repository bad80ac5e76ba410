"""Time, ids and randomness: the only place that asks the machine for them."""

from __future__ import annotations

import os
import random
import secrets
import time
import uuid
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, TypeVar

T = TypeVar("T")

_dice = random.Random()
_MOMENT_CHARS: Final = len("2026-01-31T09:05:07.042Z")
_TOKEN_BYTES: Final = 16
_TOKENS_DRAWN: Final = 64
_tokens: Final[list[str]] = []
if hasattr(os, "register_at_fork"):
    # A child must not draw what its parent draws.
    os.register_at_fork(after_in_child=_tokens.clear)
    os.register_at_fork(after_in_child=_dice.seed)

Clock = Callable[[], int]
"""Milliseconds since the epoch."""
Dice = random.Random
"""What draws the same from the same seed."""


def system_clock() -> int:
    """Return the machine's time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> float:
    """Return a time in milliseconds that never goes back, to measure lengths within a process."""
    return time.monotonic_ns() / 1_000_000


def iso_time(epoch_ms: int) -> str:
    """Return `epoch_ms` as `2026-01-31T09:05:07.042Z`, the form in which moments are stored."""
    seconds, milliseconds = divmod(epoch_ms, 1_000)
    return f"{_to_the_second(seconds)}.{milliseconds:03d}Z"


@lru_cache(maxsize=1_024)
def _to_the_second(seconds: int) -> str:
    """Most moments that are written are of the same few seconds."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def epoch_ms(moment: str) -> int:
    """Return the milliseconds since the epoch of a stored moment."""
    if len(moment) == _MOMENT_CHARS and moment[19] == "." and moment[23] == "Z":
        return _from_the_second(moment[:19]) + int(moment[20:23])
    return round(datetime.fromisoformat(moment).timestamp() * 1_000)


@lru_cache(maxsize=64)
def _from_the_second(moment: str) -> int:
    return round(datetime.fromisoformat(f"{moment}Z").timestamp()) * 1_000


def new_token() -> str:
    """Return a random text that nobody can guess, for a lease or a delivery.

    Tokens are drawn many at a time: asking the system gives the interpreter lock away, which a
    busy writing thread then keeps for longer than the token took.
    """
    try:
        return _tokens.pop()
    except IndexError:
        drawn = secrets.token_hex(_TOKEN_BYTES * _TOKENS_DRAWN)
        size = 2 * _TOKEN_BYTES
        _tokens.extend(drawn[at : at + size] for at in range(0, len(drawn), size))
        return _tokens.pop()


def random_bytes(count: int) -> bytes:
    """Return `count` random bytes that nobody can guess, for a key."""
    return secrets.token_bytes(count)


def new_uuid() -> str:
    """Return a random UUID (version 4)."""
    return str(uuid.uuid4())


def new_reference() -> str:
    """Return a short random id by which a person finds a logged failure."""
    return secrets.token_hex(5)


def random_float() -> float:
    """Return a random number from 0.0 up to, not including, 1.0."""
    return _dice.random()


def jittered(length_ms: float, fraction: float = 0.5) -> float:
    """Return a random length of `length_ms` ± `fraction` of it, so that workers do not march."""
    return length_ms * (1 + fraction * (2 * _dice.random() - 1))


def shuffled(items: Iterable[T]) -> list[T]:
    """Return the items in random order, so that workers do not fight for the same one."""
    mixed = list(items)
    if len(mixed) > 1:
        _dice.shuffle(mixed)
    return mixed


@contextmanager
def reproducible(seed: int) -> Generator[Dice, None, None]:
    """Draw all lengths and orders from `seed` within it, for a simulation; tokens stay secret."""
    global _dice
    before, _dice = _dice, Dice(seed)
    try:
        yield _dice
    finally:
        _dice = before
