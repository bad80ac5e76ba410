"""`perdure fork`: a new run that begins with the first steps of another one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from perdure.cli.opening import opened, place_of, ran
from perdure.cli.output import as_json, emphasised, print_json, print_table
from perdure.cli.runs import run_json
from perdure.core.records import StepRecord
from perdure.core.wording import id_of
from perdure.durable.forking import ForkPreview, fork, preview_fork


def fork_run(options: argparse.Namespace) -> int:
    """Fork a run, or show what that would do; return the exit code."""
    return ran(_fork, options)


async def _fork(options: argparse.Namespace) -> int:
    async with opened(options) as store:
        place = place_of(store, options)
        await place.read()
        preview = await preview_fork(
            place.store, place.run_id, from_step=options.from_step, new_run_id=options.new_id
        )
        if options.dry_run:
            return _show(options, preview)
        forked = await fork(
            place.store, place.run_id, from_step=options.from_step, new_run_id=options.new_id
        )
    if options.json:
        print_json(run_json(forked))
        return 0
    kept, again = len(preview.kept), len(preview.again)
    print(f"{id_of(forked)} is forked from {place.stored_id}: {kept} kept, {again} to do again")
    if preview.handler is None:
        print("no handler is recorded: the same run_durable call with this id goes on with it")
    return 0


def _show(options: argparse.Namespace, preview: ForkPreview) -> int:
    if options.json:
        print_json(
            {
                "runId": preview.run.run_id,
                "newRunId": preview.new_run_id,
                "fromStep": preview.from_step,
                "kept": [as_json(step) for step in preview.kept],
                "again": [as_json(step) for step in preview.again],
                "events": list(preview.events),
                "frames": preview.frames,
                "handler": preview.handler,
            }
        )
        return 0
    print(f"{preview.new_run_id or 'the fork'} would begin with what {id_of(preview.run)} has:")
    _print_steps("Kept", preview.kept)
    _print_steps("Done again, with what that does outside", preview.again)
    return 0


def _print_steps(title: str, steps: Sequence[StepRecord]) -> None:
    print(f"\n{emphasised(title)}")
    if not steps:
        print("no step")
        return
    print_table(
        ("#", "STATUS", "KIND", "INTENT", "EFFECT"),
        [(step.step_index, step.status, step.kind, step.intent, step.effect) for step in steps],
    )
