"""`perdure decide`: calls of tools that wait for a human, and the human's answer."""

from __future__ import annotations

import argparse

from perdure.agent.tool_approval import Approval, ApprovalRequest, decide, pending_approvals
from perdure.cli.exits import NO
from perdure.cli.opening import opened, place_of, ran
from perdure.cli.output import as_json, print_json, print_table
from perdure.core.jsonvalue import encode_value
from perdure.core.wording import when
from perdure.errors import RunNotFoundError, UsageError
from perdure.observe.credentials import shown
from perdure.store.upkeep import upkeep_of


def decide_call(options: argparse.Namespace) -> int:
    """List the calls of a run that wait, or decide one; return the exit code."""
    return ran(_list if options.approved is None else _decide, options)


async def _list(options: argparse.Namespace) -> int:
    async with opened(options) as store:
        place = place_of(store, options)
        await place.read()
        pending = await pending_approvals(place.store, place.run_id)
        now = await upkeep_of(store).now()
    if options.json:
        for request in pending:
            print_json(as_json(request))
    elif pending:
        rows = [
            (one.event, one.tool, when(one.asked_at, now), encode_value(shown(dict(one.arguments))))
            for one in pending
        ]
        print_table(("EVENT", "TOOL", "ASKED", "ARGUMENTS"), rows)
    else:
        print("nothing waits for a human")
    return 0


async def _decide(options: argparse.Namespace) -> int:
    async with opened(options) as store:
        place = place_of(store, options)
        await place.read()
        event = options.event
        if event is None:
            event = _only(await pending_approvals(place.store, place.run_id), options)
        approval = Approval(options.approved, options.reason, by=options.by)
        decided = await decide(place.store, place.run_id, event, approval)
    if options.json:
        print_json({"event": event, **decided._asdict()})
    elif decided.accepted:
        print(f"{event} is {'approved' if options.approved else 'denied'}")
    elif decided.decision is None:
        print(f"{event} was not decided in time: that was a no")
    else:
        print(f"{event} was decided before: {encode_value(shown(decided.decision))}")
    return 0 if decided.accepted else NO


def _only(pending: list[ApprovalRequest], options: argparse.Namespace) -> str:
    if not pending:
        raise RunNotFoundError(f"the run {options.run_id!r} has no call that waits for a human")
    if len(pending) > 1:
        events = ", ".join(request.event for request in pending)
        raise UsageError(f"{len(pending)} calls wait: name one with --event ({events})")
    return pending[0].event
