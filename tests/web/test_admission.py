"""Admission: what is too much is refused at the door, and says when to come back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.core.frames import text, upstream_end
from perdure.core.limits import BODIES_BYTES_MAX, STREAMS_MAX, TENANT_TURNS_MAX, TURNS_MAX
from perdure.errors import UsageError
from perdure.store.memory import MemoryStore
from perdure.web.admission import Admission, AdmissionLimits
from tests.turn.stage import Script, until, words
from tests.web.asking import JSON, Answer, Service, serve
from tests.web.conftest import Start
from tests.web.routing import routed


def turns_of(session: str) -> str:
    return f"/v1/sessions/{session}/turns"


async def begun(service: Service, session: str, **options: Any) -> asyncio.Task[Answer]:
    """Submit a turn, and return once it is being worked on."""
    calls = service.script.calls
    reading = asyncio.create_task(service.submit(target=turns_of(session), **options))
    await until(lambda: service.script.calls > calls or reading.done())
    return reading


def is_too_much(answer: Answer, code: str, status: int = 429) -> bool:
    assert answer.headers.get("retry-after", "0").isdigit()
    refused = (answer.status, answer.status >= 400 and answer.error["code"]) == (status, code)
    return refused and int(answer.headers["retry-after"]) >= 1


def test_the_limits_are_those_of_the_documentation() -> None:
    expected = AdmissionLimits(TURNS_MAX, TENANT_TURNS_MAX, STREAMS_MAX, BODIES_BYTES_MAX)
    assert AdmissionLimits() == expected


@pytest.mark.parametrize("name", AdmissionLimits._fields)
def test_a_limit_that_admits_nothing_is_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        Admission(object(), AdmissionLimits(**{name: 0}))


async def test_a_process_begins_no_more_turns_than_it_may(start: Start) -> None:
    halt = asyncio.Event()
    service = await start(
        Script([text("Hello"), halt, upstream_end("stop")]), limits=AdmissionLimits(turns_max=2)
    )
    readings = [await begun(service, session) for session in ("a", "b")]
    refused = await service.submit(target=turns_of("c"))
    assert is_too_much(refused, "too_many_turns")
    assert "2" in refused.error["message"]
    assert await service.store.read_run("chat:c:0") is None
    halt.set()
    assert [(await reading).status for reading in readings] == [201, 201]
    assert (await service.submit(target=turns_of("c"))).status == 201


async def test_many_who_come_at_once_are_counted_before_they_are_written(start: Start) -> None:
    halt = asyncio.Event()
    service = await start(Script([halt, upstream_end("stop")]), limits=AdmissionLimits(turns_max=3))
    readings = [
        asyncio.create_task(service.submit(target=turns_of(f"s{number}"))) for number in range(20)
    ]
    await until(lambda: sum(reading.done() for reading in readings) == 17)
    halt.set()
    answers = await asyncio.gather(*readings)
    assert sum(answer.status == 201 for answer in answers) == 3
    assert sum(is_too_much(answer, "too_many_turns") for answer in answers) == 17
    assert service.script.calls == 3


async def test_a_turn_that_was_begun_is_joined_and_replayed_however_much_there_is(
    start: Start,
) -> None:
    halt = asyncio.Event()
    service = await start(
        Script(words("Done"), [text("Hello"), halt, upstream_end("stop")]),
        limits=AdmissionLimits(turns_max=1),
    )
    await service.submit(target=turns_of("over"))
    live = await begun(service, "live")
    assert is_too_much(await service.submit(target=turns_of("new")), "too_many_turns")
    joined = asyncio.create_task(service.submit(target=turns_of("live")))
    replayed = await service.submit(target=turns_of("over"))
    assert (replayed.status, replayed.kinds[-1]) == (200, "session.run.completed")
    halt.set()
    assert [(await reading).status for reading in (live, joined)] == [201, 200]
    assert service.script.calls == 2


async def test_the_retry_of_a_failed_turn_is_a_turn_that_begins(start: Start) -> None:
    halt = asyncio.Event()
    service = await start(
        Script([ValueError("no")], [halt, upstream_end("stop")]),
        limits=AdmissionLimits(turns_max=1),
    )
    await service.submit(target=turns_of("failed"))
    live = await begun(service, "live")
    again = {"more": {"retry": True}}
    assert is_too_much(await service.submit(target=turns_of("failed"), **again), "too_many_turns")
    assert (await service.submit(target=turns_of("failed"))).status == 200
    halt.set()
    await live
    assert (await service.submit(target=turns_of("failed"), **again)).status == 200


async def test_one_tenant_leaves_room_for_the_others(start: Start) -> None:
    halt = asyncio.Event()
    limits = AdmissionLimits(turns_max=3, tenant_turns_max=2)
    service = await start(Script([halt, upstream_end("stop")]), limits=limits)
    readings = [await begun(service, session, caller="acme/ann") for session in ("a", "b")]
    refused = await service.submit(target=turns_of("c"), caller="acme/bob")
    assert is_too_much(refused, "too_many_turns")
    assert "tenant" in refused.error["message"]
    readings.append(await begun(service, "c", caller="beta/ann"))
    refused = await service.submit(target=turns_of("d"), caller="gamma/ann")
    assert is_too_much(refused, "too_many_turns")
    halt.set()
    for reading in readings:
        assert (await reading).status == 201


async def test_a_process_opens_no_more_streams_than_it_may(start: Start) -> None:
    halt, leaves = asyncio.Event(), asyncio.Event()
    service = await start(
        Script([text("Hello"), halt, upstream_end("stop")]), limits=AdmissionLimits(streams_max=2)
    )
    target = f"{turns_of('a')}/0/stream"
    first = await begun(service, "a")
    second = asyncio.create_task(service.ask("GET", target, leaves=leaves))

    async def is_full() -> bool:
        return bool((await service.ask("HEAD", target)).status == 429)

    await until(is_full)
    assert is_too_much(await service.ask("GET", target), "too_many_readers")
    assert (await service.ask("GET", f"{turns_of('a')}/0")).status == 200
    leaves.set()
    await second
    halt.set()
    assert (await service.ask("GET", target)).status == 200
    assert (await first).status == 201


async def test_bodies_that_do_not_end_take_no_more_memory_than_they_may(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = serve(MemoryStore(), limits=AdmissionLimits(bodies_bytes_max=1_000))
    hold = asyncio.Event()
    sent = [b"x" * 600, b"y" * 600]

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        async def piecewise() -> Any:
            if len(sent) == 1:
                await hold.wait()
            return {"type": "http.request", "body": sent.pop(0), "more_body": bool(sent)}

        await service.app(scope, piecewise, send)

    headers = [("Content-Type", JSON)]
    stuck = asyncio.create_task(
        service._replace(app=slow).ask("POST", turns_of("a"), headers=headers)
    )
    await until(lambda: len(sent) == 1)
    answer = await service.submit("z" * 600, target=turns_of("b"))
    assert is_too_much(answer, "overloaded", 503)
    assert (await service.submit("z" * 100, target=turns_of("b"))).status == 201
    hold.set()
    assert is_too_much(await stuck, "overloaded", 503)
    assert (await service.submit("z" * 900, index=1, target=turns_of("b"))).status == 201
    assert caplog.records == [], "what is refused at the door does not fill the log"


async def test_the_router_has_the_limits_too() -> None:
    halt = asyncio.Event()
    script = Script([text("Hello"), halt, upstream_end("stop")])
    service = routed(script, limits=AdmissionLimits(turns_max=1))
    reading = await begun(service, "a")
    assert is_too_much(await service.submit(target=turns_of("b")), "too_many_turns")
    halt.set()
    assert (await reading).status == 201
    await service.engine.aclose()
