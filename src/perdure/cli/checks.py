"""What `perdure doctor` looks at: each check finds one kind of fault, and names the way out."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from typing import Final, Literal, NamedTuple

from perdure.backends.protocol import Backend, Prompt
from perdure.cli.arguments import without_password
from perdure.core.effects import Clock, epoch_ms, iso_time, system_clock
from perdure.core.limits import GARBAGE_EVERY_MS
from perdure.core.wording import id_of, length_text, when
from perdure.errors import PerdureError, SchemaError, StoreError
from perdure.store.mounts import MOUNTS, network_mount
from perdure.store.opening import path_of
from perdure.store.sql.sqlite_connection import VERSION_MIN, check_library
from perdure.store.upkeep import RunQuery, Survey, Upkeep

Level = Literal["ok", "warning", "fault"]

DISK_BYTES_MIN: Final = 64 * 1024 * 1024
"""Below this a store is about to be full."""
DISK_BYTES_WANTED: Final = 1024 * 1024 * 1024
CLOCK_MS_MAX: Final = 2_000
"""So far a machine's clock may be from that of the store, or behind what was written."""
OVERDUE_MS: Final = 2 * 60 * 1000
"""A delivery, or a run, that was due for so long has nobody who takes it."""
FRAMES_GRACE_MS: Final = 6 * GARBAGE_EVERY_MS
NAMED_MAX: Final = 5


class Finding(NamedTuple):
    """What a check found; `way_out` is what to do about it."""

    level: Level
    check: str
    told: str
    way_out: str | None = None


def examine_place(url: str, *, mounts: str = MOUNTS) -> Iterator[Finding]:
    """Yield what is to be said of the library and the place of a store, before it is opened."""
    path = path_of(url)
    if url.startswith("sqlite:"):
        yield examine_library()
    if path is None:
        return
    place = os.path.realpath(path)
    folder = place if os.path.isdir(place) else os.path.dirname(place)
    yield _mount(folder, mounts)
    yield _disk(folder)
    yield _rights(place, folder)


def examine_library() -> Finding:
    """Return what is to be said of Python's SQLite."""
    try:
        check_library()
    except StoreError as error:
        wanted = ".".join(map(str, VERSION_MIN))
        way_out = f"use a Python that was built with SQLite {wanted} or newer"
        return Finding("fault", "sqlite", str(error), way_out)
    return Finding("ok", "sqlite", f"version {sqlite3.sqlite_version}")


def _mount(folder: str, mounts: str) -> Finding:
    kind = network_mount(folder, mounts)
    if kind is not None:
        told = f"{folder} is on a network mount ({kind}), where locks and flushes fail"
        return Finding("fault", "mount", told, "move the store to a local disk")
    return Finding("ok", "mount", f"{folder} is on no network mount that is known")


def _disk(folder: str) -> Finding:
    free = shutil.disk_usage(folder).free
    told = f"{_size(free)} are free for {folder}"
    way_out = "free some space, or delete what need not be kept: perdure gc --runs-after 30d"
    if free < DISK_BYTES_MIN:
        return Finding("fault", "disk", f"only {told}", way_out)
    if free < DISK_BYTES_WANTED:
        return Finding("warning", "disk", f"only {told}", way_out)
    return Finding("ok", "disk", told)


def _rights(place: str, folder: str) -> Finding:
    for path in (folder, place):
        if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
            told = f"this user may not read and write {path}"
            return Finding("fault", "rights", told, "give the user of the service these rights")
    return Finding("ok", "rights", "the store may be read and written")


def schema_fault(error: SchemaError, url: str) -> Finding:
    """Return what is to be said of a database that another version has made."""
    if "lacks the migrations" in str(error):
        way_out = f"perdure migrate --store {shlex.quote(without_password(url))}"
    else:
        way_out = "use the version of perdure that made it, or a newer one"
    return Finding("fault", "schema", str(error), way_out)


async def examine_content(
    upkeep: Upkeep, *, frames_after_ms: int | None, clock: Clock = system_clock
) -> AsyncIterator[Finding]:
    """Yield what is to be said of what is in a store."""
    survey = await upkeep.survey()
    yield _clock(survey, clock())
    yield _count(survey)
    yield await _parked(upkeep, survey)
    yield await _forsaken(upkeep, survey)
    yield await _overdue(upkeep, survey)
    yield await _dead(upkeep, survey)
    if frames_after_ms is not None:
        yield await _frames(upkeep, survey, frames_after_ms)


def _clock(survey: Survey, machine_ms: int) -> Finding:
    apart_ms = epoch_ms(survey.now) - machine_ms
    way_out = "set the clocks by NTP: leases, waits and retention go by them"
    if abs(apart_ms) > CLOCK_MS_MAX:
        side = "ahead of" if apart_ms > 0 else "behind"
        told = f"the store's clock is {length_text(abs(apart_ms))} {side} that of this machine"
        return Finding("fault", "clock", told, way_out)
    ahead_ms = 0 if survey.newest_at is None else epoch_ms(survey.newest_at) - epoch_ms(survey.now)
    if ahead_ms > CLOCK_MS_MAX:
        told = f"a run was written {length_text(ahead_ms)} after what is now by the store's clock"
        return Finding("fault", "clock", told, way_out)
    return Finding("ok", "clock", "the store and this machine agree on the time")


def _count(survey: Survey) -> Finding:
    states = ", ".join(f"{count:,} {state}" for state, count in sorted(survey.runs.items()))
    return Finding("ok", "runs", states or "none")


async def _parked(upkeep: Upkeep, survey: Survey) -> Finding:
    count = survey.runs.get("parked", 0)
    if not count:
        return Finding("ok", "parked", "no run is parked")
    runs = await upkeep.find_runs(RunQuery(state="parked"), limit=NAMED_MAX)
    names = [f"{id_of(run)} ({run.reason or 'no reason'})" for run in runs]
    way_out = "look with `perdure show RUN`, mend the reason, then `perdure retry RUN`"
    return Finding("fault", "parked", f"{_some(count, names)} parked", way_out)


async def _forsaken(upkeep: Upkeep, survey: Survey) -> Finding:
    """Look for runs that have been due for long: no worker has their handler."""
    before = iso_time(epoch_ms(survey.now) - OVERDUE_MS)
    names: list[str] = []
    count, after = 0, None
    while page := await upkeep.find_runs(RunQuery(state="running"), after=after, limit=200):
        after = id_of(page[-1])
        for run in page:
            lapsed = run.lease_expires_at if run.lease_holder_id is not None else run.updated_at
            if (lapsed or "") <= before:
                count += 1
                names.append(f"{id_of(run)} (handler {run.handler})")
    if not count:
        return Finding("ok", "workers", "every running run has somebody who works on it")
    way_out = "start a worker, or a service, that has the handler; it goes on by itself"
    told = f"{_some(count, names[:NAMED_MAX])} running without a worker"
    return Finding("fault", "workers", told, way_out)


async def _overdue(upkeep: Upkeep, survey: Survey) -> Finding:
    if survey.due_at is None or epoch_ms(survey.now) - epoch_ms(survey.due_at) < OVERDUE_MS:
        return Finding("ok", "outbox", f"{_waiting(survey)}, none for too long")
    deliveries = await upkeep.find_deliveries("waiting", limit=NAMED_MAX)
    handlers = sorted({delivery.handler for delivery in deliveries})
    told = (
        f"{_waiting(survey)}, the first was due {when(survey.due_at, survey.now)}: "
        f"nobody delivers for {', '.join(handlers)}"
    )
    return Finding("fault", "outbox", told, "start a worker, or a service, of these names")


def _waiting(survey: Survey) -> str:
    return "1 delivery waits" if survey.waiting == 1 else f"{survey.waiting:,} deliveries wait"


async def _dead(upkeep: Upkeep, survey: Survey) -> Finding:
    if not survey.dead:
        return Finding("ok", "dead", "no delivery is dead")
    deliveries = await upkeep.find_deliveries("dead", limit=NAMED_MAX)
    names = [f"{each.run_id} {each.topic} ({each.last_error})" for each in deliveries]
    way_out = "mend what the hook says, then `perdure hooks retry --dead`"
    return Finding("fault", "dead", f"{_some(survey.dead, names, 'delivery')} dead", way_out)


async def _frames(upkeep: Upkeep, survey: Survey, frames_after_ms: int) -> Finding:
    ended_by = iso_time(max(0, epoch_ms(survey.now) - frames_after_ms - FRAMES_GRACE_MS))
    count, after, is_last = 0, None, False
    while not is_last:
        found = await upkeep.find_framed(ended_by, after=after, limit=500)
        count, after, is_last = count + len(found.run_ids), found.after, found.after is None
    if count:
        turns = "1 finished turn has" if count == 1 else f"{count:,} finished turns have"
        told = f"{turns} frames older than {length_text(frames_after_ms)}"
        return Finding("fault", "frames", told, "perdure gc; `perdure serve` does it by itself")
    return Finding("ok", "frames", "no frames are kept for longer than they should be")


async def examine_model(backend: Backend) -> Finding:
    """Return whether the model answers. It is asked for one word."""
    name = f"{backend.name} ({backend.model})"
    prompt = Prompt([{"role": "user", "content": "Say: yes"}], max_tokens=16)
    try:
        async for frame in backend.stream(prompt):
            if frame.kind == "upstream_end":
                return Finding("ok", "model", f"{name} answers")
    except PerdureError as error:
        return Finding("fault", "model", f"{name} does not answer: {error}", error.hint)
    return Finding("fault", "model", f"{name} gave no end to its answer", "check the endpoint")


def _some(count: int, names: list[str], thing: str = "run") -> str:
    """Return `3 runs (a, b, …) are`."""
    named = ", ".join(names) + (", …" if count > len(names) else "")
    things = {"run": "runs", "delivery": "deliveries"}[thing] if count > 1 else thing
    return f"{count:,} {things} ({named}) {'is' if count == 1 else 'are'}"


def _size(count: int) -> str:
    for unit, size in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1024:,.0f} KiB"
