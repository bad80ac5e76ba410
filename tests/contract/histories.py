"""Random histories, told to the memory store and to another one: both must answer alike."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from perdure.core.changes import (
    Change,
    EndRun,
    IntendUsage,
    Release,
    SaveHandle,
    SettleUsage,
    Suspend,
)
from perdure.core.records import AttemptRecord, Claim, DeliveryRecord, Lease, SessionKey
from perdure.errors import PerdureError
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.lab import snapshot
from perdure.testing.samples import (
    HANDLER,
    begun,
    completed,
    delivery,
    failed,
    manifest,
    restart_row,
    row,
)

RUNS = ["a", "b", "chat:s:0", "chat:s:1", "chat:s:1~1"]
KEYS = {"chat:s:0": (0, 0), "chat:s:1": (1, 0), "chat:s:1~1": (1, 1)}
LENGTH_MS = 1_000
HANDLES = 2


async def _nothing() -> None:
    pass


class Place(NamedTuple):
    """Where the other store is: what opens its handles, and what is let go of at the end.

    All runs are compared behind each `looks_every` commands, and behind the last one.
    """

    open_handle: Callable[[ManualClock], Awaitable[RunStore]]
    let_go: Callable[[], Awaitable[None]] = _nothing
    looks_every: int = 1


def plain(value: Any) -> Any:
    """Return an answer without what is of its store: tokens, locks, and the order of sweeps."""
    if isinstance(value, Lease):
        return ("lease", value.run_id, value.epoch, value.worker_id)
    if isinstance(value, DeliveryRecord):
        return tuple(value._replace(token=None))
    if isinstance(value, AttemptRecord):
        return tuple(value._replace(liveness=None))
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


class Twins:
    """Two stores that are told the same, and the leases and deliveries that each has given.

    Each has two handles; which of them is told is said before each command by `turn_to`.
    """

    def __init__(self, place: Place) -> None:
        self.clock = ManualClock()
        self.leases: list[tuple[Lease, Lease]] = []
        self.deliveries: list[tuple[DeliveryRecord, DeliveryRecord]] = []
        self.seqs: dict[str, int] = {}
        self._data = MemoryData()
        self._place = place
        self._handles: list[tuple[RunStore, RunStore]] = []

    async def begin(self) -> None:
        self._handles = [await self._open() for _ in range(HANDLES)]
        self.turn_to(0, 0)

    async def _open(self) -> tuple[RunStore, RunStore]:
        memory = MemoryStore(self._data, clock=self.clock)
        return memory, await self._place.open_handle(self.clock)

    def turn_to(self, hand: int, seed: int) -> None:
        """Let the next command be made by these handles, with dice of this seed."""
        self._hand, self.chance = hand, random.Random(seed)
        self.stores = self._handles[hand]

    async def reopen(self) -> None:
        """Close a handle of each store, and open another one."""
        await self._close(self.stores)
        self._handles[self._hand] = self.stores = await self._open()

    async def end(self) -> None:
        """Compare once more what new handles read, when nobody has kept anything in mind."""
        for pair in self._handles:
            await self._close(pair)
        self.stores = await self._open()
        await self.compare()
        await self._close(self.stores)
        await self._place.let_go()

    @staticmethod
    async def _close(pair: tuple[RunStore, RunStore]) -> None:
        for store in pair:
            await store.close()

    async def both(self, call: Callable[[RunStore, int], Awaitable[Any]]) -> tuple[Any, Any]:
        """Make a call on both stores, compare the answers, and return them."""
        answers: list[Any] = []
        for index, store in enumerate(self.stores):
            try:
                answers.append(await call(store, index))
            except PerdureError as error:
                answers.append(error)
        memory, sql = answers
        if isinstance(memory, PerdureError) or isinstance(sql, PerdureError):
            assert type(memory) is type(sql), (memory, sql)
        else:
            assert plain(memory) == plain(sql)
        return memory, sql

    def session(self, run_id: str) -> SessionKey | None:
        if run_id not in KEYS:
            return None
        turn_index, revision = KEYS[run_id]
        owner_id = self.chance.choice(["ann", "ann", "ann", "bob", None])
        return SessionKey("s", turn_index, revision, owner_id)

    async def claim(self) -> None:
        chance, run_id = self.chance, self.chance.choice(RUNS)
        question = "another" if chance.random() < 0.05 else "What is left of it?"
        worker_id, retry = chance.choice(["w1", "w2"]), chance.random() < 0.4
        session = self.session(run_id)
        token = f"token-{chance.randrange(4)}" if chance.random() < 0.2 else None
        # Whoever repeats a call, repeats all of it.
        handler = HANDLER if token else chance.choice([HANDLER, None])
        claims = await self.both(
            lambda store, _: store.start_or_resume(
                run_id,
                manifest(question),
                worker_id=worker_id,
                lease_ms=LENGTH_MS,
                handler=handler,
                session=session,
                retry=retry,
                token=token,
            )
        )
        self.keep(claims)

    def keep(self, claims: tuple[Any, Any]) -> None:
        memory, sql = claims
        if isinstance(memory, Claim) and memory.lease is not None:
            self.leases.append((memory.lease, sql.lease))
            self.seqs[memory.lease.run_id] = memory.next_seq

    async def write(self) -> None:
        if not self.leases:
            return
        # Mostly the newest lease, sometimes one that was lost long ago.
        pair = self.chance.choice([*self.leases, *self.leases[-2:] * 3])
        run_id = pair[0].run_id
        positions = self.chance.sample(range(3), self.chance.randrange(4))
        changes = [self.change(run_id, position) for position in positions]
        if self.chance.random() < 0.3:
            changes.append(self.leaving())
        await self.both(lambda store, index: store.write(pair[index], *changes))
        frames = await self.stores[0].read_frames(run_id)
        self.seqs[run_id] = frames[-1].seq + 1 if frames else 1

    def change(self, run_id: str, position: int) -> Change:
        chance, tries = self.chance, self.chance.randrange(1, 3)
        if chance.random() < 0.3:
            first_seq = self.seqs.get(run_id, 1) + (chance.random() < 0.1)
            self.seqs[run_id] = first_seq + 2
            rows: list[Change] = [row(first_seq, "x", "y"), restart_row(first_seq, "kept")]
            return chance.choice(rows)
        changes: list[Change] = [
            begun(position, tries=tries),
            completed(position, chance.randrange(9), tries=tries),
            failed(position, tries=tries),
            SaveHandle(chance.choice(['{"id":1}', None])),
            IntendUsage(position, position, "openai", "m"),
            SettleUsage(position, chance.choice(["settled", "unknown"]), tokens_in=7),
            delivery(position, payload=chance.randrange(9)),
        ]
        if chance.random() < 0.05:
            return completed(position)._replace(intent="another")
        return chance.choice(changes)

    def leaving(self) -> Change:
        chance = self.chance
        changes: list[Change] = [
            EndRun("completed", '{"pass":true}'),
            EndRun("stopped", reason="user"),
            EndRun("failed", reason="step_failed", error_text='{"message":"It broke"}'),
            Suspend("sleeping", wake_in_ms=chance.choice([0, 500, 5_000])),
            Suspend("waiting", wake_key=chance.choice(["go", "on"]), wake_in_ms=5_000),
            Suspend("waiting", wake_key="go"),
            Suspend("parked", reason="divergence", error_text='{"message":"Differs"}'),
            Release(),
        ]
        return chance.choice(changes)

    async def outside(self) -> None:
        chance, run_id = self.chance, self.chance.choice(RUNS)
        session, retry = self.session(run_id), chance.random() < 0.4
        key, number = chance.choice(["go", "on"]), chance.randrange(9)
        frames_only = chance.random() < 0.5
        calls: list[Callable[[RunStore, int], Awaitable[Any]]] = [
            lambda store, _: store.enqueue(
                run_id, manifest(), handler=HANDLER, session=session, retry=retry
            ),
            lambda store, _: store.emit_event(run_id, key, number),
            lambda store, _: store.delete(run_id, frames_only=frames_only),
            lambda store, _: store.list_runs(with_answer=True, limit=number),
            lambda store, _: store.list_runs(session_id="s", after=run_id),
            lambda store, index: store.renew([pair[index] for pair in self.leases], LENGTH_MS),
        ]
        if chance.random() < 0.2:
            calls.append(lambda store, _: store.request_stop(run_id))
        await self.both(chance.choice(calls))

    async def sweep(self) -> None:
        chance = self.chance
        if chance.random() < 0.5 and self.deliveries:
            pair = chance.choice(self.deliveries)
            error = chance.choice([None, "It broke"])
            await self.both(lambda store, index: store.settle_delivery(pair[index], error=error))
            return
        memory, sql = await self.both(lambda store, _: _sorted_deliveries(store))
        self.deliveries += zip(memory, sql, strict=True)
        if await self.is_alone_due():
            claims = await self.both(lambda store, _: _sorted_claims(store))
            for pair in zip(*claims, strict=True):
                self.keep(pair)

    async def is_alone_due(self) -> bool:
        """Return whether no two turns of the session are due: either of them might win."""
        runs = await self.stores[0].list_runs(session_id="s")
        return sum(run.state in ("queued", "running", "sleeping", "waiting") for run in runs) < 2

    async def compare(self) -> None:
        for run_id in RUNS:
            await self.compare_run(run_id)

    async def compare_run(self, run_id: str) -> None:
        await self.both(lambda store, _: snapshot(store, run_id))


async def _sorted_deliveries(store: RunStore) -> list[DeliveryRecord]:
    claimed = await store.claim_deliveries([HANDLER], limit=9)
    return sorted(claimed, key=lambda each: (each.run_id, each.position))


async def _sorted_claims(store: RunStore) -> list[Claim]:
    claims = await store.claim_due([HANDLER], worker_id="w3", lease_ms=LENGTH_MS, limit=99)
    return sorted(claims, key=lambda claim: claim.run.run_id)


COMMANDS = ["claim", "write", "write", "write", "outside", "outside", "sweep", "sweep", "reopen"]


class Histories(RuleBasedStateMachine):
    """Commands, each given to one of the handles of each store, and time that passes behind it.

    What a command is about is thrown with dice of its seed, so that a history that fails shrinks
    to few commands. All commands are one rule: a history without any claims would be an empty one.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._twins = Twins(place)
        self._looks_every = place.looks_every
        self._commands = 0

    @initialize()
    def begin(self) -> None:
        self._runner.run(self._twins.begin())

    @rule(
        command=st.sampled_from(COMMANDS),
        hand=st.integers(0, HANDLES - 1),
        seed=st.integers(0, 2**32 - 1),
        then_ms=st.sampled_from([0, 1, 100, 400, 1_500]),
    )
    def tell(self, command: str, hand: int, seed: int, then_ms: int) -> None:
        async def told() -> None:
            self._twins.turn_to(hand, seed)
            await getattr(self._twins, command)()
            self._twins.clock.advance(then_ms)
            self._commands += 1
            if self._commands % self._looks_every == 0:
                await self._twins.compare()

        self._runner.run(told())

    def teardown(self) -> None:
        try:
            self._runner.run(self._twins.end())
        finally:
            self._runner.close()
