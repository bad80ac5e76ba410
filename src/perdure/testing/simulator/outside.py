"""Who else is in the world: clients that submit, stop, emit, delete and read; and bad luck."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from perdure.core.frames import Frame
from perdure.core.records import RunRecord
from perdure.core.transitions import RESTING_STATES, TERMINAL_STATES
from perdure.errors import PerdureError
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.testing.simulator.checks import Checks, Violation
from perdure.testing.simulator.worker import HANDLER, KEY, Asking, Wanted
from perdure.testing.simulator.world import Call, Host, Life, Sleep, World


class Outside:
    """Clients of the runs of one schedule. They never crash or pause; their network is as bad."""

    def __init__(self, world: World, checks: Checks, store: MemoryStore, data: MemoryData) -> None:
        self.world = world
        self.checks = checks
        self.store = store
        self.data = data
        self.host = Host("outside")

    def begin(self, wanted: Wanted) -> None:
        """Let the clients of one run begin, each at a moment of its own."""
        dice, spawn = self.world.dice, self.world.spawn
        spawn(self.host, self.submit(wanted), after_ms=dice.random() * 1_000)
        spawn(self.host, self.read(wanted), after_ms=dice.random() * 2_000)
        for payload in ("first", "second"):
            if wanted.waits_at is not None:
                spawn(self.host, self.emit(wanted, payload), after_ms=dice.random() * 8_000)
        if dice.random() < 0.1:
            spawn(self.host, self.stop(wanted), after_ms=dice.random() * 8_000)
        if dice.random() < 0.2:
            spawn(self.host, self.delete(wanted), after_ms=dice.random() * 8_000)

    def view(self, wanted: Wanted) -> MemoryStore:
        return self.store.for_tenant(wanted.tenant) if wanted.tenant else self.store

    def until_answered(
        self,
        row: str | None,
        perform: Callable[[], Coroutine[Any, Any, Any]],
        observe: Callable[[Any], None] | None = None,
    ) -> Asking:
        """Send a statement until the store answers."""
        while True:
            try:
                return (yield Call(row, perform, observe))
            except PerdureError as error:
                if not error.retryable:
                    return None
                yield Sleep(100)

    def submit(self, wanted: Wanted) -> Life:
        view = self.view(wanted)
        yield from self.until_answered(
            wanted.stored_id,
            lambda: view.enqueue(wanted.run_id, wanted.manifest, handler=HANDLER),
        )

    def emit(self, wanted: Wanted, payload: str) -> Life:
        view = self.view(wanted)
        for _ in range(30):
            told = yield from self.until_answered(
                wanted.stored_id, lambda: view.emit_event(wanted.run_id, KEY, payload)
            )
            if told is not None:
                self.checks.look(wanted.stored_id)
                return
            yield Sleep(1_000)  # There is no such run yet.

    def stop(self, wanted: Wanted) -> Life:
        view = self.view(wanted)
        yield from self.until_answered(wanted.stored_id, lambda: view.request_stop(wanted.run_id))

    def delete(self, wanted: Wanted) -> Life:
        """Delete the run, which is refused while it may still go on."""
        data, view = self.data, self.view(wanted)
        state: str | None = None

        async def perform() -> bool:
            nonlocal state
            known = data.runs.get(wanted.stored_id)
            state = None if known is None else known.run.state
            return await view.delete(wanted.run_id)

        def observe(was_there: bool) -> None:
            if was_there:
                self.checks.deleted(wanted.stored_id, state)
                self.world.at(0, lambda: self.begin_again(wanted))

        for _ in range(10):
            if (yield from self.until_answered(wanted.stored_id, perform, observe)):
                return
            yield Sleep(self.world.dice.random() * 6_000)

    def begin_again(self, wanted: Wanted) -> None:
        """Submit a run that was deleted anew: what is left of its first life must not hurt it."""
        self.world.spawn(self.host, self.submit(wanted))
        self.world.spawn(self.host, self.read(wanted))
        if wanted.waits_at is not None:
            self.world.spawn(self.host, self.emit(wanted, "again"), after_ms=200)

    def frames_behind(self, wanted: Wanted, after: int) -> Asking:
        """Read on; a run that has become shorter was deleted, and is read from its begin."""
        view = self.view(wanted)
        frames: list[Frame] = (
            yield from self.until_answered(
                None, lambda: view.read_frames(wanted.run_id, after=max(0, after - 1))
            )
        ) or []
        if after and not frames:
            return (
                yield from self.until_answered(None, lambda: view.read_frames(wanted.run_id))
            ) or []
        return [frame for frame in frames if frame.seq > after]

    def read(self, wanted: Wanted) -> Life:
        """Follow the frames, and ask for another try where the run failed or was given up."""
        view, after = self.view(wanted), 0
        while True:
            frames: Sequence[Frame] = yield from self.frames_behind(wanted, after)
            if frames and frames[0].seq == 1:
                after = 0  # The run was deleted, perhaps, and begun anew.
            for frame in frames:
                if frame.seq != after + 1:
                    raise Violation("I6", f"a reader got the frame {frame.seq} behind {after}")
                after = frame.seq
            run: RunRecord | None = yield from self.until_answered(
                None, lambda: view.read_run(wanted.run_id)
            )
            if run is not None and run.state in TERMINAL_STATES and not frames:
                return
            if run is not None and run.state in RESTING_STATES:
                yield from self.until_answered(
                    wanted.stored_id,
                    lambda: view.enqueue(
                        wanted.run_id, wanted.manifest, handler=HANDLER, retry=True
                    ),
                )
            yield Sleep(self.world.dice.random() * 8_000)


def bad_luck(world: World, host: Host, on_crash: Callable[[Host], None]) -> None:
    """Let a host pause now and then, perhaps for longer than a lease, until it dies."""
    if not world.faults.mishap_ms:
        return

    def strike() -> None:
        if not world.faults.mishap_ms:
            return
        if world.dice.random() < 0.4:
            world.crash(host)
            on_crash(host)
        else:
            host.paused_until = world.now + world.dice.choice((2_000, 12_000, 40_000))
            bad_luck(world, host, on_crash)

    world.at(world.dice.expovariate(1 / world.faults.mishap_ms), strike)
