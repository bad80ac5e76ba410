"""Lists of runs: by state and session, page by page, each run once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from perdure.core.records import RunRecord, RunState, SessionKey
from perdure.errors import RunNotFoundError, UsageError
from perdure.store.protocol import RunStore
from perdure.testing.lab import StoreLab, case, check, read, refused, same
from perdure.testing.phases import SCENES, stage
from perdure.testing.samples import HANDLER, begun, completed, ended, finish, hold, manifest


def _ids(runs: Sequence[RunRecord]) -> list[str]:
    return [run.run_id for run in runs]


async def _pages(store: RunStore, limit: int, session_id: str | None = None) -> list[str]:
    """Return the ids of all runs, read in pages of `limit`."""
    found: list[str] = []
    while True:
        after = found[-1] if found else None
        page = await store.list_runs(after=after, limit=limit, session_id=session_id)
        check(len(page) <= limit, f"a page of {limit} has {len(page)} runs")
        if not page:
            return found
        found += _ids(page)


@case
async def runs_are_listed_oldest_first_as_they_are_read(lab: StoreLab) -> None:
    store = await lab.open()
    same(list(await store.list_runs()), [], "the runs of a new store")
    for run_id in ("c", "a", "d"):
        await hold(store, run_id)
        lab.clock.advance(1)
    await finish(store, "b", completed(0, "answer"))
    runs = await store.list_runs()
    same(_ids(runs), ["c", "a", "d", "b"], "the runs")
    for run in runs:
        same(run, await read(store, run.run_id), "a listed run, as it is read")


@case
async def a_list_is_read_page_by_page(lab: StoreLab) -> None:
    store = await lab.open()
    for number in (5, 3, 1, 0, 2, 4, 6):
        await hold(store, f"run-{number}")
        lab.clock.advance(number % 2)
    whole = _ids(await store.list_runs())
    same(sorted(whole), [f"run-{number}" for number in range(7)], "the runs")
    for limit in (1, 2, 3, 7, 50):
        same(await _pages(store, limit), whole, f"the runs in pages of {limit}")
    same(list(await store.list_runs(after=whole[-1])), [], "the runs behind the last")


@case
async def runs_of_one_millisecond_are_each_listed_once(lab: StoreLab) -> None:
    store = await lab.open()
    ids = ["b", "a", "B", "ä", "z", "10", "9", "a ", "~", "€"]
    for run_id in ids:
        await hold(store, run_id)
    whole = _ids(await store.list_runs())
    same(sorted(whole), sorted(ids), "the runs")
    same(await _pages(store, 3), whole, "the runs in pages of 3")


@case
async def without_a_limit_a_page_has_fifty_runs(lab: StoreLab) -> None:
    store = await lab.open()
    for number in range(53):
        await store.enqueue(f"run-{number}", manifest(), handler=HANDLER)
    same(len(await store.list_runs()), 50, "the runs of a page")
    same(len(await store.list_runs(limit=1_000)), 53, "all runs")


@case
async def a_page_may_begin_behind_a_run_of_another_state(lab: StoreLab) -> None:
    store = await lab.open()
    for run_id, state in (("a", "completed"), ("b", "failed"), ("c", "completed")):
        await finish(store, run_id, state=state)
        lab.clock.advance(1)
    same(_ids(await store.list_runs(state="completed", after="b")), ["c"], "the page behind b")


@case
async def there_is_no_page_behind_an_unknown_run(lab: StoreLab) -> None:
    acme, store = await lab.open(tenant="acme"), await lab.open()
    await hold(store)
    await hold(acme, "theirs")
    for run_id in ("nobody", "theirs"):
        with refused(RunNotFoundError):
            await store.list_runs(after=run_id)


@case
async def runs_are_listed_by_their_state(lab: StoreLab) -> None:
    store = await lab.open()
    wanted: dict[str, list[str]] = {state: [] for state in get_args(RunState)}
    for scene in SCENES:
        if scene != "none":
            await stage(lab, scene, scene)
            wanted[(await read(store, scene)).state].append(scene)
    for state in get_args(RunState):
        runs = await store.list_runs(state=state)
        check(wanted[state], f"there should be a run that is {state}")
        same(sorted(_ids(runs)), sorted(wanted[state]), f"the {state} runs")
        check(all(run.state == state for run in runs), f"every run should be {state}")


@case
async def a_session_lists_its_turns_by_turn_and_revision(lab: StoreLab) -> None:
    store = await lab.open()
    places = [(10, 0), (2, 1), (0, 0), (2, 0), (2, 10), (2, 2), (1, 0)]
    for turn, revision in places:
        await finish(store, f"turn-{turn}-{revision}", session=SessionKey("s", turn, revision))
        lab.clock.advance(1)
    await finish(store, "elsewhere", session=SessionKey("S", 0))
    await finish(store, "alone")
    whole = [f"turn-{turn}-{revision}" for turn, revision in sorted(places)]
    same(_ids(await store.list_runs(session_id="s")), whole, "the turns")
    for limit in (1, 3):
        same(await _pages(store, limit, "s"), whole, f"the turns in pages of {limit}")
    same(list(await store.list_runs(session_id="nobody")), [], "the turns of another session")
    same(list(await store.list_runs(session_id="s", state="failed")), [], "its failed turns")
    same(len(await store.list_runs(session_id="s", state="completed")), 7, "its completed turns")


@case
async def a_list_has_the_answers_only_if_they_are_asked_for(lab: StoreLab) -> None:
    store = await lab.open()
    answer = {"finalText": "Hi", "parts": [1, None]}
    key = SessionKey("s", 0)
    await finish(store, "answered", completed(0, answer), completed(1, "no"), session=key)
    lab.clock.advance(1)
    lease = await hold(store, "open", session=SessionKey("s", 1))
    await store.write(lease, begun(0))
    lab.clock.advance(1)
    await store.write(await hold(store, "later"), completed(1, "no"))
    answers = [run.answer for run in await store.list_runs(with_answer=True)]
    same(answers, [answer, None, None], "the answers of all runs")
    answers = [run.answer for run in await store.list_runs(session_id="s", with_answer=True)]
    same(answers, [answer, None], "the answers of a session")
    same([run.answer for run in await store.list_runs()], [None, None, None], "no answers")


@case
async def listed_turns_name_the_owner_of_their_own_session(lab: StoreLab) -> None:
    store = await lab.open()
    for number, owner in enumerate(("olga", None, "ed")):
        await finish(store, f"turn-{number}", session=SessionKey(f"s{number}", 0, 0, owner))
        lab.clock.advance(1)
    owners = [run.owner_id for run in await store.list_runs()]
    same(owners, ["olga", None, "ed"], "the owners of all turns")
    owners = [run.owner_id for run in await store.list_runs(session_id="s2")]
    same(owners, ["ed"], "the owner in one session")


@case
async def a_session_lists_the_revisions_of_one_turn(lab: StoreLab) -> None:
    store = await lab.open()
    for turn, revision in ((0, 0), (1, 0), (1, 2), (1, 10), (2, 0)):
        await finish(store, f"turn-{turn}-{revision}", session=SessionKey("s", turn, revision))
    await finish(store, "elsewhere", session=SessionKey("t", 1))
    ids = ["turn-1-0", "turn-1-2", "turn-1-10"]
    same(_ids(await store.list_runs(session_id="s", turn_index=1)), ids, "the revisions")
    page = await store.list_runs(session_id="s", turn_index=1, after="turn-1-0", limit=1)
    same(_ids(page), ["turn-1-2"], "a page of the revisions")
    same(list(await store.list_runs(session_id="s", turn_index=3)), [], "those of no turn")
    with refused(UsageError):
        await store.list_runs(turn_index=1)


@case
async def the_ancestors_of_a_turn_are_listed_from_the_nearest_on(lab: StoreLab) -> None:
    store = await lab.open()
    answer: dict[str, object] = {"finalText": "Hi", "parts": None}
    await finish(store, "a", completed(0, answer), session=SessionKey("s", 0))
    await finish(store, "b", session=SessionKey("s", 1))
    await finish(store, "b-again", completed(0, answer), session=SessionKey("s", 1, 1))
    await finish(store, "c", session=SessionKey("s", 2, 0, "olga"))
    await finish(store, "side", session=SessionKey("s", 2, 1, None, "b"))
    lease = await hold(store, "d", session=SessionKey("s", 3, 0, None, "c"))
    same(_ids(await store.list_runs(ancestors_of="d")), ["c", "b-again", "a"], "the ancestors")
    same(_ids(await store.list_runs(ancestors_of="side")), ["b", "a"], "those of a branch")
    same(_ids(await store.list_runs(ancestors_of="d", limit=2)), ["c", "b-again"], "the nearest")
    same(list(await store.list_runs(ancestors_of="d", limit=0)), [], "none")
    runs = await store.list_runs(ancestors_of="d", with_answer=True)
    same([run.answer for run in runs], [None, answer, answer], "their answers")
    for run in await store.list_runs(ancestors_of="d"):
        same(run, await read(store, run.run_id), "an ancestor, as it is read")
    await store.write(lease, ended("completed"))
    await store.delete("b-again")
    same(_ids(await store.list_runs(ancestors_of="d")), ["c"], "the ancestors before a gap")


@case
async def ancestors_are_listed_of_a_known_run_and_by_themselves(lab: StoreLab) -> None:
    acme, store = await lab.open(tenant="acme"), await lab.open()
    await finish(acme, "theirs", session=SessionKey("s", 0))
    await finish(acme, "next", session=SessionKey("s", 1))
    same(_ids(await acme.list_runs(ancestors_of="next")), ["theirs"], "the ancestors")
    for run_id in ("nobody", "next"):
        with refused(RunNotFoundError):
            await store.list_runs(ancestors_of=run_id)
    with refused(UsageError):
        await acme.list_runs(ancestors_of="next", session_id="s")
    with refused(UsageError):
        await acme.list_runs(ancestors_of="next", after="theirs")
