"""What a task does on every engine, and what becomes of it when its worker is killed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from perdure.core import effects
from perdure.core.records import JsonValue
from perdure.testing.host_lab import HostEnd, HostLab
from perdure.testing.host_tasks import SLEEP_MS, VALUES
from perdure.testing.lab import check, same

PATIENCE_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.02
_UUID: Final = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class _Run:
    """One run of a task, and its notes."""

    def __init__(self, lab: HostLab, task: str) -> None:
        self.id = f"{task}-{effects.new_token()[:8]}"
        self._lab = lab
        self._task = task
        self._log: Path = lab.folder / f"{self.id}.log"

    async def start(self, **input: JsonValue) -> None:
        self._log.touch()
        await self._lab.start(self._task, self.id, {"log": str(self._log), **input})

    async def end(self) -> HostEnd:
        async with asyncio.timeout(PATIENCE_S):
            return await self._lab.end(self.id)

    async def emit(self, key: str, payload: JsonValue) -> None:
        await self._lab.emit(self.id, key, payload)

    async def value(self) -> Any:
        """Return the result of the run, which must have one."""
        end = await self.end()
        same(end.state, "completed", f"how {self.id} ended ({end.message})")
        return end.value

    @property
    def notes(self) -> list[str]:
        return self._log.read_text("ascii").splitlines()

    async def noted(self, word: str) -> None:
        """Return once the word is noted."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if word in self.notes:
                    return
                await asyncio.sleep(_LOOK_EVERY_S)


async def _started(lab: HostLab, task: str, **input: JsonValue) -> _Run:
    run = _Run(lab, task)
    await run.start(**input)
    return run


def _kind(value: object) -> str:
    return type(value).__name__


async def values_come_back_as_they_were_recorded(lab: HostLab) -> None:
    values = await (await _started(lab, "values")).value()
    same(values, list(VALUES), "the values of the steps")
    same(list(map(_kind, values)), list(map(_kind, VALUES)), "their types")


async def a_step_is_tried_fails_and_is_refused_as_its_options_say(lab: HostLab) -> None:
    run = await _started(lab, "steps")
    seen: Mapping[str, Any] = await run.value()
    same(seen["flaky"], "try 3", "the step that succeeds at the third try")
    same(run.notes, ["flaky"] * 3 + ["broken"] * 2 + ["after"], "the notes")
    broken = {"kind": "StepFailedError", "intent": "broken", "type": "ValueError"}
    same({name: seen["broken"][name] for name in broken}, broken, "the step that fails")
    same(seen["broken"]["message"], "no such table", "its message")
    same(seen["late"]["kind"], "StepTimeoutError", "the step that takes too long")
    same(seen["set"]["type"], "NotSerializableError", "the step whose result is no JSON")
    same(seen["nested"]["type"], "UsageError", "the step that is begun inside a step")


async def parallel_steps_all_end_and_keep_their_order_and_their_limit(lab: HostLab) -> None:
    run = await _started(lab, "parallel")
    seen = await run.value()
    same(seen["results"], [0, 1, 2, 3, 4], "the results")
    same(seen["most"], 2, "how many ran at once")
    same(seen["failed"]["message"], "this branch", "the failure of a branch")
    same(seen["gathered"], [5, 6], "what was gathered")
    same(sorted(run.notes), [f"branch {at}" for at in range(7)] + ["good"], "the notes")


async def time_chance_and_keys_are_recorded(lab: HostLab) -> None:
    one, other = await _started(lab, "facts", word="é"), await _started(lab, "facts", word="")
    seen, others = await one.value(), await other.value()
    same((seen["input"], others["input"]), ("é", ""), "the inputs")
    before, after = (datetime.fromisoformat(seen[name]) for name in ("before", "after"))
    slept_ms = (after - before).total_seconds() * 1_000
    # Clocks of engines count from their own record of the sleep, in whole milliseconds.
    check(slept_ms >= SLEEP_MS - 5, f"a sleep of {SLEEP_MS} ms took {slept_ms} ms")
    check(_UUID.fullmatch(seen["uuid"]), f"{seen['uuid']!r} is no UUID of version 4")
    check(0 <= seen["random"] < 1, f"{seen['random']} is not in [0, 1)")
    same(len({*seen["keys"], *others["keys"]}), 4, "different keys of two runs of two steps")
    check(seen["uuid"] != others["uuid"], "two runs have one UUID")


async def an_event_may_come_before_and_after_the_wait_and_the_first_counts(lab: HostLab) -> None:
    run = await _started(lab, "events")
    await run.emit("early", {"number": 1})
    await run.noted("heard")
    await run.emit("early", {"number": 2})
    await run.emit("late", "now")
    seen = await run.value()
    same(
        (seen["early"], seen["late"], seen["again"]), ({"number": 1}, "now", {"number": 1}), "them"
    )
    same(seen["never"]["code"], "await_event_timeout", "the event that does not come")


async def a_task_that_raises_has_failed(lab: HostLab) -> None:
    end = await (await _started(lab, "failing")).end()
    same(end.state, "failed", "how it ended")
    check("no such table" in end.message, f"the failure does not say why: {end.message!r}")


async def a_cancelled_task_is_left_and_takes_no_more_steps(lab: HostLab) -> None:
    run = await _started(lab, "cancelled")
    await run.noted("begun")
    await lab.cancel(run.id)
    same((await run.end()).state, "cancelled", "how it ended")
    check("after" not in run.notes, "a step was executed behind the cancellation")


async def behind_a_kill_what_was_recorded_is_not_done_again(lab: HostLab) -> None:
    run = await _started(lab, "killed")
    await run.noted("hang")
    await lab.kill_worker()
    await lab.start_worker()
    seen = await run.value()
    same(seen["results"], ["done", ["done", 2], "went on", "done"], "the results")
    notes = run.notes
    for word, count in (("first", 1), ("left", 1), ("right", 1), ("hang", 2), ("last", 1)):
        same(notes.count(word), count, f"how often {word!r} was executed")
    same({note for note in notes if note.startswith("uuid")}, {f"uuid {seen['uuid']}"}, "the UUID")
    keys = [note for note in notes if note.startswith("key")]
    same(len(keys), 2, "the keys that were noted")
    same(len(set(keys)), 1, "the different keys of the step that was executed twice")


async def behind_a_kill_a_step_that_may_run_once_has_failed(lab: HostLab) -> None:
    run = await _started(lab, "killed_once")
    await run.noted("hang")
    await lab.kill_worker()
    await lab.start_worker()
    seen = await run.value()
    same(seen["done"], "done", "the step before")
    failure = seen["hang"] or {"code": "none: it was executed again"}
    same(failure["code"], "unfinished_tool_call", "the step that was interrupted")
    same(run.notes, ["done", "hang"], "the notes")


async def an_event_that_comes_while_no_worker_lives_is_not_lost(lab: HostLab) -> None:
    run = await _started(lab, "killed_waiting")
    await run.noted("waits")
    await lab.kill_worker()
    await run.emit("go", "at last")
    await lab.start_worker()
    same(await run.value(), "at last", "the payload")
    same(run.notes.count("begun"), 1, "how often the step was executed")
