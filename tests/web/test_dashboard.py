"""The dashboard: what it shows to whom, and what may be done from it."""

from __future__ import annotations

import html
import re
from urllib.parse import quote

import pytest
from starlette.requests import Request

from perdure.core.changes import IntendUsage, SettleUsage
from perdure.core.records import RunRecord, SessionKey
from perdure.errors import UsageError
from perdure.testing.samples import HANDLER, begun, completed, finish, hold, manifest
from perdure.web.dashboard import Viewer, dashboard_routes, search
from tests.web.asking import JSON, ask
from tests.web.dashboards import HERE, OWNER, SECRET, Desk, desk, eventful, talking

LOOKER = Viewer(sees_values=True)
CLERK = Viewer(may_act=True)


def ids(page: str) -> list[str]:
    """Return the runs of a list, in order."""
    return [html.unescape(found) for found in re.findall(r"/run\?id=[^>]*><bdi>([^<]*)<", page)]


def next_of(page: str) -> str | None:
    found = re.search(r'rel="next" href="/dashboard([^"]*)"', page)
    return None if found is None else html.unescape(found[1])


async def read(desk: Desk, run_id: str) -> RunRecord:
    run = await desk.store.read_run(run_id)
    assert run is not None
    return run


# The list.


async def test_runs_are_listed_the_newest_first_and_page_by_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "PAGE", 2)
    there = desk()
    for number in range(5):
        await there.store.enqueue(f"run-{number}", manifest(), handler=HANDLER)
        there.clock.advance(number % 2)
    rest: str | None = ""
    pages: list[list[str]] = []
    while rest is not None:
        page = await there.show(rest)
        pages.append(ids(page))
        rest = next_of(page)
    assert pages == [["run-4", "run-3"], ["run-2", "run-1"], ["run-0"]]


async def test_a_search_that_no_index_leads_goes_on_page_by_page_and_misses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "LOOKED", 3)
    there = desk()
    for number in range(11):
        handler = "rare" if number in (0, 4, 9) else HANDLER
        await there.store.enqueue(f"run-{number:02}", manifest(), handler=handler)
        there.clock.advance(number % 4 == 3)
    rest: str | None = "?handler=rare"
    found: list[str] = []
    looks = 0
    while rest is not None:
        page = await there.show(rest)
        found += ids(page)
        rest, looks = next_of(page), looks + 1
    assert found == ["run-09", "run-04", "run-00"]
    assert looks > 2


async def test_runs_are_chosen_by_what_is_asked_for() -> None:
    there = desk()
    await finish(there.store, "broken", state="failed")
    await there.store.enqueue("later", manifest(), handler="other")
    await hold(there.store, "chat:s:0", session=SessionKey("s", 0))
    await hold(there.store.for_tenant("acme"), "chat:s:0", session=SessionKey("s", 0))
    assert ids(await there.show("?state=failed")) == ["broken"]
    assert ids(await there.show("?handler=other&state=&since=")) == ["later"]
    assert ids(await there.show("?tenant=acme")) == ["@acme/chat:s:0"]
    assert ids(await there.show("?session=s&tenant=@")) == ["chat:s:0"]
    assert sorted(ids(await there.show("?session=s"))) == ["@acme/chat:s:0", "chat:s:0"]
    assert len(ids(await there.show("?since=1h"))) == 4
    assert "No run is one of those" in await there.show("?since=2999-01-01")
    for wrong in ("?state=lost", "?since=yesterday", "?tenant=@acme"):
        answer = await there.get(wrong)
        assert answer.status == 400, wrong
        assert "That did not work" in answer.body.decode()


async def test_a_page_behind_a_run_that_is_gone_begins_anew() -> None:
    there = desk()
    await there.store.enqueue("run", manifest(), handler=HANDLER)
    page = await there.show("?after=deleted")
    assert ids(page) == ["run"]
    assert "is gone" in page


async def test_an_empty_store_says_how_to_begin() -> None:
    assert "No runs yet" in await desk().show()


# A run.


async def test_a_run_is_shown_with_all_that_is_known_of_it() -> None:
    there = desk()
    await eventful(there)
    page = await there.show("/run?id=run")
    for told in ("step-0", "step-2", "lost", "ann", "bob", "paid", "persist", "waiting"):
        assert told in page
    assert "attempt 1, lost, 16s" in page
    assert "attempt 2, failed, 1s" in page
    step = await there.show("/step?id=run&index=0")
    assert SECRET in step
    assert "not declared" in step
    for wrong in ("/run?id=nobody", "/run", "/step?id=run&index=7"):
        assert (await there.get(wrong)).status == 404
    assert (await there.get("/step?id=run&index=-1")).status == 400


async def test_a_long_run_is_shown_in_pieces() -> None:
    there = desk()
    await finish(there.store, "long", *(completed(position) for position in range(450)))
    first = await there.show("/run?id=long")
    assert "Steps 1 to 200 of" in first
    assert ">step-199<" in first
    assert ">step-200<" not in first
    last = await there.show("/run?id=long&first=400")
    assert ">step-449<" in last
    assert "Later steps" not in last


async def test_what_nobody_knows_of_a_cost_is_said_to_be_unknown() -> None:
    there = desk()
    lease = await hold(there.store)
    await there.store.write(lease, IntendUsage(0, model="m"), IntendUsage(1, model="m"))
    await there.store.settle_usage(
        lease, SettleUsage(0, tokens_in=1_200, tokens_out=0, cost_nanos=1_500_000, currency="EUR")
    )
    page = await there.show("/run?id=run")
    total = re.sub(r"<[^>]*>", " ", page[page.index("<tfoot>") : page.index("</tfoot>")])
    told = "2 calls at least 1,200 unknown unknown unknown unknown 0.0015 EUR + 1 unknown"
    assert " ".join(total.split()) == told


async def test_a_live_turn_is_asked_for_anew_and_an_ended_run_is_not() -> None:
    there = desk()
    await talking(there, "Hello ", "there")
    await finish(there.store, "done")
    live = await there.show("/run?id=chat:s:0", headers=[("hx-request", "true")])
    assert 'hx-trigger="every 2s"' in live
    assert "<html" not in live
    assert "Hello there" in live
    assert "text ×2" in live
    assert "every 2s" not in await there.show("/run?id=done")


async def test_what_a_run_holds_is_text_and_nothing_else() -> None:
    there = desk()
    hostile = "\"><script>alert('1')</script>"
    await talking(there, hostile)
    await finish(there.store, f"run{hostile}", completed(0, hostile))
    for rest in (
        "",
        "/run?id=chat:s:0",
        f"/run?id={quote('run' + hostile)}",
        f"/step?id={quote('run' + hostile)}&index=0",
        f"/fork?id={quote('run' + hostile)}&from=1",
        f"?handler={quote(hostile)}",
        f"/run?id={quote(hostile)}",
    ):
        answer = await there.get(rest)
        page = answer.body.decode()
        assert "<script>" not in page
        assert "alert(" not in page or "&lt;script&gt;" in page
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"\son\w+=|style=|javascript:", page)


# Who may see what.


async def test_nobody_is_told_anything() -> None:
    there = desk(None)
    await eventful(there)
    for rest in ("", "/run?id=run", "/step?id=run&index=0", "/fork?id=run&from=0"):
        answer = await there.get(rest)
        assert answer.status == 401
        assert b"step-0" not in answer.body
    assert (await there.act("stop", "run")).status == 401


async def test_who_sees_no_values_sees_neither_prompts_nor_answers_nor_texts_of_errors() -> None:
    there = desk(CLERK)
    await eventful(there)
    await talking(there, SECRET)
    pages = ["", "/run?id=run", "/run?id=chat:s:0", "/retry?id=run", "/fork?id=run&from=1"]
    pages += [f"/step?id=run&index={index}" for index in range(3)]
    for rest in pages:
        page = await there.show(rest)
        assert SECRET not in page
        assert manifest().input["question"] not in html.unescape(page)
    assert "step-0" in await there.show("/run?id=run")


async def test_who_is_of_a_tenant_sees_its_runs_only() -> None:
    there = desk(OWNER._replace(tenant="acme"))
    await eventful(there)
    await hold(there.store.for_tenant("acme"), "mine")
    assert ids(await there.show()) == ids(await there.show("?tenant=@")) == ["@acme/mine"]
    assert (await there.get("/run?id=@acme/mine")).status == 200
    for rest in ("/run?id=run", "/step?id=run&index=0", "/stop?id=run", "/fork?id=run&from=0"):
        assert (await there.get(rest)).status == 404
    assert (await there.act("retry", "run")).status == 404
    assert (await read(there, "run")).state == "failed"


async def test_who_may_only_look_is_offered_no_action_and_refused_all() -> None:
    there = desk(LOOKER)
    await eventful(there)
    page = await there.show("/run?id=run")
    assert "read only" in page
    assert "Retry" not in page
    assert "Fork" not in await there.show("/step?id=run&index=0")
    for verb in ("stop", "retry", "fork"):
        assert (await there.get(f"/{verb}?id=run&from=0")).status == 403
        assert (await there.act(verb, "run", **{"from": "0"})).status == 403


async def test_who_asks_is_found_out_by_a_coroutine_function_too() -> None:
    async def known(request: Request) -> Viewer | None:
        return OWNER if request.headers.get("authorization") == "yes" else None

    there = desk(known)
    assert (await there.get(caller="yes")).status == 200
    assert (await there.get(caller="no")).status == 401


# Actions.


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 403),
        ([("sec-fetch-site", "cross-site")], 403),
        ([("sec-fetch-site", "same-site")], 403),
        ([("origin", "http://evil.example"), ("host", "here.example")], 403),
        ([("origin", "null"), ("host", "here.example")], 403),
        ([HERE, ("content-type", "text/plain")], 415),
        ([HERE, ("content-type", "application/x-www-form-urlencoded")], 415),
        ([HERE], 204),
        ([("origin", "https://here.example"), ("host", "here.example")], 204),
    ],
)
async def test_only_a_page_of_the_dashboard_can_act(
    headers: list[tuple[str, str]], status: int
) -> None:
    there = desk()
    await there.store.enqueue("run", manifest(), handler=HANDLER)
    answer = await ask(there.app, "POST", "/dashboard/stop", headers=headers, send={"id": "run"})
    assert answer.status == status
    assert ((await read(there, "run")).stop_requested_at is not None) == (status == 204)
    assert (await there.get("/stop?id=run")).status == 200
    assert (await ask(there.app, "GET", "/dashboard/stop?id=run")).status == 200


async def test_a_failed_run_is_tried_again_as_the_preview_says() -> None:
    there = desk()
    await eventful(there)
    preview = await there.show("/retry?id=run")
    kept, again = preview.split("Done again")
    assert ("step-0" in kept, "step-1" in again, "step-2" in again) == (True, True, True)
    assert (await read(there, "run")).state == "failed"
    answer = await there.act("retry", "run")
    assert (answer.status, answer.headers["hx-redirect"]) == (204, "/dashboard/run?id=run")
    assert (await read(there, "run")).state == "queued"
    assert "only what failed" in await there.show("/retry?id=run")


async def test_a_run_is_forked_as_the_preview_says() -> None:
    there = desk()
    await eventful(there)
    kept, again = (await there.show("/fork?id=run&from=1")).split("Done again")
    assert ("step-0" in kept, "step-1" in again, "step-1" in kept) == (True, True, False)
    answer = await there.act("fork", "run", newId="second", **{"from": "1"})
    assert answer.headers["hx-redirect"] == "/dashboard/run?id=second"
    assert [step.intent for step in await there.store.read_steps("second")] == ["step-0"]
    assert "Forked from" in await there.show("/run?id=second")
    assert (await there.act("fork", "run", newId="third", **{"from": "9"})).status == 400
    assert (await there.act("fork", "run", **{"from": "1"})).status == 400


async def test_a_step_that_goes_on_is_offered_to_be_forked_from_but_not_behind() -> None:
    there = desk()
    lease = await hold(there.store)
    await there.store.write(lease, completed(0), begun(1), begun(2))
    offered = [
        "Fork from here" in await there.show(f"/step?id=run&index={index}") for index in range(3)
    ]
    assert offered == [True, True, False]


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"id": 5}', b"{}", b"x" * 10_000])
async def test_a_body_that_makes_no_sense_is_refused(body: bytes) -> None:
    there = desk()
    headers = [HERE, ("content-type", JSON)]
    answer = await ask(there.app, "POST", "/dashboard/stop", headers=headers, body=body)
    assert answer.status in (400, 413)


async def test_files_of_the_pages_are_served_and_no_others() -> None:
    there = desk()
    page = await there.show()
    files = re.findall(r'(?:src|href)="/dashboard(/static/[^"]*)"', page)
    assert {name.rpartition(".")[2] for name in files} == {"css", "js", "svg"}
    for name in files:
        answer = await there.get(name)
        assert (answer.status, answer.headers["x-content-type-options"]) == (200, "nosniff")
    assert (await there.get("/static/routes.py")).status == 404


def test_a_store_that_cannot_be_searched_is_named() -> None:
    class Bare:
        """Some other store."""

    with pytest.raises(UsageError, match="Bare"):
        dashboard_routes(Bare(), authorize=lambda _: None)  # type: ignore[arg-type]  # no store
