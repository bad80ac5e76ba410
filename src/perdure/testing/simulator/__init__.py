"""A simulator of the protocol: many workers, virtual time, everything that can go wrong.

Each seed is one schedule. The store is the memory store that ships, with its table of transitions
and the changes that writes are made of; the workers follow the protocol of `docs/concepts.md`.
Behind each statement the invariants are looked at:

    python -m perdure.testing.simulator --seeds 0:100000

`simulate(seed)` runs one schedule, and raises Violation with the seed as a note. A store of yours
that derives from MemoryStore, or a worker with a fault, can be put in (`Cast`): a simulator is
worth as much as the faults that it finds.
"""

from perdure.testing.simulator.checks import Checks, Violation
from perdure.testing.simulator.schedule import Cast, Schedule, first_violation, simulate
from perdure.testing.simulator.worker import Attempt, Worker
from perdure.testing.simulator.world import Faults, World, pause_between_statements

__all__ = [
    "Attempt",
    "Cast",
    "Checks",
    "Faults",
    "Schedule",
    "Violation",
    "Worker",
    "World",
    "first_violation",
    "pause_between_statements",
    "simulate",
]
