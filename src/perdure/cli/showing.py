"""`perdure show`: all that is known of one run."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from perdure.cli.opening import opened, place_of, ran
from perdure.cli.output import (
    as_json,
    emphasised,
    harmless,
    one_line,
    print_json,
    print_pairs,
    print_table,
    shortened,
)
from perdure.cli.runs import run_json
from perdure.core.effects import epoch_ms
from perdure.core.records import (
    AttemptRecord,
    DeliveryRecord,
    RunDetails,
    RunRecord,
    StepError,
    StepRecord,
    UsageRecord,
)
from perdure.core.wording import id_of, length_text, note_of, when
from perdure.observe.credentials import mask_text
from perdure.store.upkeep import upkeep_of


def show(options: argparse.Namespace) -> int:
    """Show a run; return the exit code."""
    return ran(_show, options)


async def _show(options: argparse.Namespace) -> int:
    async with opened(options) as store:
        now = await upkeep_of(store).now()
        place = place_of(store, options)
        run = await place.read()
        steps = await place.store.read_steps(place.run_id)
        details = await place.store.read_details(place.run_id)
    if options.json:
        print_json(_whole(run, steps, details))
        return 0
    page = _Page(run, now, is_full=options.full)
    page.head()
    page.attempts(details.attempts)
    page.steps(steps)
    page.rest(details)
    return 0


def _whole(run: RunRecord, steps: Sequence[StepRecord], details: RunDetails) -> dict[str, Any]:
    return {
        **run_json(run),
        "steps": [as_json(step) for step in steps],
        "attempts": [as_json(attempt) for attempt in details.attempts],
        "events": [as_json(event) for event in details.events],
        "usage": [as_json(usage) for usage in details.usage],
        "deliveries": [delivery_json(delivery) for delivery in details.deliveries],
    }


def delivery_json(delivery: DeliveryRecord) -> dict[str, Any]:
    """Return a delivery for programs, without the token of its claim."""
    record = as_json(delivery)
    del record["token"]
    return record


class _Page:
    """What a person sees of one run."""

    def __init__(self, run: RunRecord, now: str, *, is_full: bool) -> None:
        self._run = run
        self._now = now
        self._is_full = is_full

    def head(self) -> None:
        run, now = self._run, self._now
        note = note_of(run, now)
        turn = None if run.turn_index is None else f"{run.session_id}, turn {run.turn_index}"
        if turn is not None and run.revision:
            turn = f"{turn}, revision {run.revision}"
        task = None if run.manifest is None else run.manifest.task.intent
        holder = run.lease_holder_id
        lease = None if holder is None else f"{holder}, {when(run.lease_expires_at, now)}"
        print_pairs(
            (
                ("run", id_of(run)),
                ("state", run.state if note is None else f"{run.state} ({note})"),
                ("task", task),
                ("handler", run.handler or "none: only the same call goes on with it"),
                ("session", turn),
                ("owner", run.owner_id),
                ("follows", run.parent_run_id),
                ("created", self._moment(run.created_at)),
                ("ended", self._moment(run.completed_at)),
                ("lease until", lease),
                ("strikes", run.strikes or None),
                ("stop asked", self._moment(run.stop_requested_at)),
                ("frames gone", self._moment(run.frames_expired_at)),
                ("input", None if run.manifest is None else self._value(run.manifest.input)),
                ("outcome", None if run.outcome is None else self._value(as_json(run.outcome))),
            )
        )

    def attempts(self, attempts: Sequence[AttemptRecord]) -> None:
        self._section(
            "Attempts",
            ("#", "ENDED AS", "STARTED", "TOOK", "HOLDER", "CODE", "ERROR"),
            (
                (
                    attempt.epoch,
                    attempt.ended or "goes on",
                    when(attempt.started_at, self._now),
                    self._took(attempt.started_at, attempt.ended_at),
                    attempt.holder,
                    attempt.code_version,
                    _message(attempt.error),
                )
                for attempt in attempts
            ),
        )
        if self._is_full:
            for attempt in attempts:
                _print_stack(f"attempt {attempt.epoch}", attempt.error)

    def steps(self, steps: Sequence[StepRecord]) -> None:
        self._section(
            "Steps",
            ("#", "STATUS", "KIND", "INTENT", "TRIES", "TOOK", "ATTEMPT", "RESULT"),
            (
                (
                    step.step_index,
                    step.status,
                    step.kind,
                    step.intent,
                    step.attempts,
                    self._took(step.started_at, step.completed_at),
                    step.epoch,
                    _message(step.error) if step.status == "failed" else self._result(step),
                )
                for step in steps
            ),
        )
        if self._is_full:
            for step in steps:
                _print_stack(f"step {step.step_index}", step.error)

    def rest(self, details: RunDetails) -> None:
        self._section(
            "Events",
            ("KEY", "EMITTED", "PAYLOAD"),
            (
                (event.key, when(event.emitted_at, self._now), self._value(event.payload))
                for event in details.events
            ),
        )
        self._section(
            "Model calls",
            ("ATTEMPT", "STATE", "MODEL", "IN", "OUT", "CACHED", "WRITTEN", "REASONING", "STEP"),
            (_usage_row(usage) for usage in details.usage),
        )
        self._section(
            "Deliveries",
            ("#", "STATE", "HOOK", "TRIES", "WHEN", "ERROR"),
            (
                (
                    delivery.position,
                    delivery.state,
                    delivery.topic,
                    delivery.tries,
                    when(delivery.delivered_at or delivery.due_at, self._now),
                    delivery.last_error,
                )
                for delivery in details.deliveries
            ),
        )

    def _section(self, title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        known = list(rows)
        if known:
            print(f"\n{emphasised(title)}")
            print_table(header, known)

    def _moment(self, moment: str | None) -> str | None:
        return None if moment is None else f"{when(moment, self._now)} ({moment})"

    def _took(self, begun: str | None, ended: str | None) -> str | None:
        if begun is None:
            return None
        return length_text(epoch_ms(ended or self._now) - epoch_ms(begun))

    def _result(self, step: StepRecord) -> str | None:
        return self._value(step.result) if step.status == "completed" else None

    def _value(self, value: object) -> str:
        return shortened(value, 1_000_000_000) if self._is_full else shortened(value)


def _usage_row(usage: UsageRecord) -> tuple[object, ...]:
    return (
        usage.epoch,
        usage.state,
        usage.model,
        usage.tokens_in,
        usage.tokens_out,
        usage.tokens_cached,
        usage.tokens_cache_written,
        usage.tokens_reasoning,
        usage.step_index,
    )


def _message(error: StepError | None) -> str | None:
    return None if error is None else f"{error.type or 'error'}: {error.message}"


def _print_stack(what: str, error: StepError | None) -> None:
    if error is not None and error.stack is not None:
        print(f"\n{emphasised(one_line(what))}\n{harmless(mask_text(error.stack)).rstrip()}")
