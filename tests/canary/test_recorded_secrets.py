"""A credential among the answers of a durable task: kept for its replay, and shown by nobody."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from starlette.applications import Starlette

from perdure.agent.preflight import ReadinessPolicy
from perdure.agent.task import run_agent_task
from perdure.core.secret import Secret
from perdure.durable.runner import emit_event
from perdure.store.protocol import RunStore
from perdure.web.dashboard import Viewer, add_dashboard
from tests.agent.test_task_durable import until_it_waits
from tests.canary.planting import canary
from tests.canary.test_agent_events import TASK, Adapter, Provider
from tests.cli.desk import Desk, url_in
from tests.web.asking import ask

SECRET, WORDS = canary("credential_answer"), canary("answer")
RUNS = ("asked", "run")
"""A run whose provider answers, and one that is answered by an event."""


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(url_in(tmp_path, "sqlite"), capsys)


async def fill(store: RunStore) -> None:
    await run_agent_task(TASK, Adapter(), knowledge=Provider(), durable=(store, "asked"))
    answers = {"question_plain": WORDS, "question_secret": Secret(SECRET).recorded()}
    policy = ReadinessPolicy(answers_event="answers")
    work = asyncio.ensure_future(
        run_agent_task(TASK, Adapter(), readiness=policy, durable=(store, "run"))
    )
    await until_it_waits(store)
    await emit_event(store, "run", "answers", answers)
    assert (await work).user_answers == {**answers, "question_secret": Secret(SECRET)}


async def pages(store: RunStore) -> str:
    """Return the pages of the runs, and of each of their steps, for who may see every value."""
    app = Starlette()
    add_dashboard(app, store, authorize=lambda _: Viewer(sees_values=True, may_act=True))
    shown = ""
    for run in RUNS:
        steps = await store.read_steps(run)
        places = [f"/run?id={run}", *(f"/step?id={run}&index={n}" for n in range(len(steps)))]
        for place in places:
            answer = await ask(app, "GET", f"/dashboard{place}")
            assert answer.status == 200
            shown += answer.body.decode()
    return shown


async def kept(store: RunStore) -> str:
    details = [(await store.read_details(run)).events for run in RUNS]
    return f"{[await store.read_steps(run) for run in RUNS]} {details}"


def test_a_credential_that_a_task_was_given_is_on_no_page_and_in_no_line(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    desk.work(fill)
    stored = desk.work(kept)
    assert stored.count(SECRET) == 3  # The step of either run, and the event.
    shown = [desk.work(pages)]
    for run in RUNS:
        shown += [desk.run("show", run, *more).out for more in ((), ("--full",), ("--json",))]
    for run, place in (("dashboard", shown[0]), *zip(RUNS, (shown[2], shown[5]), strict=True)):
        assert WORDS in place, run
        assert "[redacted]" in place, run
    assert not any(SECRET in each for each in (*shown, caplog.text))
