"""What must hold in every schedule, looked at behind each statement that was executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from perdure.core.frames import decode_row
from perdure.core.records import Claim, Lease, Written
from perdure.core.rundata import RunData
from perdure.core.transitions import ENDED_STATES, TERMINAL_STATES
from perdure.store.memorydata import MemoryData

STRIKES_MAX: Final = 3


class Violation(AssertionError):
    """An invariant does not hold; `rule` is its name."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


class _Seen:
    """What is known of one run from what was seen of it."""

    def __init__(self) -> None:
        self.results: dict[int, str] = {}
        self.events: dict[str, str] = {}
        self.end: tuple[str, str | None] | None = None
        self.lives_until_ms = 0.0
        self.holder: tuple[int, str | None] | None = None
        self.epoch = 0
        self.rows = 0
        self.is_held = False
        self.crashes = 0
        """How many attempts were lost since something was recorded."""


class Checks:
    """The invariants over all runs of one schedule.

    `now_ms` is the world's own time, whatever clocks the workers have.
    """

    def __init__(self, data: MemoryData) -> None:
        self.effects: dict[tuple[str, str], int] = {}
        """How often the product was told, by run and idempotency key."""
        self.bodies = 0
        self._data = data
        self._seen: dict[str, _Seen] = {}
        self._deleted: set[str] = set()

    def of(self, stored_id: str) -> _Seen:
        seen = self._seen.get(stored_id)
        if seen is None:
            seen = self._seen[stored_id] = _Seen()
        return seen

    def forget(self, stored_id: str) -> None:
        """Take a run that was deleted for one that never was."""
        self._seen.pop(stored_id, None)

    # What is granted and accepted.

    def granted(
        self, claim: Claim, now_ms: float, lease_ms: int, *, token: str | None = None
    ) -> None:
        """Check a claim when it is written; `token` is what it was asked with."""
        if claim.lease is None:
            return
        if token is not None and claim.lease.token != token:
            raise Violation("lease", f"{claim.lease} was given to one who asked with {token}")
        seen = self.of(claim.lease.run_id)
        holder = (claim.lease.epoch, claim.lease.token)
        is_again = seen.holder == holder
        if seen.lives_until_ms > now_ms and not is_again:
            raise Violation("lease", f"{claim.lease} took a lease that lives")
        if seen.end is not None and seen.end[0] in TERMINAL_STATES:
            raise Violation("I3", f"{claim.lease} took a run that is over")
        if claim.lease.epoch <= seen.epoch and not is_again:
            raise Violation("I2", f"{claim.lease} has an epoch that was granted before")
        if seen.is_held and not is_again:
            seen.crashes += 1
        seen.is_held = True
        seen.epoch, seen.holder = max(seen.epoch, claim.lease.epoch), holder
        seen.lives_until_ms = now_ms + lease_ms
        self.look(claim.lease.run_id)

    def renewed(self, lease: Lease, held: Mapping[Lease, bool], now_ms: float, ms: int) -> None:
        """Check a renewal at the moment at which it was written."""
        if lease not in held:
            return
        seen, data = self.of(lease.run_id), self._data.runs[lease.run_id]
        if data.run.epoch != lease.epoch or data.token != lease.token:
            raise Violation("I2", f"{lease} was renewed, which another attempt has")
        if data.run.state != "running":
            raise Violation("I2", f"{lease} was renewed, and its run is {data.run.state}")
        seen.lives_until_ms = now_ms + ms
        self.look(lease.run_id)

    def written(self, lease: Lease, _written: Written) -> None:
        """Check a write that the store has accepted."""
        data = self._data.runs.get(lease.run_id)
        if data is None:
            raise Violation("I2", f"{lease} wrote to a run that is gone")
        if data.run.epoch != lease.epoch or data.token != lease.token:
            raise Violation("I2", f"{lease} wrote to a run that another attempt has")
        if data.run.lease_holder_id is None:
            self.of(lease.run_id).lives_until_ms, self.of(lease.run_id).is_held = 0.0, False
        self.look(lease.run_id)

    # What workers do with it.

    def begins(self, claim: Claim, position: int) -> None:
        """Check that a body may run."""
        self.bodies += 1
        if any(s.step_index == position and s.status == "completed" for s in claim.steps):
            raise Violation("I4", f"step {position} runs, though its result was there")
        assert claim.lease is not None
        seen = self.of(claim.lease.run_id)
        # One that learns late that its begin was written knows of no attempt behind its own.
        is_last = seen.holder == (claim.lease.epoch, claim.lease.token)
        if max(claim.run.strikes, seen.crashes if is_last else 0) > STRIKES_MAX:
            raise Violation("I9", "a run goes on that was given up, or should have been")

    def told(self, stored_id: str, key: str) -> None:
        """Check that the product may be told of a turn."""
        data = self._data.runs.get(stored_id)
        is_over = data is not None and data.run.state in ENDED_STATES
        # What was claimed before its run was deleted is still told.
        if not is_over and stored_id not in self._deleted:
            raise Violation("I8", "a hook was called before the turn had ended")
        at = (stored_id, key)
        self.effects[at] = self.effects.get(at, 0) + 1

    def deleted(self, stored_id: str, state: str | None) -> None:
        """Check that a run could be deleted, which had this state; None: it was not there."""
        if state is None:
            raise Violation("I11", "a run was deleted that is somebody else's")
        if state in ("running", "sleeping", "waiting"):
            raise Violation("GC", f"a run was deleted while it was {state}")
        self._deleted.add(stored_id)
        self.forget(stored_id)

    # What is stored.

    def look(self, stored_id: str) -> None:
        """Check what is stored of a run against what was seen of it before."""
        data = self._data.runs.get(stored_id)
        if data is None:
            return
        seen = self.of(stored_id)
        self._look_at_steps(data, seen)
        self._look_at_end(data, seen)
        if len(data.rows) != seen.rows:
            self._look_at_frames(data)
            seen.rows = len(data.rows)
        for key, text in data.event_texts.items():
            if seen.events.setdefault(key, text) != text:
                raise Violation("event", f"the event {key!r} changed")

    def _look_at_steps(self, data: RunData, seen: _Seen) -> None:
        for position, result in seen.results.items():
            step = data.steps.get(position)
            if step is None or step.status != "completed":
                raise Violation("I1", f"step {position} is not completed any more")
            if data.step_texts.get(position) != result:
                raise Violation("I1", f"the result of step {position} changed")
        if len(seen.results) < len(data.steps):
            for position, step in data.steps.items():
                if step.status == "completed" and position not in seen.results:
                    seen.results[position], seen.crashes = data.step_texts[position], 0

    def _look_at_end(self, data: RunData, seen: _Seen) -> None:
        state = data.run.state
        if state in ("failed", "parked"):
            seen.crashes = 0  # What goes on from here was asked for.
        if seen.end is not None and seen.end[0] in TERMINAL_STATES:
            if seen.end != (state, data.outcome_text):
                raise Violation(
                    "I3", f"a run that was {seen.end[0]} is {state}, or has another end"
                )
            if data.run.lease_holder_id is not None:
                raise Violation("I3", "a run that is over has a lease")
        if state in ENDED_STATES:
            if seen.end is None:
                self._look_at_answer(data)
            seen.end = (state, data.outcome_text)
        elif seen.end is not None and seen.end[0] == "failed":
            seen.end = None

    def _look_at_answer(self, data: RunData) -> None:
        """Check an end when it is first seen: its outcome, its answer, its deliveries."""
        if data.run.state != "completed":
            return
        if data.outcome_text is None:
            raise Violation("I3", "a completed run has no outcome")
        if not data.deliveries:
            raise Violation("I8", "a completed run has no delivery")
        answer = data.step_texts.get(0)
        shown = "".join(
            frame.data["delta"]
            for row in data.rows
            if row.last_seq >= data.run.live_from
            for frame in decode_row(row.first_seq, row.epoch, row.body)
            if frame.kind == "text"
        )
        if answer is None or json.loads(answer)["text"] != shown:
            raise Violation("I7", f"readers were shown {shown!r}, the answer is {answer}")
        texts = [text for at, text in sorted(data.step_texts.items()) if at > 0]
        if json.loads(data.outcome_text)["results"] != json.loads(f"[{','.join(texts)}]"):
            raise Violation("I1", "the outcome is made of other results than the recorded ones")
        for (epoch, _), usage in data.usage.items():
            if epoch == data.run.epoch and usage.state == "intended":
                raise Violation("I10", "a call of the attempt that ended was not settled")

    def _look_at_frames(self, data: RunData) -> None:
        """Check that frames have no gap, and that no attempt goes on in the output of another."""
        seq, epoch = 0, 0
        for row in data.rows:
            if row.first_seq != seq + 1 or row.last_seq < row.first_seq:
                raise Violation("I6", f"frames {row.first_seq} to {row.last_seq} follow {seq}")
            if row.epoch != epoch and epoch and '"k":"restarted"' not in row.body:
                raise Violation("I6", f"attempt {row.epoch} goes on in the frames of {epoch}")
            if row.epoch < epoch:
                raise Violation("I2", f"attempt {row.epoch} wrote frames behind {epoch}")
            seq, epoch = row.last_seq, row.epoch
