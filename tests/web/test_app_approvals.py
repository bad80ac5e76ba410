"""Calls of tools that wait for a human: who may see them, and how they are decided."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette

from perdure.agent.tool_loop import ToolLoop
from perdure.agent.tools import Tool
from perdure.store.memory import MemoryStore
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.identity import run_id_of
from perdure.web.app import create_app
from perdure.web.dashboard import add_dashboard
from tests.agent.looping import degrees
from tests.agent.strict_provider import StrictProvider, calls, says
from tests.turn.stage import TURN as IDENTITY
from tests.turn.stage import Script, until
from tests.web.asking import STREAM, TURN, Service, by_header
from tests.web.dashboards import OWNER, Desk

APPROVALS = f"{TURN}/approvals"
EVENT = "approval:loop:1.1"
KEY = "sk-proj-0123456789abcdefghij"
PERSON = OWNER._replace(sees_values=False)


@pytest.fixture
def asked_for() -> dict[str, str]:
    return {"city": "Faro"}


@pytest.fixture
def provider(asked_for: dict[str, str]) -> StrictProvider:
    return StrictProvider(calls(("c1", "degrees", asked_for)), says("It is warm."))


@pytest.fixture
async def service(provider: StrictProvider) -> AsyncIterator[Service]:
    """Return a service whose one turn waits until a human lets it look at a thermometer."""
    tool = Tool(degrees, effect="pure", needs_approval=True)
    store = MemoryStore()
    engine = ChatTurnEngine(store, produce=ToolLoop(provider.backend(), [tool]), recover=False)
    service = Service(create_app(engine, store, authorize=by_header), engine, store, Script())
    await engine.submit(IDENTITY, "Hi")
    await until(lambda: is_asking(service))
    yield service
    await engine.aclose(drain_ms=0)
    await store.close()


async def is_asking(service: Service) -> bool:
    return bool(await asked(service))


async def asked(service: Service) -> list[dict[str, Any]]:
    answer = await service.ask("GET", APPROVALS)
    assert answer.status == 200, answer
    approvals: list[dict[str, Any]] = answer.json["approvals"]
    return approvals


def dashboard(service: Service, viewer: Any = OWNER) -> Desk:
    app = Starlette()
    add_dashboard(app, service.store, authorize=lambda _: viewer)
    return Desk(app, service.store, None)  # type: ignore[arg-type]  # No clock is moved here.


async def test_a_call_that_waits_is_shown_and_goes_on_when_it_is_approved(
    service: Service, provider: StrictProvider
) -> None:
    [request] = await asked(service)
    assert (request["event"], request["call"], request["tool"]) == (EVENT, "c1", "degrees")
    assert (request["arguments"], request["timeoutMs"]) == ({"city": "Faro"}, None)
    decision = {"event": EVENT, "approved": True, "arguments": {"city": "Lagos"}}
    decided = await service.ask("POST", APPROVALS, send=decision)
    told = {"approved": True, "arguments": {"city": "Lagos"}, "by": "ann"}
    assert (decided.status, decided.json) == (200, {"accepted": True, "decision": told})
    await service.ask("GET", STREAM)
    assert (await service.ask("GET", TURN)).json["text"] == "It is warm."
    assert await asked(service) == []
    assert '"city":"Lagos"' in provider.prompts[-1]["messages"][-1]["content"]


async def test_the_first_answer_counts_and_is_told_to_the_second(service: Service) -> None:
    denied = {"event": EVENT, "approved": False, "reason": "too warm"}
    assert (await service.ask("POST", APPROVALS, send=denied)).json["accepted"] is True
    late = await service.ask("POST", APPROVALS, send={"event": EVENT, "approved": True})
    counts = {"approved": False, "reason": "too warm", "by": "ann"}
    assert (late.status, late.json) == (200, {"accepted": False, "decision": counts})


async def test_nobody_else_sees_a_call_or_decides_it(service: Service) -> None:
    decision = {"event": EVENT, "approved": True}
    for stranger in ("/eve", "acme/ann"):
        for method, send in (("GET", None), ("POST", decision)):
            answer = await service.ask(method, APPROVALS, send=send, caller=stranger)
            assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert (await service.ask("GET", APPROVALS, caller=None)).status == 401
    assert len(await asked(service)) == 1


@pytest.mark.parametrize("asked_for", [{"city": f"Faro {KEY}"}])
async def test_a_credential_in_a_call_is_shown_to_nobody_and_the_tool_gets_it(
    service: Service, provider: StrictProvider
) -> None:
    [request] = await asked(service)
    assert request["arguments"] == {"city": "Faro [redacted]"}
    desk = dashboard(service)
    assert KEY not in (await desk.show(f"/run?id={run_id_of(IDENTITY)}"))
    decision = {"event": EVENT, "approved": True, "arguments": request["arguments"]}
    decided = await service.ask("POST", APPROVALS, send=decision)
    assert decided.json["accepted"] is True
    assert KEY not in str(decided.json)
    stream = (await service.ask("GET", STREAM)).body.decode()
    [frame] = [line for line in stream.splitlines() if "tool_approval_request" in line]
    assert KEY not in frame
    assert KEY in provider.prompts[-1]["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"approved": True}, "`event` is missing"),
        ({"event": EVENT}, "`approved` is missing"),
        ({"event": EVENT, "approved": "yes"}, "`approved` must be true or false"),
        ({"event": EVENT, "approved": True, "arguments": []}, "`arguments` must be an object"),
        ({"event": EVENT, "approved": False, "arguments": {}}, "only with"),
        ({"event": EVENT, "approved": True, "reason": ""}, "`reason` must be a text"),
        ({"event": EVENT, "approved": True, "by": "the boss"}, "no field 'by'"),
        ([EVENT], "must be an object"),
    ],
)
async def test_a_wrong_decision_is_refused_and_decides_nothing(
    service: Service, wrong: object, told: str
) -> None:
    answer = await service.ask("POST", APPROVALS, send=wrong)
    assert answer.status == 400
    assert told in answer.error["message"]
    assert len(await asked(service)) == 1


async def test_a_client_cannot_answer_what_nobody_asked(service: Service) -> None:
    answer = await service.ask("POST", APPROVALS, send={"event": "paid", "approved": True})
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert await service.store.load_event(run_id_of(IDENTITY), "paid") is None


# On the dashboard.


async def test_a_call_is_decided_on_the_dashboard(service: Service) -> None:
    there = dashboard(service)
    page = await there.show("/run?id=chat:s:0")
    assert "Waits for a human" in page
    assert "Faro" in page
    preview = await there.show(f"/decide?id=chat:s:0&event={EVENT}")
    assert "May <code>degrees</code> be called?" in preview
    done = await there.act("decide", "chat:s:0", event=EVENT, answer="deny", reason="no")
    assert done.status == 204
    event = await service.store.load_event("chat:s:0", EVENT)
    assert event is not None
    assert event.payload == {"approved": False, "reason": "no"}
    assert "Waits for a human" not in await there.show("/run?id=chat:s:0")
    assert "Nothing waits" in await there.show(f"/decide?id=chat:s:0&event={EVENT}")


async def test_who_may_not_act_is_offered_no_decision_and_who_sees_no_values_no_arguments(
    service: Service,
) -> None:
    page = await dashboard(service, PERSON._replace(may_act=False)).show("/run?id=chat:s:0")
    assert "Waits for a human" in page
    assert "Decide" not in page
    assert "Faro" not in page
    looker = dashboard(service, OWNER._replace(may_act=False))
    assert (await looker.get(f"/decide?id=chat:s:0&event={EVENT}")).status == 403
    for viewer, body, status in (
        (OWNER._replace(may_act=False), {"event": EVENT, "answer": "approve"}, 403),
        (OWNER._replace(tenant="acme"), {"event": EVENT, "answer": "approve"}, 404),
        (OWNER, {"event": EVENT, "answer": "perhaps"}, 400),
        (OWNER, {"event": "paid", "answer": "approve"}, 404),
    ):
        there = dashboard(service, viewer)
        assert (await there.act("decide", "chat:s:0", **body)).status == status
    assert len(await asked(service)) == 1
