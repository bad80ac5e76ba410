"""What servers do at SIGTERM with a live stream: the figures of the guide for servers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from tests.servers.running import PATIENCE_S, ROOT, Server, listening, running

TURNS = "/v1/sessions/s/turns"
BODY = {"turnIndex": 0, "message": "Tell me a long story"}
LIVE = Path(__file__).parent / "live.py"


# Long enough for a busy machine; the answer would take three times as long.
CUT_S, END_S = 5, 10


class Case(NamedTuple):
    """A command, how it may end, and whether it gives its turn back before."""

    command: Sequence[str]
    codes: tuple[int, ...] = (0,)
    gives_back: bool = True


GUNICORN = ["gunicorn", "live:service", "--bind", "fd://{fd}", "--worker-class"]
HYPERCORN = ["hypercorn", "live:service", "--bind", "fd://{fd}"]
UVICORN = ["uvicorn", "live:service", "--fd", "{fd}"]
OWN = ["uvicorn", "live:own", "--fd", "{fd}"]

CASES = {
    "uvicorn": Case(UVICORN, codes=(-15,)),
    "uvicorn, with a time-out of its own": Case(
        [*UVICORN, "--timeout-graceful-shutdown", "2"], codes=(-15,)
    ),
    "uvicorn, 2 workers": Case([*UVICORN, "--workers", "2"]),
    "gunicorn, uvicorn's worker": Case([*GUNICORN, "uvicorn_worker.UvicornWorker"]),
    "gunicorn, asgi worker": Case([*GUNICORN, "asgi", "--workers", "2"]),
    "hypercorn, in one process": Case([*HYPERCORN, "--workers", "0"]),
    "hypercorn": Case([*HYPERCORN, "--graceful-timeout", "1"]),
    "hypercorn, 2 workers": Case([*HYPERCORN, "--workers", "2"], gives_back=False),
    "granian": Case(["granian", "live:service", "--interface", "asgi", "--port", "{port}"]),
    "an endpoint of one's own": Case(OWN, codes=(-15,)),
}


@contextmanager
def serving(
    command: Sequence[str], folder: Path, **environment: str
) -> Iterator[tuple[Server, httpx2.Client]]:
    shutil.copy(LIVE, folder)
    with listening() as listener:
        held: socket.socket = listener
        if "{port}" in command:
            held = reserved(listener)
        with (
            held,
            running(command, held, folder, environment=environment) as server,
            httpx2.Client(base_url=server.origin, timeout=PATIENCE_S) as client,
        ):
            yield server, client


def reserved(listener: socket.socket) -> socket.socket:
    """Return a socket that keeps the port for a server that has to listen by itself."""
    address = listener.getsockname()
    listener.close()
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    keeper.bind(address)
    return keeper


def lines_of(response: httpx2.Response) -> Iterator[Any]:
    """Yield the lines of an answer that have a cursor; raises if it is cut."""
    rest = b""
    for piece in response.iter_raw():
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line for line in map(json.loads, whole) if line["id"])


@contextmanager
def streaming(client: httpx2.Client, method: str, url: str, **options: Any) -> Iterator[Any]:
    """Open a stream, from a server that may not listen yet."""
    response = answered(client, client.build_request(method, url, **options))
    try:
        assert response.status_code in (200, 201), response.read()
        yield lines_of(response)
    finally:
        response.close()


def answered(client: httpx2.Client, request: httpx2.Request) -> httpx2.Response:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return client.send(request, stream=True)
        except httpx2.ConnectError:
            assert time.monotonic() < deadline


def submitting(client: httpx2.Client) -> Any:
    return streaming(client, "POST", f"{TURNS}?envelope=1", json=BODY)


def leased(folder: Path) -> bool:
    """Return whether the turn is unfinished, and still has a holder."""
    connection = sqlite3.connect(folder / "chat.db")
    [(status, holder)] = connection.execute("SELECT status, lease_holder_id FROM durable_runs")
    connection.close()
    assert status == "running"
    return holder is not None


@pytest.mark.parametrize("name", CASES)
def test_a_stream_is_cut_at_sigterm_and_the_next_process_goes_on(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    with serving(case.command, tmp_path) as (server, client), submitting(client) as lines:
        seen = [next(lines) for _ in range(5)]
        server.process.terminate()
        begun = time.monotonic()
        with pytest.raises(httpx2.RemoteProtocolError):
            seen += lines
        cut_s = time.monotonic() - begun
        code = server.process.wait(PATIENCE_S)
        end_s = time.monotonic() - begun
    assert code in case.codes
    assert cut_s < CUT_S
    assert end_s < END_S
    assert leased(tmp_path) == (not case.gives_back)
    with serving(UVICORN, tmp_path) as (_, client):
        url = f"{TURNS}/0/stream?envelope=1&after={seen[-1]['id']}"
        with streaming(client, "GET", url) as lines:
            rest = [next(lines) for _ in range(3)]
    assert seen[-1]["id"] < rest[0]["id"] < rest[-1]["id"]


def changing(path: Path, line: Any) -> Any:
    """Change a file for every line: the watcher may not have looked at it before the first one."""
    changed = path.stat().st_mtime + 1
    os.utime(path, (changed, changed))
    return line


def test_a_reload_cuts_streams_and_the_new_code_goes_on(tmp_path: Path) -> None:
    command = [*UVICORN, "--reload", "--reload-dir", "."]
    with serving(command, tmp_path) as (_, client):
        with submitting(client) as lines:
            seen = [next(lines)]
            with pytest.raises(httpx2.RemoteProtocolError):
                seen += map(partial(changing, tmp_path / "live.py"), lines)
        assert joined(client, seen[-1]["id"])["id"] > seen[-1]["id"]


def joined(client: httpx2.Client, after: str) -> Any:
    """Return the next line, from a server that may be about to reload once more."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            url = f"{TURNS}/0/stream?envelope=1&after={after}"
            with streaming(client, "GET", url) as lines:
                return next(lines)
        except httpx2.RemoteProtocolError:
            assert time.monotonic() < deadline


def test_the_trap_is_there_without_a_lifespan_that_hears_the_signal(tmp_path: Path) -> None:
    with (
        serving(OWN, tmp_path, BARE="1") as (server, client),
        submitting(client) as lines,
    ):
        next(lines)
        server.process.terminate()
        # Ten times as long as the drain would have been.
        for _ in range(150):
            next(lines)
        assert server.process.poll() is None


def test_a_time_out_of_the_server_ends_the_trap_and_the_next_process_goes_on(
    tmp_path: Path,
) -> None:
    command = [*OWN, "--timeout-graceful-shutdown", "1"]
    with serving(command, tmp_path, BARE="1") as (server, client), submitting(client) as lines:
        seen = [next(lines) for _ in range(5)]
        server.process.terminate()
        with pytest.raises(httpx2.RemoteProtocolError):
            seen += lines
        assert server.process.wait(PATIENCE_S) == -15
    assert leased(tmp_path)
    with serving(UVICORN, tmp_path) as (_, client):
        assert joined(client, seen[-1]["id"])["id"] > seen[-1]["id"]


def test_a_server_that_dies_of_the_signal_loses_no_turn(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "wsgi" / "flask_app.py", tmp_path)
    shutil.copy(LIVE.with_name("waiting.py"), tmp_path)
    command = ["waiting", "{fd}"]
    headers, url = {"x-user": "ada"}, "/chats/garden/turns/0"
    with serving(command, tmp_path) as (server, client):
        with streaming(client, "POST", url, json=BODY, headers=headers) as lines:
            seen = [next(lines) for _ in range(3)]
            server.process.terminate()
            with pytest.raises(httpx2.TransportError):
                seen += lines
        assert server.process.wait(PATIENCE_S) == -15
    with serving(command, tmp_path) as (_, client):
        after = {"after": seen[-1]["id"]}
        with streaming(client, "GET", url, params=after, headers=headers) as lines:
            assert next(lines)["id"] > seen[-1]["id"]
