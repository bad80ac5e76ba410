"""Reading a turn's stream from any place: cursors, too many readers, and those who leave."""

from __future__ import annotations

import asyncio

import pytest

from tests.web.asking import (
    STREAM,
    TURN,
    TURNS,
    Answer,
    Service,
    begin,
    halting,
    text_of,
)
from tests.web.conftest import Start

HELLO = "Hello there"


async def watched(start: Start) -> tuple[Service, Answer]:
    """Return a service and a turn as somebody saw it who was there from its first frame on."""
    go_on = asyncio.Event()
    service = await start(halting(go_on))
    reading = await begin(service, target=f"{TURNS}?envelope=1")
    go_on.set()
    return service, await reading


async def test_every_cursor_gives_exactly_the_rest(start: Start) -> None:
    service, whole = await watched(start)
    lines = whole.body.splitlines(keepends=True)
    ids = [line["id"] for line in whole.events]
    assert len(set(ids)) == len(ids) >= 4
    for place, cursor in enumerate(ids[:-1]):
        asked = await service.ask("GET", f"{STREAM}?envelope=1&after={cursor}")
        assert asked.status == 200
        rest = b"".join(lines[place + 1 :])
        assert asked.body == rest.replace(b'"replayed":false', b'"replayed":true')


async def test_a_cursor_may_come_as_last_event_id_which_counts_first(start: Start) -> None:
    service, whole = await watched(start)
    first, second, *_ = whole.events
    header = [("Last-Event-ID", first["id"])]
    asked = await service.ask("GET", f"{STREAM}?envelope=1", headers=header)
    assert asked.events[0]["id"] == second["id"]
    header = [("Last-Event-ID", second["id"])]
    asked = await service.ask("GET", f"{STREAM}?envelope=1&after={first['id']}", headers=header)
    assert second["id"] not in str(asked.events)


async def test_the_cursor_of_the_end_is_answered_by_204(service: Service) -> None:
    end = (await service.submit(target=f"{TURNS}?envelope=1")).events[-1]["id"]
    answer = await service.ask("GET", f"{STREAM}?after={end}")
    assert (answer.status, answer.body) == (204, b"")


@pytest.mark.parametrize(
    "cursor",
    ["x", "1", "0001_0000000001_ffffff", "0001_9999999999_{mark}", "-1", "%00", "é", "a b",
     "0000_0000000001_{mark}", "0002_0000000001_{mark}", "9999_0000000000_{mark}"],
)  # fmt: skip
async def test_a_wrong_cursor_is_refused(service: Service, cursor: str) -> None:
    mark = (await service.submit(target=f"{TURNS}?envelope=1")).events[0]["id"].split("_")[2]
    cursor = cursor.format(mark=mark)
    by_query = await service.ask("GET", f"{STREAM}?after={cursor}")
    by_header = await service.ask("GET", STREAM, headers=[("Last-Event-ID", cursor)])
    for answer in (by_query, by_header):
        assert (answer.status, answer.error["code"]) == (400, "bad_cursor")


async def test_frames_that_were_deleted_are_gone_but_the_turn_is_there(service: Service) -> None:
    first = (await service.submit(target=f"{TURNS}?envelope=1")).events[0]["id"]
    assert await service.store.delete("chat:s:0", frames_only=True)
    answer = await service.ask("GET", f"{STREAM}?after={first}")
    assert (answer.status, answer.error["code"]) == (410, "frames_expired")
    assert answer.error["turn"] == TURN, "where the turn can be read instead"
    assert text_of(await service.ask("GET", STREAM)) == HELLO


async def test_a_turn_with_too_many_readers_asks_the_next_one_to_come_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()
    service = await start(halting(go_on))
    first = await begin(service)
    monkeypatch.setattr("perdure.durable.ring.READERS_MAX", 1)
    for answer in (await service.ask("GET", STREAM), await service.submit()):
        assert (answer.status, answer.error["code"]) == (429, "too_many_readers")
        assert int(answer.headers["retry-after"]) >= 1
    go_on.set()
    assert text_of(await first) == HELLO


async def test_a_reader_who_left_makes_room_at_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, leaves = asyncio.Event(), asyncio.Event()
    service = await start(halting(go_on))
    monkeypatch.setattr("perdure.durable.ring.READERS_MAX", 1)
    first = await begin(service, leaves=leaves)
    leaves.set()
    await first
    go_on.set()
    assert (await service.ask("GET", STREAM)).status == 200


async def test_head_tells_the_headers_of_a_stream_without_waiting_for_it(start: Start) -> None:
    service = await start(halting(asyncio.Event()))
    leaves = asyncio.Event()
    reading = await begin(service, leaves=leaves)
    answer = await service.ask("HEAD", STREAM)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"] == "application/x-ndjson"
    leaves.set()
    await reading
