"""`perdure schedules`: what comes due again and again."""

from __future__ import annotations

import argparse
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from perdure.cli.opening import opened, ran
from perdure.cli.output import as_json, print_json, print_table
from perdure.core.identity import check_tenant
from perdure.core.wording import length_text, when
from perdure.durable.schedules import TaskSchedules
from perdure.errors import RunNotFoundError
from perdure.store.scheduling import Schedule
from perdure.store.upkeep import upkeep_of

_HEADER: Final = ("NAME", "STATE", "TASK", "WHEN", "NEXT", "LAST", "LAST RUN")


def ls(options: argparse.Namespace) -> int:
    """List the schedules of a tenant; return the exit code."""
    return ran(_ls, options)


async def _ls(options: argparse.Namespace) -> int:
    async with _schedules(options) as (schedules, now):
        found = await schedules.list()
    if options.json:
        for schedule in found:
            print_json(as_json(schedule))
    elif found:
        print_table(_HEADER, [_row(schedule, now) for schedule in found])
    else:
        print("no schedules")
    return 0


def pause(options: argparse.Namespace) -> int:
    """Let a schedule fire no more; return the exit code."""
    return ran(_pause, options)


async def _pause(options: argparse.Namespace) -> int:
    async with _schedules(options) as (schedules, _):
        await _check_known(schedules, options.name)
        schedule = await schedules.pause(options.name)
    return _tell(options, schedule, f"{schedule.name} is paused")


def resume(options: argparse.Namespace) -> int:
    """Let a paused schedule fire again; return the exit code."""
    return ran(_resume, options)


async def _resume(options: argparse.Namespace) -> int:
    async with _schedules(options) as (schedules, now):
        await _check_known(schedules, options.name)
        schedule = await schedules.resume(options.name)
    return _tell(options, schedule, f"{schedule.name} fires {when(schedule.next_due_at, now)}")


def rm(options: argparse.Namespace) -> int:
    """Forget a schedule, none of its runs; return the exit code."""
    return ran(_rm, options)


async def _rm(options: argparse.Namespace) -> int:
    async with _schedules(options) as (schedules, _):
        schedule = await _check_known(schedules, options.name)
        await schedules.remove(options.name)
    return _tell(options, schedule, f"{schedule.name} is removed; its runs stay")


@asynccontextmanager
async def _schedules(
    options: argparse.Namespace,
) -> AsyncGenerator[tuple[TaskSchedules, str], None]:
    """Open the schedules of the tenant, and say what time it is in the store."""
    async with opened(options) as store:
        now = await upkeep_of(store).now()
        yield TaskSchedules(store.for_tenant(check_tenant(options.tenant or ""))), now


async def _check_known(schedules: TaskSchedules, name: str) -> Schedule:
    for schedule in await schedules.list():
        if schedule.name == name:
            return schedule
    raise RunNotFoundError(f"there is no schedule {name!r:.60}")


def _row(schedule: Schedule, now: str) -> tuple[object, ...]:
    is_paused = schedule.paused_at is not None
    return (
        schedule.name,
        "paused" if is_paused else "on",
        schedule.task,
        _timing_text(schedule),
        None if is_paused else when(schedule.next_due_at, now),
        when(schedule.last_due_at, now),
        schedule.last_run_id,
    )


def _timing_text(schedule: Schedule) -> str:
    if schedule.cron is not None:
        return f"{schedule.cron} ({schedule.timezone})"
    return f"every {length_text(schedule.every_ms or 0)}"


def _tell(options: argparse.Namespace, schedule: Schedule, told: str) -> int:
    if options.json:
        print_json({**as_json(schedule), "note": told})
    else:
        print(told)
    return 0
