"""One schedule: who takes part, for how long things go wrong, and what must have come of it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Final, NamedTuple

from perdure.core.effects import reproducible
from perdure.core.identity import manifest_hash, stored_id
from perdure.core.limits import DELIVERY_CLAIM_MS
from perdure.core.records import RunRecord
from perdure.core.rundata import RunData
from perdure.core.transitions import TERMINAL_STATES
from perdure.store.entry import SealedManifest, manifest_text
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.testing.samples import manifest
from perdure.testing.simulator.checks import Checks, Violation
from perdure.testing.simulator.outside import Outside, bad_luck
from perdure.testing.simulator.worker import LEASE_MS, Wanted, Worker
from perdure.testing.simulator.world import NO_FAULTS, Faults, Host, World

TROUBLE_MS: Final = 60_000
"""Things go wrong for so long; then each run has to come to its end."""
_OBJECTS_UNTIL_COLLECTED: Final = 50_000
CALM_MS: Final = 3 * DELIVERY_CLAIM_MS
_NAMES: Final = ("ann", "bob", "cyd")
_SKEW_MS: Final = (0, 0, -15_000, 15_000)


class Cast(NamedTuple):
    """Who plays: the classes of the store and of the workers, and what goes wrong how often.

    `skews`: the workers' own clocks are wrong, and the store believes them (a planted fault, unless
    `checks` know of it).
    """

    store: type[MemoryStore] = MemoryStore
    worker: type[Worker] = Worker
    faults: Faults = Faults()
    skews: bool = False
    checks: type[Checks] = Checks


AS_IT_SHIPS: Final = Cast()


class Schedule(NamedTuple):
    """What one seed came to."""

    seed: int
    statements: int
    bodies: int
    ends: tuple[str, ...]
    length_ms: float


@lru_cache
def _manifest(name: str) -> SealedManifest:
    """Return a manifest that is checked, hashed and encoded once for all schedules."""
    plain = manifest(name)
    sealed = SealedManifest.of(plain, manifest_hash(plain))
    sealed.known_text = manifest_text(plain)
    return sealed


class RunsAsTheyStand(MemoryData):
    """Data that hands out runs as they are kept: nobody here looks into manifests or outcomes.

    To decode them for each answer would take a seventh of the time.
    """

    def record(self, data: RunData) -> RunRecord:
        return data.run


class Stage:
    """The world of one schedule, and everybody in it."""

    def __init__(self, world: World, cast: Cast) -> None:
        self.world = world
        self.cast = cast
        self.data = RunsAsTheyStand()
        self.checks = cast.checks(self.data)
        self.store = cast.store(self.data, clock=world.clock)
        world.locks_rows = getattr(cast.store, "locks_rows", True)
        self.runs = self._runs()
        self.outside = Outside(world, self.checks, self.store, self.data)

    def _runs(self) -> list[Wanted]:
        dice = self.world.dice
        tenants = ("", "b") if dice.random() < 0.2 else ("",)
        count = 1 if len(tenants) > 1 else dice.choice((1, 1, 2))
        return [
            wanted
            for number in range(count)
            for wanted in self._same_for_all(f"r{number}", tenants)
        ]

    def _same_for_all(self, run_id: str, tenants: Sequence[str]) -> list[Wanted]:
        """Return one run for each tenant, under the same name."""
        dice = self.world.dice
        steps, odd = dice.randint(1, 3), dice.random()
        waits_at = dice.randint(1, steps) if odd < 0.25 else None
        fails_at = dice.randint(1, steps) if odd > 0.85 else None
        return [
            Wanted(
                *(run_id, tenant, stored_id(tenant, run_id), _manifest(run_id)),
                *(steps, waits_at, fails_at),
            )
            for tenant in tenants
        ]

    def play(self) -> None:
        """Let it happen, with trouble and then without, and check what came of it."""
        world = self.world
        for wanted in self.runs:
            self.outside.begin(wanted)
        for name in _NAMES[: world.dice.randint(1, 3)]:
            self.hire(name)
        world.run_until(TROUBLE_MS, self.is_over)
        world.faults = NO_FAULTS
        self.hire("zoe")
        world.run_until(TROUBLE_MS + CALM_MS, self.is_over)
        self.check_end()

    def hire(self, name: str) -> None:
        """Let a worker begin on a host of its own."""
        world = self.world
        host, clock = Host(name), world.clock
        skew_ms = world.dice.choice(_SKEW_MS) if self.cast.skews else 0
        store = self.cast.store(self.data, clock=(lambda: clock() + skew_ms) if skew_ms else clock)
        worker = self.cast.worker(world, self.checks, host, store, self.runs)
        world.spawn(host, worker.life(), after_ms=world.dice.random() * 300)
        bad_luck(world, host, self.replace)

    def replace(self, host: Host) -> None:
        """Begin another process where one has died, often under the same name."""
        dice = self.world.dice
        name = host.name if dice.random() < 0.6 else f"{host.name}+"
        self.world.at(dice.random() * 15_000, lambda: self.hire(name))

    def is_over(self) -> bool:
        """Whether every run has its end, and whatever must follow it was done."""
        runs = self.data.runs
        for wanted in self.runs:
            data = runs.get(wanted.stored_id)
            if data is None or data.run.state not in TERMINAL_STATES:
                return False
            if data.has_waiting():
                return False
        return True

    def check_end(self) -> None:
        """Check what must hold once nothing has gone wrong for a long time."""
        for wanted in self.runs:
            data = self.data.runs.get(wanted.stored_id)
            state = "gone" if data is None else data.run.state
            if data is None or state not in TERMINAL_STATES:
                raise Violation("I5", f"a run is still {state} long after the last fault")
            self.checks.look(wanted.stored_id)
            for delivery in data.deliveries.values():
                if not self.checks.effects.get((wanted.stored_id, delivery.key)):
                    raise Violation("I8", "a delivery never reached the product")
            self._check_replay(wanted)

    def _check_replay(self, wanted: Wanted) -> None:
        data = self.data.runs[wanted.stored_id]
        before = (data.run, dict(data.step_texts), data.outcome_text, len(data.rows))
        view = self.store.for_tenant(wanted.tenant) if wanted.tenant else self.store
        opening = view.start_or_resume(
            wanted.run_id, wanted.manifest, worker_id="replay", lease_ms=LEASE_MS
        )
        try:
            opening.send(None)
        except StopIteration as done:
            if done.value.lease is not None:
                raise Violation("I16", "the replay of a run that is over got a lease") from None
        else:
            raise AssertionError("a replay waits for nothing")
        data = self.data.runs[wanted.stored_id]
        if (data.run, data.step_texts, data.outcome_text, len(data.rows)) != before:
            raise Violation("I16", "the replay of a run that is over wrote something")


def simulate(seed: int, cast: Cast = AS_IT_SHIPS) -> Schedule:
    """Run one schedule. Raises Violation, with the seed as a note.

    It stands on an event loop of its own; `simulate_all` runs many on one.
    """
    return asyncio.run(_all((seed,), cast))


def first_violation(seeds: Iterable[int], cast: Cast = AS_IT_SHIPS) -> tuple[int, Violation] | None:
    """Return the first of the seeds whose schedule breaks an invariant, and how; None for none."""

    async def search() -> tuple[int, Violation] | None:
        with _collecting_seldom():
            for seed in seeds:
                try:
                    play(seed, cast)
                except Violation as violation:
                    return seed, violation
        return None

    return asyncio.run(search())


@contextmanager
def _collecting_seldom() -> Generator[None, None, None]:
    """Have the garbage collector look seldom: a schedule lets go of all but a few objects itself.

    They add up over many schedules, so it is not switched off.
    """
    threshold = gc.get_threshold()
    gc.set_threshold(_OBJECTS_UNTIL_COLLECTED, *threshold[1:])
    try:
        yield
    finally:
        gc.set_threshold(*threshold)


async def _all(seeds: Iterable[int], cast: Cast) -> Schedule:
    last: Schedule | None = None
    for seed in seeds:
        last = play(seed, cast)
    assert last is not None
    return last


def play(seed: int, cast: Cast = AS_IT_SHIPS) -> Schedule:
    """Run one schedule within a running event loop, which the stores ask for. Raises Violation."""
    with reproducible(seed) as dice:
        world = World(dice, faults=cast.faults)
        stage = Stage(world, cast)
        try:
            stage.play()
        except Violation as violation:
            violation.add_note(f"seed {seed}, after {world.statements} statements")
            raise
        finally:
            world.end()
    ends = tuple(stage.data.runs[wanted.stored_id].run.state for wanted in stage.runs)
    return Schedule(seed, world.statements, stage.checks.bodies, ends, world.now)
