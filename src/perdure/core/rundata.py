"""Everything that belongs to one run, held in memory.

JSON that a caller gave stays text until somebody reads it, so nobody can change what is stored
through a value that was handed out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from perdure.core.changes import SettleUsage
from perdure.core.effects import epoch_ms, iso_time, new_token
from perdure.core.jsonvalue import decode_value
from perdure.core.limits import (
    DELIVERY_BACKOFF_MAX_MS,
    DELIVERY_BACKOFF_MS,
    DELIVERY_CLAIM_MS,
    DELIVERY_TRIES_MAX,
)
from perdure.core.recordjson import manifest_from_json, outcome_from_json, step_error_from_json
from perdure.core.records import (
    AttemptRecord,
    DeliveryRecord,
    EventRecord,
    Lease,
    RunDetails,
    RunRecord,
    StepRecord,
    UsageRecord,
)

DELIVERY_LOST = "the worker that made the last try ended before it could say how it went"
"""The error of a delivery whose tries are used up, though its last one was never settled."""


def delivery_backoff_ms(tries: int) -> int:
    """Return how long a delivery waits after its `tries`-th failure: 1 s, doubling to 1 h."""
    return min(DELIVERY_BACKOFF_MS << min(max(tries - 1, 0), 20), DELIVERY_BACKOFF_MAX_MS)


class FrameRow(NamedTuple):
    """One stored row of a turn's frames."""

    first_seq: int
    last_seq: int
    epoch: int
    body: str


class RunData:
    """One run with its steps, frames, events, attempts, usage and deliveries."""

    def __init__(self, run: RunRecord, *, manifest_text: str) -> None:
        self.run = run
        self.token: str | None = None
        self.manifest_text = manifest_text
        self.outcome_text: str | None = None
        self.upstream_text: str | None = None
        self.steps: dict[int, StepRecord] = {}
        self.step_texts: dict[int, str] = {}
        self.rows: list[FrameRow] = []
        self.events: dict[str, EventRecord] = {}
        self.event_texts: dict[str, str] = {}
        self.attempts: dict[int, AttemptRecord] = {}
        self.usage: dict[tuple[int, int], UsageRecord] = {}
        self.usage_tokens: dict[tuple[int, int], str] = {}
        self.deliveries: dict[int, DeliveryRecord] = {}
        self.delivery_texts: dict[int, str] = {}
        self.claimed_until: dict[int, str] = {}

    @property
    def next_seq(self) -> int:
        return self.rows[-1].last_seq + 1 if self.rows else 1

    def record(self, owner_id: str | None = None) -> RunRecord:
        """Return the run as callers see it, with its JSON decoded."""
        outcome, upstream = self.outcome_text, self.upstream_text
        return self.run._replace(
            manifest=manifest_from_json(decode_value(self.manifest_text)),
            outcome=None if outcome is None else outcome_from_json(decode_value(outcome)),
            upstream=None if upstream is None else decode_value(upstream),
            owner_id=owner_id,
            parent_run_id=self.run.parent_run_id or None,
        )

    def step(self, position: int) -> StepRecord:
        """Return a recorded step with its result or error decoded."""
        return _with_text(self.steps[position], self.step_texts.get(position))

    def all_steps(self) -> list[StepRecord]:
        return [self.step(position) for position in sorted(self.steps)]

    def event(self, key: str) -> EventRecord:
        return self.events[key]._replace(payload=decode_value(self.event_texts[key]))

    def delivery(self, position: int) -> DeliveryRecord:
        return self.deliveries[position]._replace(
            payload=decode_value(self.delivery_texts[position])
        )

    def add_event(self, key: str, payload_text: str, now: str) -> None:
        """Record an event that is not there yet, and wake the run if it waits for it."""
        self.events[key] = EventRecord(self.run.run_id, key, None, now)
        self.event_texts[key] = payload_text
        if self.run.state == "waiting" and self.run.wake_key == key:
            self.run = self.run._replace(wake_at=now)

    def details(self) -> RunDetails:
        return RunDetails(
            attempts=[self.attempts[epoch] for epoch in sorted(self.attempts)],
            events=[self.event(key) for key in sorted(self.events)],
            usage=self.all_usage(),
            deliveries=[self.delivery(position) for position in sorted(self.deliveries)],
        )

    def all_usage(self) -> list[UsageRecord]:
        return [self._usage_as_known(key) for key in sorted(self.usage)]

    def _usage_as_known(self, key: tuple[int, int]) -> UsageRecord:
        """Nobody will settle what an attempt that is over has left open."""
        usage = self.usage[key]
        lost = usage.state == "intended" and self.attempts[usage.epoch].ended_at is not None
        return usage._replace(state="unknown") if lost else usage

    def due_delivery(self, handlers: frozenset[str], now: str) -> DeliveryRecord | None:
        """Return the first waiting delivery, without its payload, if it may be claimed now."""
        waiting = (d for _, d in sorted(self.deliveries.items()) if d.state == "waiting")
        first = next(waiting, None)
        if first is None or first.handler not in handlers or (first.due_at or "") > now:
            return None
        return None if self.claimed_until.get(first.position, "") > now else first

    def claim_delivery(
        self, handlers: frozenset[str], now: str, *, token: str | None = None
    ) -> Sequence[DeliveryRecord]:
        """Claim the first waiting delivery, if it is due: later ones wait for it."""
        first = self.due_delivery(handlers, now)
        if first is None:
            return ()
        position = first.position
        self.deliveries[position] = first._replace(
            token=token or new_token(), tries=first.tries + 1
        )
        self.claimed_until[position] = iso_time(epoch_ms(now) + DELIVERY_CLAIM_MS)
        return (self.delivery(position),)

    def bury_lost(self, handlers: frozenset[str], now: str) -> bool:
        """Let those be dead whose last try was never settled; return whether there were any."""
        found = False
        while (due := self.due_delivery(handlers, now)) and due.tries >= DELIVERY_TRIES_MAX:
            found = self.settle_delivery(due, now, DELIVERY_LOST)
        return found

    def settle_delivery(self, delivery: DeliveryRecord, now: str, error: str | None) -> bool:
        """Settle a claimed delivery; False if somebody else has claimed it since."""
        known = self.deliveries.get(delivery.position)
        if known is None or known.state != "waiting":
            return False
        if known.token is None or known.token != delivery.token:
            return False
        self.claimed_until.pop(delivery.position, None)
        known = known._replace(token=None, last_error=error)
        if error is None:
            known = known._replace(state="delivered", delivered_at=now)
        elif known.tries >= DELIVERY_TRIES_MAX:
            known = known._replace(state="dead")
        else:
            due_at = iso_time(epoch_ms(now) + delivery_backoff_ms(known.tries))
            known = known._replace(due_at=due_at)
        self.deliveries[delivery.position] = known
        return True

    def retry_delivery(self, position: int, now: str) -> bool:
        """Make a delivery due now, and a dead one wait again; False if it was made."""
        known = self.deliveries.get(position)
        if known is None or known.state == "delivered":
            return False
        if known.state == "dead":
            known = known._replace(state="waiting", tries=0)
        self.deliveries[position] = known._replace(due_at=now)
        return True

    def has_waiting(self) -> bool:
        """Return whether something must still follow the end of the run."""
        return any(delivery.state == "waiting" for delivery in self.deliveries.values())

    def settle(self, lease: Lease, usage: SettleUsage, now: str) -> None:
        """Settle a row of the lease's epoch and token, or an earlier one; a settled row stays."""
        is_earlier = usage.epoch is not None
        key = (usage.epoch or lease.epoch, usage.call)
        known = self.usage.get(key)
        if known is None or known.state == "settled":
            return
        if is_earlier and key[0] >= lease.epoch:
            return
        if not is_earlier and self.usage_tokens[key] != lease.token:
            return
        self.usage[key] = known._replace(
            state=usage.state,
            provider=usage.provider or known.provider,
            model=usage.model or known.model,
            request_id=usage.request_id,
            tokens_in=usage.tokens_in,
            tokens_out=usage.tokens_out,
            tokens_cached=usage.tokens_cached,
            tokens_reasoning=usage.tokens_reasoning,
            tokens_cache_written=usage.tokens_cache_written,
            cost_nanos=usage.cost_nanos,
            currency=usage.currency,
            price_version=usage.price_version,
            settled_at=now,
        )


def _with_text(step: StepRecord, text: str | None) -> StepRecord:
    if text is None:
        return step
    if step.status == "failed":
        return step._replace(error=step_error_from_json(decode_value(text)))
    return step._replace(result=decode_value(text))
