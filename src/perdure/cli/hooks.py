"""`perdure hooks`: deliveries to hooks, those that wait and those that are dead."""

from __future__ import annotations

import argparse
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from perdure.cli.opening import opened, place_of, ran
from perdure.cli.output import print_json, print_table
from perdure.cli.showing import delivery_json
from perdure.core.records import DeliveryRecord, DeliveryState
from perdure.core.wording import when
from perdure.errors import RunNotFoundError, UsageError
from perdure.store.upkeep import Upkeep, upkeep_of

PAGE: Final = 200
_HEADER: Final = ("RUN", "#", "STATE", "HOOK", "HANDLER", "TRIES", "DUE", "CREATED", "ERROR")


def ls(options: argparse.Namespace) -> int:
    """List deliveries; return the exit code."""
    return ran(_ls, options)


async def _ls(options: argparse.Namespace) -> int:
    states: Sequence[DeliveryState] = (
        ("dead", "waiting") if options.state is None else (options.state,)
    )
    found: list[DeliveryRecord] = []
    async with opened(options) as store:
        upkeep = upkeep_of(store)
        now = await upkeep.now()
        for state in states:
            async for delivery in _deliveries(upkeep, state):
                if options.handler in (None, delivery.handler):
                    found.append(delivery)
                if len(found) > options.limit:
                    break
    page = found[: options.limit]
    if options.json:
        for delivery in page:
            print_json(delivery_json(delivery))
        return 0
    if page:
        print_table(_HEADER, [_row(delivery, now) for delivery in page])
    else:
        print("no deliveries" if options.state else "no deliveries that wait or are dead")
    if len(found) > len(page):
        print("… and more: raise --limit")
    return 0


async def _deliveries(upkeep: Upkeep, state: DeliveryState) -> AsyncGenerator[DeliveryRecord, None]:
    last: DeliveryRecord | None = None
    while page := await upkeep.find_deliveries(state, after=last, limit=PAGE):
        for delivery in page:
            yield delivery
        last = page[-1]


def _row(delivery: DeliveryRecord, now: str) -> tuple[object, ...]:
    due = when(delivery.due_at, now) if delivery.state == "waiting" else None
    return (
        delivery.run_id,
        delivery.position,
        delivery.state,
        delivery.topic,
        delivery.handler,
        delivery.tries,
        due,
        when(delivery.created_at, now),
        delivery.last_error or "",
    )


def retry(options: argparse.Namespace) -> int:
    """Make deliveries due at once; return the exit code."""
    return ran(_retry, options)


async def _retry(options: argparse.Namespace) -> int:
    if (options.run_id is None) != bool(options.dead):
        raise UsageError("name one RUN, or every dead delivery of the store with --dead")
    retried: list[DeliveryRecord] = []
    async with opened(options) as store:
        upkeep = upkeep_of(store)
        if options.dead:
            # One that is retried is found no more, so each search begins at the first.
            while page := await upkeep.find_deliveries("dead", limit=PAGE):
                for dead in page:
                    retried += _known(await upkeep.retry_delivery(dead.run_id, dead.position))
        else:
            place = place_of(store, options)
            await place.read()
            for delivery in (await place.store.read_details(place.run_id)).deliveries:
                if options.position in (None, delivery.position):
                    again = await upkeep.retry_delivery(place.stored_id, delivery.position)
                    retried += _known(again)
            if not retried:
                raise _nothing(options)
    for delivery in retried:
        if options.json:
            print_json(delivery_json(delivery))
        else:
            print(f"{delivery.run_id} {delivery.topic} is due now")
    if not retried and not options.json:
        print("no delivery is dead")
    return 0


def _known(delivery: DeliveryRecord | None) -> list[DeliveryRecord]:
    return [] if delivery is None else [delivery]


def _nothing(options: argparse.Namespace) -> RunNotFoundError:
    which = "delivery" if options.position is None else f"delivery {options.position}"
    return RunNotFoundError(f"the run {options.run_id!r} has no {which} that waits or is dead")
