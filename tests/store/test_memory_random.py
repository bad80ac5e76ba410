"""Random histories, told to the memory store and to another one: both must answer alike."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

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
from perdure.store.opening import open_store
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
HISTORIES = 25
COMMANDS = 60


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
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class Twins:
    """Two stores that are told the same, and the leases and deliveries that each has given."""

    def __init__(self, memory: RunStore, sql: RunStore, chance: random.Random) -> None:
        self.stores = (memory, sql)
        self.chance = chance
        self.leases: list[tuple[Lease, Lease]] = []
        self.deliveries: list[tuple[DeliveryRecord, DeliveryRecord]] = []
        self.seqs: dict[str, int] = {}

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

    async def step(self) -> None:
        commands = (self.open, self.write, self.write, self.write, self.outside, self.sweep)
        await self.chance.choice(commands)()

    def session(self, run_id: str) -> SessionKey | None:
        if run_id not in KEYS:
            return None
        turn_index, revision = KEYS[run_id]
        owner_id = self.chance.choice(["ann", "ann", "ann", "bob", None])
        return SessionKey("s", turn_index, revision, owner_id)

    async def open(self) -> None:
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


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
@pytest.mark.parametrize("seed", range(HISTORIES))
async def test_both_stores_tell_the_same_history(tmp_path: Path, seed: int, scheme: str) -> None:
    clock, chance = ManualClock(), random.Random(seed)
    memory, url = MemoryStore(clock=clock), f"{scheme}:{tmp_path}/runs"
    other = await open_store(url, clock=clock, durability="normal")
    twins = Twins(memory, other, chance)
    for _ in range(COMMANDS):
        await twins.step()
        clock.advance(chance.choice([0, 1, 100, 400, 1_500]))
        await twins.compare()
    await other.close()
    again = await open_store(url, clock=clock, durability="normal")
    twins.stores = (memory, again)
    await twins.compare()
    await again.close()
