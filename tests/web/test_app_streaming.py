"""Streams on real sockets: readers leave, come back, stall; servers are told to stop."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest

from perdure.core.effects import monotonic_ms
from perdure.core.frames import text, upstream_end
from tests.cli.commands import Serving, serving
from tests.turn.stage import Script, until, words
from tests.web.asking import PATIENCE_S, TURNS, Service
from tests.web.conftest import Start
from tests.web.listening import Lines, Listening, listening, text_in

PARTS = ["One", " two", " three", " four"]
WHOLE = "".join(PARTS)
BODY = {"turnIndex": 0, "message": "Hi"}


def gated(*parts: str) -> tuple[Script, list[asyncio.Event]]:
    """Return a script that waits before each of its parts, and the gates to open."""
    gates = [asyncio.Event() for _ in parts]
    items: list[Any] = []
    for gate, part in zip(gates, parts, strict=True):
        items += [gate, text(part)]
    return Script([*items, upstream_end("stop")]), gates


async def state_of(served: Listening) -> Any:
    return (await served.client.get(f"{TURNS}/0")).json()


def is_over(served: Listening) -> Any:
    async def ask() -> bool:
        return (await state_of(served)).get("state") in ("completed", "stopped", "failed")

    return ask


# Leaving and coming back.


@pytest.mark.parametrize("count", [0, 1, 2, 4])
async def test_a_turn_goes_on_when_its_reader_hangs_up(start: Start, count: int) -> None:
    script, gates = gated(*PARTS)
    async with listening(await start(script)) as served:
        async with served.submit() as reader:
            for gate in gates[: max(0, count - 1)]:
                gate.set()
            await reader.take(count)
        for gate in gates:
            gate.set()
        await until(is_over(served))
        turn = await state_of(served)
        assert (turn["state"], turn["text"], turn["attempt"]) == ("completed", WHOLE, 1)
    assert script.calls == 1


async def every_line(served: Listening, gates: list[asyncio.Event], **options: Any) -> list[bytes]:
    """Submit a turn and return its lines as seen from its first frame on."""
    async with served.submit(**options) as reader:
        first = await reader.next()
        for gate in gates:
            gate.set()
        return [first, *await reader.rest()]


async def test_every_frame_is_a_place_to_come_back_to_with_last_event_id(start: Start) -> None:
    script, gates = gated(*PARTS)
    accept = {"accept": "text/event-stream"}
    async with listening(await start(script)) as served:
        lines = await every_line(served, gates, target=TURNS, headers=accept)
        body = b"".join(lines).replace(b'"replayed":false', b'"replayed":true')
        events = body.split(b"\n\n")[:-1]
        assert len(events) == len(PARTS) + 2
        for place, event in enumerate(events):
            cursor, data = event.split(b"\n")
            assert data.startswith(b"data: {")
            headers = {**accept, "last-event-id": cursor.removeprefix(b"id: ").decode()}
            response = await served.client.get(f"{TURNS}/0/stream", headers=headers)
            if place == len(events) - 1:
                assert (response.status_code, response.content) == (204, b"")
            else:
                assert response.content == b"".join(e + b"\n\n" for e in events[place + 1 :])


async def test_readers_from_every_frame_of_a_live_turn_see_the_same_rest(start: Start) -> None:
    script, gates = gated(*PARTS)
    async with listening(await start(script)) as served, served.submit() as first:
        for gate in gates[:2]:
            gate.set()
        seen = await first.take(3)
        cursors = [json.loads(line)["id"] for line in seen]

        async def rejoin(cursor: str) -> list[bytes]:
            async with served.stream(f"envelope=1&after={cursor}") as reader:
                lines: list[bytes] = await reader.rest()
                return lines

        rejoined = [asyncio.create_task(rejoin(cursor)) for cursor in cursors]
        gates[2].set()
        seen.append(await first.next())
        gates[3].set()
        seen += await first.rest()
        for place, rest in enumerate(await asyncio.gather(*rejoined)):
            assert rest == seen[place + 1 :]
    assert text_in(seen) == WHOLE


async def test_the_reference_dialect_is_the_reference_line_by_line(start: Start) -> None:
    script, gates = gated("Hel", "lo\u2028")
    async with listening(await start(script)) as served:
        lines = await every_line(served, gates, target=f"{TURNS}?wire=reference")
    assert b"".join(lines).decode() == (
        '{"type":"session.run.started","data":{"sessionId":"s","tenantId":"","turnIndex":0}}\n'
        '{"type":"message.part.updated","data":{"delta":"Hel","part":{"id":"p1","type":"text"}}}\n'
        '{"type":"message.part.updated",'
        '"data":{"delta":"lo\\u2028","part":{"id":"p1","type":"text"}}}\n'
        '{"type":"session.run.completed","data":{"sessionId":"s","replayed":false}}\n'
    )


async def test_ten_submits_at_once_are_one_turn(start: Start) -> None:
    script, gates = gated(*PARTS)
    async with listening(await start(script)) as served:

        async def submit() -> tuple[int, str]:
            async with served.submit() as reader:
                return reader.response.status_code, text_in(await reader.rest())

        submitted = [asyncio.create_task(submit()) for _ in range(10)]
        for gate in gates:
            gate.set()
        answers = await asyncio.gather(*submitted)
    assert sorted(status for status, _ in answers) == [200] * 9 + [201]
    assert {told for _, told in answers} == {WHOLE}
    assert script.calls == 1


# Silence.


async def test_a_silent_stream_has_heartbeats_where_its_wire_has_them(start: Start) -> None:
    script, [gate] = gated("Hello")
    service = await start(script, heartbeat_ms=20)
    async with listening(service) as served, served.submit() as envelope:
        await envelope.next()
        assert await envelope.take(2) == [b'{"id":null,"chunk":null}\n'] * 2
        sse = {"accept": "text/event-stream"}
        async with served.stream("", headers=sse) as reader:
            await reader.take(3)
            assert await reader.take(4) == [b": hb\n", b"\n"] * 2
        async with served.stream("") as plain:
            await plain.next()
            await envelope.take(2)
            gate.set()
            assert b"Hello" in (await plain.rest())[0]


async def test_stop_is_heard_at_once_by_whoever_reads(start: Start) -> None:
    script, gates = gated("Hello", "never")
    gates[0].set()
    async with listening(await start(script)) as served, served.submit() as reader:
        await reader.take(2)
        begun_ms = monotonic_ms()
        stopped = (await served.client.post(f"{TURNS}/0/stop")).json()
        assert b"session.run.stopped" in (await reader.rest())[-1]
        assert monotonic_ms() - begun_ms < 1_000
    assert (stopped["state"], stopped["text"]) == ("stopped", "Hello")
    assert script.closed == 1


# Clients who take nothing.


async def stall(served: Listening) -> socket.socket:
    """Submit a turn over a connection of which nothing is ever read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", served.port))
    body = json.dumps(BODY).encode()
    head = (
        f"POST {TURNS} HTTP/1.1\r\nHost: x\r\nAuthorization: /ann\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    await asyncio.get_running_loop().sock_sendall(connection, head.encode() + body)
    return connection


def flood() -> Script:
    """Return a script that says more than the buffers of a connection hold."""
    return Script(words(*["x" * 100_000] * 60))


async def test_a_client_that_takes_nothing_is_cut_and_its_turn_goes_on(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    service = await start(flood(), write_stall_ms=100)
    async with listening(service) as served:
        with await stall(served) as connection:
            await until(lambda: "a stream was cut" in caplog.text)
            await until(is_over(served))
            received = await asyncio.to_thread(drain, connection)
        assert len((await state_of(served))["text"]) == 6_000_000
    assert not received.endswith(b"0\r\n\r\n"), "half an answer ended like a whole one"


def drain(connection: socket.socket) -> bytes:
    connection.settimeout(PATIENCE_S)
    pieces: list[bytes] = []
    try:
        while piece := connection.recv(65_536):
            pieces.append(piece)
    except ConnectionError:
        pass
    return b"".join(pieces)


async def test_a_client_that_takes_nothing_does_not_hold_up_the_end(start: Start) -> None:
    service = await start(flood(), drain_ms=0)
    async with listening(service) as served:
        with await stall(served):
            await until(is_over(served))
            begun_ms = monotonic_ms()
            served.signal()
            await asyncio.wait_for(served.ended, PATIENCE_S)
            assert monotonic_ms() - begun_ms < 2_500


# The end of the server.


async def test_a_stream_is_cut_and_never_ended_when_the_server_stops(start: Start) -> None:
    script, gates = gated("Hello", "never")
    gates[0].set()
    service: Service = await start(script, drain_ms=0)
    async with listening(service) as served, served.submit() as reader:
        await reader.take(2)
        served.signal()
        with pytest.raises(httpx2.RemoteProtocolError, match="incomplete"):
            await reader.rest()
        await asyncio.wait_for(served.ended, PATIENCE_S)
        [run] = await service.store.list_runs()
        assert (run.state, run.lease_holder_id) == ("running", None), "the turn was not given back"


async def test_a_turn_may_finish_while_the_server_drains(start: Start) -> None:
    script, gates = gated("Hello", " there")
    gates[0].set()
    service: Service = await start(script, drain_ms=10_000)
    async with listening(service) as served, served.submit() as reader:
        await reader.take(2)
        served.signal()
        with pytest.raises(httpx2.RemoteProtocolError):
            await reader.rest()
        gates[1].set()
        await asyncio.wait_for(served.ended, PATIENCE_S)
        [run] = await service.store.list_runs()
        assert run.state == "completed"


async def test_a_second_signal_ends_the_drain(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, gates = gated("Hello", "never")
    gates[0].set()
    service: Service = await start(script, drain_ms=60_000)
    drains, aclose = asyncio.Event(), service.engine.aclose

    async def announced(**options: int) -> None:
        drains.set()
        await aclose(**options)

    monkeypatch.setattr(service.engine, "aclose", announced)
    async with listening(service) as served:
        async with served.submit() as reader:
            await reader.take(2)
            served.signal()
            await asyncio.wait_for(drains.wait(), PATIENCE_S)
        served.signal()
        await asyncio.wait_for(served.ended, PATIENCE_S)
        [run] = await service.store.list_runs()
        assert (run.state, run.lease_holder_id) == ("running", None)


def process(database: Path, *, drain_ms: int) -> Any:
    options = ["--store", f"sqlite:{database}", "--durability", "normal", "--lease-ms", "2000"]
    return serving(*options, "--drain-ms", str(drain_ms), "--token-delay-ms", "8")


async def read_some(service: Serving, count: int) -> list[bytes]:
    """Submit a turn to a process, and hang up after some lines."""
    body = {"turnIndex": 0, "message": "code"}
    url = f"{service.origin}{TURNS}?envelope=1"
    async with (
        httpx2.AsyncClient(timeout=PATIENCE_S) as client,
        client.stream("POST", url, json=body) as response,
    ):
        return await Lines(response).take(count)


async def read_rest(service: Serving, after: str) -> list[bytes]:
    url = f"{service.origin}{TURNS}/0/stream?envelope=1&after={after}"
    async with (
        httpx2.AsyncClient(timeout=PATIENCE_S) as client,
        client.stream("GET", url) as response,
    ):
        return await Lines(response).rest()


async def final_text(service: Serving) -> str:
    async with httpx2.AsyncClient() as client:
        turn = (await client.get(f"{service.origin}{TURNS}/0")).json()
    assert turn["state"] == "completed"
    return str(turn["text"])


def cursor_of(line: bytes) -> str:
    return str(json.loads(line)["id"])


async def test_a_turn_is_followed_from_another_process_on_the_same_file(tmp_path: Path) -> None:
    database = tmp_path / "turns.db"
    with process(database, drain_ms=0) as owner, process(database, drain_ms=0) as other:
        begun = await read_some(owner, 10)
        places = [0, 4, 9]
        rests = await asyncio.gather(*(read_rest(other, cursor_of(begun[at])) for at in places))
        for place, rest in zip(places, rests, strict=True):
            assert text_in(begun[: place + 1] + rest) == await final_text(owner)
        assert rests[0][9:] == rests[2]


async def test_a_server_that_is_told_to_stop_gives_its_turn_to_another_one(tmp_path: Path) -> None:
    database = tmp_path / "turns.db"
    with process(database, drain_ms=300) as first:
        begun = await read_some(first, 10)
        code, seconds = await asyncio.to_thread(first.end, signal.SIGTERM)
        assert code == 0
        assert seconds < 0.3 + 2
    with process(database, drain_ms=0) as second:
        rest = await read_rest(second, cursor_of(begun[-1]))
        assert text_in(begun + rest) == await final_text(second)
        seqs = [int(cursor_of(line).split("_")[1]) for line in begun + rest]
        assert seqs == sorted(set(seqs)), "a frame came twice, or out of order"


async def test_a_live_stream_does_not_hold_up_the_end_and_a_second_signal_ends_at_once(
    tmp_path: Path,
) -> None:
    with process(tmp_path / "turns.db", drain_ms=60_000) as service:
        url = f"{service.origin}{TURNS}?envelope=1"
        body = {"turnIndex": 0, "message": "Tell me a long story"}
        async with (
            httpx2.AsyncClient(timeout=PATIENCE_S) as client,
            client.stream("POST", url, json=body) as response,
        ):
            lines = Lines(response)
            await lines.take(5)
            service.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx2.RemoteProtocolError):
                await lines.rest()
        # The stream is cut, so the server drains now, for as long as the story may last.
        code, seconds = await asyncio.to_thread(service.end, signal.SIGTERM)
        assert code == 0
        assert seconds < 2.5
