"""A worker as the protocol has it: claim, beat, do what is not recorded, end, tell the product."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, Final, NamedTuple

from perdure.core.changes import (
    AddDelivery,
    AppendFrames,
    BeginStep,
    Change,
    CompleteStep,
    EndRun,
    FailStep,
    IntendUsage,
    Release,
    Restart,
    SettleUsage,
    Suspend,
)
from perdure.core.effects import new_token
from perdure.core.frames import Frame, encode_row
from perdure.core.records import Claim, DeliveryRecord, Lease, Written
from perdure.errors import PerdureError, StoreUnavailableError
from perdure.store.entry import SealedManifest
from perdure.store.memory import MemoryStore
from perdure.testing.simulator.checks import STRIKES_MAX, Checks
from perdure.testing.simulator.world import Call, Host, Life, Sleep, World

HANDLER: Final = "simulated"
LEASE_MS: Final = 10_000
KEY: Final = "go"
"""The event that runs with a wait wait for."""
IDLE_MS: Final = 6_000
"""How long a worker that finds nothing to do waits at the most, on average half of it."""
_TRIES: Final = 6
"""How often a worker asks a store that does not answer."""


class Wanted(NamedTuple):
    """A run of the schedule: how many steps it has, at which of them it waits or fails once."""

    run_id: str
    tenant: str
    stored_id: str
    manifest: SealedManifest
    steps: int
    waits_at: int | None
    fails_at: int | None


Asking = Generator[Sleep | Call, Any, Any]


class Worker:
    """One worker process. Its methods are what a planted fault changes."""

    strikes_max = STRIKES_MAX
    attempt: type[Attempt]

    def __init__(
        self, world: World, checks: Checks, host: Host, store: MemoryStore, wanted: list[Wanted]
    ) -> None:
        self.world = world
        self.checks = checks
        self.host = host
        self.name = host.name
        self.store = store
        self.wanted = {one.stored_id: one for one in wanted}
        self.named = [one for one in wanted if one.waits_at is None]
        """What is claimed by name. A run that waits is woken by its event, and by nobody else."""

    # Asking the store.

    def ask(
        self,
        row: str | None,
        perform: Callable[[], Coroutine[Any, Any, Any]],
        observe: Callable[[Any], None] | None = None,
    ) -> Asking:
        """Ask until there is an answer: a statement may be executed twice, and is the same one."""
        for _ in range(_TRIES):
            try:
                return (yield Call(row, perform, observe))
            except StoreUnavailableError:
                yield Sleep(self.world.dice.random() * 200)
        raise StoreUnavailableError("the store does not answer")

    def write(self, lease: Lease, *changes: Change) -> Asking:
        """Write under the lease; what is written is checked when it is, whoever hears of it."""

        def observe(written: Written) -> None:
            self.checks.written(lease, written)

        return self.ask(lease.run_id, lambda: self.store.write(lease, *changes), observe)

    # Life.

    def life(self) -> Life:
        """Claim and work until the host dies."""
        dice, idle_ms = self.world.dice, 400.0
        while True:
            yield Sleep(dice.random() * idle_ms)
            idle_ms = min(2 * idle_ms, IDLE_MS)
            try:
                if dice.random() < 0.4:
                    yield from self.tell_product()
                claim = yield from self.claim()
                if claim is not None and claim.lease is not None:
                    idle_ms = 400.0
                    yield from self.work(claim, claim.lease)
            except PerdureError:
                continue  # Somebody else has it, or the store is away: there will be another time.

    def claim(self) -> Asking:
        """Claim what is due, or a run by its name."""
        world, store = self.world, self.store

        if self.named and world.dice.random() < 0.4:
            wanted, token = world.dice.choice(self.named), new_token()

            def observe(claim: Claim) -> None:
                self.checks.granted(claim, world.clock.now_ms, LEASE_MS, token=token)

            view = store.for_tenant(wanted.tenant) if wanted.tenant else store
            perform = lambda: view.start_or_resume(  # noqa: E731 it is a statement, not a function
                wanted.run_id,
                wanted.manifest,
                worker_id=self.name,
                lease_ms=LEASE_MS,
                handler=HANDLER,
                token=token,
            )
            return (yield from self.ask(wanted.stored_id, perform, observe))

        def observe_all(claims: list[Claim]) -> None:
            for claim in claims:
                self.checks.granted(claim, world.clock.now_ms, LEASE_MS)

        # It has no token: an answer that is lost is a lease that has to lapse.
        sweep = Call(
            None,
            lambda: store.claim_due([HANDLER], worker_id=self.name, lease_ms=LEASE_MS, limit=1),
            observe_all,
        )
        claims = yield sweep
        return claims[0] if claims else None

    def beat(self, lease: Lease, held: list[bool]) -> Life:
        """Renew the lease until it is given back or lost."""
        while held:
            yield Sleep(LEASE_MS / 3)
            if not held:
                return

            def observe(answer: Any) -> None:
                self.checks.renewed(lease, answer, self.world.clock.now_ms, LEASE_MS)

            try:
                answer = yield Call(
                    lease.run_id, lambda: self.store.renew([lease], LEASE_MS), observe
                )
            except PerdureError:
                continue
            if lease not in answer:
                held.clear()

    # Work.

    def work(self, claim: Claim, lease: Lease) -> Asking:
        """Bring a run to its end, or to where it waits."""
        held = [True]
        self.world.spawn(self.host, self.beat(lease, held))
        try:
            if claim.run.stop_requested_at is not None:
                yield from self.write(lease, EndRun("stopped"))
            elif claim.run.strikes >= self.strikes_max:
                yield from self.write(lease, Suspend("parked", reason="attempts_exhausted"))
            else:
                wanted = self.wanted[lease.run_id]
                yield from self.attempt(self, claim, lease, wanted, held).run()
        finally:
            held.clear()

    def tell_product(self) -> Asking:
        """Deliver what must follow a turn, under its key."""
        deliveries = yield Call(None, lambda: self.store.claim_deliveries([HANDLER], limit=1))
        for delivery in deliveries:
            yield Sleep(self.world.dice.random() * 50)
            yield from self.tell(delivery)

    def tell(self, delivery: DeliveryRecord) -> Asking:
        """Tell the product first, and then note that it was told."""
        self.checks.told(delivery.run_id, delivery.key)
        yield from self.settle(delivery)

    def settle(self, delivery: DeliveryRecord) -> Asking:
        return self.ask(None, lambda: self.store.settle_delivery(delivery))


class Attempt:
    """One attempt at a run. Its text and its results name it, so that none is taken for another."""

    def __init__(
        self, worker: Worker, claim: Claim, lease: Lease, wanted: Wanted, held: list[bool]
    ) -> None:
        self.worker = worker
        self.claim = claim
        self.lease = lease
        self.wanted = wanted
        self.held = held
        self.history = {step.step_index: step for step in claim.steps}
        self.next_seq = claim.next_seq
        self.text = ""
        self.results: list[Any] = []

    def run(self) -> Asking:
        worker = self.worker
        if self.next_seq > 1:
            yield from self.begin_again()
        for position in range(1, self.wanted.steps + 1):
            known = self.history.get(position)
            if known is not None and known.status == "completed":
                self.results.append(known.result)
            elif position == self.wanted.waits_at:
                if not (yield from self.wait_for_event(position)):
                    return
            elif not (yield from self.do(position)):
                return
            if worker.world.dice.random() < 0.05:
                yield from worker.write(self.lease, Release("drained"))
                return
        yield from self.end()

    def frame(self, kind: str, data: Mapping[str, Any]) -> AppendFrames:
        """Return a row of one frame, which follows those before."""
        seq = self.next_seq
        self.next_seq += 1
        return AppendFrames(seq, seq, encode_row([Frame(seq, 0, kind, data)]))

    def say(self) -> AppendFrames:
        """Return a row of the answer."""
        delta = f"{self.lease.epoch}.{self.next_seq} "
        self.text += delta
        return self.frame("text", {"part": "p", "delta": delta})

    def begin_again(self) -> Asking:
        """Tell readers to forget what an attempt that is lost has said."""
        row = self.frame("restarted", {"attempt": self.lease.epoch})
        yield from self.worker.write(self.lease, Restart(*row))

    def wait_for_event(self, position: int) -> Asking:
        """Take the event, or give the lease back until it comes; return whether it is there."""
        worker, lease = self.worker, self.lease
        store = worker.store.for_tenant(self.wanted.tenant)
        event = yield from worker.ask(None, lambda: store.load_event(self.wanted.run_id, KEY))
        if event is None:
            begin = BeginStep(position, f"event:{KEY}", kind="event")
            yield from worker.write(lease, begin, Suspend("waiting", wake_key=KEY))
            return False
        done = CompleteStep(position, f"event:{KEY}", json.dumps(event.payload), kind="event")
        written = yield from worker.write(lease, done)
        self.results.append(written.steps[0].result)
        return True

    def do(self, position: int) -> Asking:
        """Execute a step and record it; return whether the run goes on."""
        worker, lease, dice = self.worker, self.lease, self.worker.world.dice
        intent = f"step {position}"
        yield from worker.write(lease, BeginStep(position, intent), IntendUsage(position))
        worker.checks.begins(self.claim, position)
        yield Sleep(dice.random() * dice.choice((30, 300, 3_000)))
        if dice.random() < 0.5:
            yield from worker.write(lease, self.say())
        settled = SettleUsage(position, tokens_in=1)
        if position == self.wanted.fails_at and lease.epoch == 1:
            failed = FailStep(position, intent, '{"message":"it broke"}')
            self.held.clear()
            yield from worker.write(lease, failed, settled, EndRun("failed"))
            return False
        result = f"{self.wanted.tenant}:{lease.epoch}:{worker.name}:{position}"
        done = CompleteStep(position, intent, json.dumps(result))
        written = yield from worker.write(lease, self.say(), done, settled)
        # What is recorded: mine, or an earlier one.
        self.results.append(written.steps[0].result)
        return True

    def ending(self) -> tuple[Change, ...]:
        """Return what ends the run, which is one write."""
        answer = CompleteStep(0, "answer", json.dumps({"text": self.text}), kind="llm")
        outcome = json.dumps({"results": self.results})
        key = f"{self.lease.run_id}:persist"
        return (
            answer,
            AddDelivery(0, "persist", HANDLER, key, "null"),
            EndRun("completed", outcome_text=outcome),
        )

    def end(self) -> Asking:
        # The beat stops first: nothing may revive what is over.
        self.held.clear()
        yield from self.worker.write(self.lease, self.say(), *self.ending())


Worker.attempt = Attempt
