"""What the readers of many live turns saw, and what it took of the servers."""

from __future__ import annotations

from typing import NamedTuple


class Loaded(NamedTuple):
    """One side under one load: a row of the page.

    The first token counts from the request, the model's own pause included; a gap is the wait for
    the next token. `arrived_percent`: of the tokens that the pace allows, how many came.
    `client_percent` is what the readers themselves took of a core. `rounds`: of how many
    measurements each figure is the median.
    """

    side: str
    turns: int
    readers: int
    processes: int
    store: str
    pace_ms: float
    first_p50_ms: float
    first_p99_ms: float
    gap_p50_ms: float
    gap_p99_ms: float
    gap_max_ms: float
    cpu_percent: float
    cpu_us_a_token: float
    memory_mb: float
    arrived_percent: float
    client_percent: float
    rounds: int = 1

    @property
    def bends(self) -> bool:
        """Whether it is more than the service can do: tokens come late, one in a hundred."""
        return self.gap_p99_ms > 2 * self.pace_ms or self.arrived_percent < 90

    def told(self) -> str:
        """Return a line for whoever watches."""
        return (
            f"{self.side}: {self.turns} turns, {self.readers} readers: first "
            f"{self.first_p50_ms:.0f} / {self.first_p99_ms:.0f} ms, next {self.gap_p50_ms:.0f} / "
            f"{self.gap_p99_ms:.0f} / {self.gap_max_ms:.0f} ms, "
            f"{self.cpu_percent:.0f} % of a core, {self.arrived_percent:.0f} % arrived"
        )
