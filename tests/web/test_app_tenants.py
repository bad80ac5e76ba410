"""Two tenants, every endpoint, each form of an id: nobody sees or changes what is not his."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from perdure.core.frames import Frame, text, upstream_end
from perdure.testing.lab import Snapshot, snapshot
from perdure.turn.handout import Turn
from tests.turn.stage import Script
from tests.web.asking import Answer, Service
from tests.web.conftest import Start

SECRET = "the plan of ann at acme"
OWNER = "acme/ann"
STRANGERS = ["beta/ann", "acme/eve", "/ann", "beta/eve", "acme%/ann", "ACME/ann", "acm_/ann"]
SESSION, MISSING = "Plan.1", "Plan.2"

FORMS = {
    "as it is": "{}",
    "escaped": "%50lan.1",
    "twice escaped": "%2550lan.1",
    "in lower case": "plan.1",
    "with a space": "{}%20",
    "with a tab": "{}%09",
    "with a NUL": "{}%00",
    "with a line end": "{}%0D%0A",
    "wild": "Plan%25",
    "wild by one": "Plan__",
    "as a glob": "Plan*",
    "the run's id": "chat:{}:0",
    "the run's id, escaped": "chat%3A{}%3A0",
    "the stored id": "@acme:chat:{}:0",
    "from above": "..%2F{}",
    "from the side": "x%2F..%2F{}",
    "a path": "..%2F..%2F..%2Fetc%2Fpasswd",
    "with a backslash": "..%5C{}",
    "with a tenant": "acme%2F{}",
    "another normal form": "Pla%6E%CC%81.1",
    "full width": "%EF%BC%B0lan.1",
    "overlong": "%C0%AF{}",
    "a quote": "{}'%20OR%20'1'='1",
    "JSON": "%7B%22id%22:%22{}%22%7D",
    "long": "{}" + "x" * 300,
}
ENDPOINTS = [
    ("GET", "/v1/sessions/{}"),
    ("HEAD", "/v1/sessions/{}"),
    ("GET", "/v1/sessions/{}/turns/0"),
    ("GET", "/v1/sessions/{}/turns/0?revision=0"),
    ("GET", "/v1/sessions/{}/turns/0/stream"),
    ("GET", "/v1/sessions/{}/turns/1/stream?envelope=1"),
    ("POST", "/v1/sessions/{}/turns/1/stop"),
    ("GET", "/v1/sessions/{}/turns/0/approvals"),
    ("POST", "/v1/sessions/{}/turns/0/approvals"),
    ("POST", "/v1/sessions/{}/turns"),
    ("DELETE", "/v1/sessions/{}"),
    ("DELETE", "/v1/sessions/{}?stop=1"),
    ("DELETE", "/v1/me?stop=1"),
]
BODIES: list[Mapping[str, Any]] = [
    {"turnIndex": 0, "message": "Mine now"},
    {"turnIndex": 1, "message": "Behind it"},
    {"turnIndex": 0, "message": "Edited", "revision": 1},
    {"turnIndex": 0, "regenerate": True},
]
DECISION = {"event": "approval:loop:1.1", "approved": True}


class Teller(Script):
    """Tells the owner the secret, then keeps her waiting; tells others nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()

    async def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
        if turn.identity.tenant_id == "acme" and turn.identity.user_id == "ann":
            yield text(SECRET)
            if turn.identity.turn_index == 1:
                self.begun.set()
                await asyncio.Event().wait()
        yield upstream_end("stop")


async def with_a_secret(start: Start) -> Service:
    """Return a service on which a turn of the owner is over, and the next one is in flight."""
    teller = Teller()
    service: Service = await start(teller)
    place = f"/v1/sessions/{SESSION}/turns"
    await service.submit(SECRET, target=place, caller=OWNER)
    leaves = asyncio.Event()
    leaves.set()
    await service.submit("Go on", index=1, target=place, caller=OWNER, leaves=leaves)
    await teller.begun.wait()
    return service


async def owned(service: Service) -> list[Snapshot]:
    """Return all that there is of the owner's turns."""
    store = service.store.for_tenant("acme")
    shown = [await snapshot(store, f"chat:{SESSION}:{index}") for index in (0, 1)]
    assert all(one.run is not None for one in shown)
    return shown


async def ask(
    service: Service, session: str, caller: str, *, submits: bool = True
) -> list[tuple[str, Answer]]:
    """Ask every endpoint about a session; without `submits`, those that begin nothing."""
    answers: list[tuple[str, Answer]] = []
    for method, path in ENDPOINTS:
        begins = path.endswith("/turns")
        other = DECISION if (method, path[-9:]) == ("POST", "approvals") else None
        for body in (BODIES if submits else []) if begins else [other]:
            target = path.format(session)
            answer = await service.ask(method, target, send=body, caller=caller)
            answers.append((f"{method} {path} {body or ''}", answer))
    return answers


@pytest.mark.parametrize("form", FORMS)
async def test_no_form_of_an_id_reaches_what_is_not_the_caller_s(start: Start, form: str) -> None:
    service = await with_a_secret(start)
    before = await owned(service)
    for stranger in STRANGERS if form == "as it is" else STRANGERS[:3]:
        for asked, answer in await ask(service, FORMS[form].format(SESSION), stranger):
            assert answer.status < 500, (asked, stranger)
            assert SECRET.encode() not in answer.body, (asked, stranger)
    after = await owned(service)
    assert [one.steps for one in after] == [one.steps for one in before]
    assert [one.details for one in after] == [one.details for one in before]
    assert [one.run and one.run.stop_requested_at for one in after] == [None, None]
    assert [one.run and one.run.state for one in after] == ["completed", "running"]


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_what_is_there_and_not_the_caller_s_looks_as_what_is_not_there(
    start: Start, stranger: str
) -> None:
    service = await with_a_secret(start)
    told: list[list[tuple[str, int, bytes]]] = []
    for session in (SESSION, MISSING):
        answers = await ask(service, session, stranger, submits=False)
        told.append(
            [
                (asked, answer.status, answer.body.replace(session.encode(), b"*"))
                for asked, answer in answers
            ]
        )
    there, missing = told
    assert there == missing
