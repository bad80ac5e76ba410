"""Admission: what one process takes on at a time, so that too much of it is refused at the door."""

from __future__ import annotations

from collections.abc import Generator, Hashable
from contextlib import contextmanager
from typing import Final, NamedTuple

from perdure.core import identity
from perdure.core.limits import (
    BODIES_BYTES_MAX,
    STREAMS_MAX,
    TENANT_TURNS_MAX,
    TURNS_MAX,
)
from perdure.errors import OverloadedError, TooManyReadersError, TooManyTurnsError, UsageError
from perdure.turn.registry import turns_at_work


class AdmissionLimits(NamedTuple):
    """How much one process takes on at a time.

    `turns_max` turns that it works on, of which `tenant_turns_max` may be of one tenant;
    `streams_max` open streams, also those that wait for turns of other processes; and
    `bodies_bytes_max` bytes of request bodies that are not complete.
    """

    turns_max: int = TURNS_MAX
    tenant_turns_max: int = TENANT_TURNS_MAX
    streams_max: int = STREAMS_MAX
    bodies_bytes_max: int = BODIES_BYTES_MAX


DEFAULT_LIMITS: Final = AdmissionLimits()


class Admission:
    """Counts what a process has taken on, on the store handle of one engine."""

    def __init__(self, handle: Hashable, limits: AdmissionLimits = DEFAULT_LIMITS) -> None:
        for name, limit in limits._asdict().items():
            if limit < 1:
                raise UsageError(f"{name} must be at least 1, it is {limit}")
        self._handle = handle
        self._limits = limits
        self._entering: set[str] = set()
        self._streams = 0
        self._body_bytes = 0

    def check_turn(self, tenant: str) -> None:
        """Raise TooManyTurnsError if no further turn of the tenant may begin here."""
        limits = self._limits
        known = turns_at_work(self._handle) | self._entering
        if len(known) >= limits.turns_max:
            raise TooManyTurnsError(
                f"this process works on {limits.turns_max:,} turns, as many as it may"
            )
        if len(known) < limits.tenant_turns_max:
            return
        theirs = sum(identity.logical_id(stored_id)[0] == tenant for stored_id in known)
        if theirs >= limits.tenant_turns_max:
            raise TooManyTurnsError(
                f"this process works on {limits.tenant_turns_max:,} turns of the tenant, as many "
                "as one may have"
            )

    @contextmanager
    def entering(self, stored_id: str) -> Generator[None]:
        """Count a turn until it is opened, and counted by itself."""
        is_first = stored_id not in self._entering
        self._entering.add(stored_id)
        try:
            yield
        finally:
            if is_first:
                self._entering.discard(stored_id)

    def check_stream(self) -> None:
        """Raise TooManyReadersError if no further stream may be opened here."""
        if self._streams >= self._limits.streams_max:
            raise TooManyReadersError(
                f"this process has {self._limits.streams_max:,} open streams, as many as it may"
            )

    @contextmanager
    def streaming(self) -> Generator[None]:
        """Count a stream while it is open."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    @contextmanager
    def receiving(self) -> Generator[Receiving]:
        """Count a body until it is complete."""
        receiving = Receiving(self)
        try:
            yield receiving
        finally:
            self._body_bytes -= receiving.size

    def hold(self, size: int) -> None:
        """Count bytes of a body, or raise OverloadedError if they are too many."""
        if self._body_bytes + size > self._limits.bodies_bytes_max:
            raise OverloadedError("too many bodies are being received at once")
        self._body_bytes += size


class Receiving:
    """One body that is being received."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.size = 0

    def add(self, size: int) -> None:
        """Count a piece. Raises OverloadedError."""
        self._admission.hold(size)
        self.size += size
