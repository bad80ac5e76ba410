"""The examples for Flask and Django, each under a real server that is told to stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.servers.running import PATIENCE_S, ROOT, Server, listening, running

EXAMPLES = ROOT / "examples" / "wsgi"
TURN = "/chats/garden/turns/0"
STORY = {"message": "Tell me a long story"}
APPS = ["flask_app", "django_app"]


@contextmanager
def serving(name: str, folder: Path, *options: str) -> Iterator[tuple[Server, httpx2.Client]]:
    shutil.copy(EXAMPLES / f"{name}.py", folder)
    command = ["gunicorn", "--bind", "fd://{fd}", "--config", f"python:{name}", f"{name}:app"]
    headers = {"x-user": "ada"}
    with (
        listening() as listener,
        running([*command, *options], listener, folder) as server,
        httpx2.Client(base_url=server.origin, headers=headers, timeout=PATIENCE_S) as client,
    ):
        yield server, client


def lines_of(response: httpx2.Response) -> Iterator[Any]:
    """Yield the events of an answer with their cursors; raises if it is cut."""
    rest = b""
    for piece in response.iter_raw():
        *whole, rest = (rest + piece).split(b"\n")
        yield from map(json.loads, whole)
    assert rest == b""


def ask(client: httpx2.Client, count: int) -> list[Any]:
    """Submit, read some lines, and hang up."""
    with client.stream("POST", TURN, json=STORY) as response:
        assert response.status_code == 201
        lines = lines_of(response)
        return [next(lines) for _ in range(count)]


def read(client: httpx2.Client, **query: str) -> list[Any]:
    with client.stream("GET", TURN, params=query) as response:
        assert response.status_code == 200
        return [line for line in lines_of(response) if line["chunk"]]


def words_of(lines: list[Any]) -> str:
    events = [line["chunk"] for line in lines]
    assert all(event["type"] != "session.run.restarted" for event in events)
    return "".join(event["data"].get("delta", "") for event in events)


@pytest.mark.parametrize("name", APPS)
def test_a_turn_goes_on_without_its_reader_and_is_rejoined_and_stopped(
    name: str, tmp_path: Path
) -> None:
    with serving(name, tmp_path) as (_, client):
        seen = ask(client, 5)
        with client.stream("GET", TURN, params={"after": seen[-1]["id"]}) as response:
            lines = lines_of(response)
            seen += [next(lines) for _ in range(5)]
            assert client.post(f"{TURN}/stop").json()["state"] in ("running", "stopped")
            seen += lines
        assert seen[-1]["chunk"]["type"] == "session.run.stopped"
        assert words_of(seen) == words_of(read(client))
        # Who it is, and what there is, is said with a status.
        assert client.get(TURN, headers={"x-user": "bob"}).status_code == 404
        assert client.get("/chats/garden/turns/7").status_code == 404
        assert client.get(TURN, params={"after": "nonsense"}).status_code == 400
        assert client.post(TURN, json={"message": "Other"}).status_code == 409
        # So is what is wrong with a body, and with whoever says not who it is.
        for body in (b"no JSON", b"[]", b"{}", b'{"message": 5}'):
            assert client.post("/chats/garden/turns/1", content=body).status_code == 400
        anonymous = httpx2.post(str(client.base_url) + TURN, json={"message": "Hi"})
        assert anonymous.status_code == 400


@pytest.mark.parametrize("name", APPS)
@pytest.mark.parametrize("options", [(), ("--preload", "--workers", "2")], ids=["one", "preload"])
def test_a_server_that_is_told_to_stop_cuts_streams_and_the_next_one_goes_on(
    name: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    with serving(name, tmp_path, *options) as (server, client):
        with client.stream("POST", TURN, json=STORY) as response:
            lines = lines_of(response)
            seen = [next(lines) for _ in range(5)]
            server.process.terminate()
            with pytest.raises(httpx2.RemoteProtocolError):
                seen += lines
        assert server.process.wait(PATIENCE_S) == 0
    with serving(name, tmp_path, *options) as (_, client):
        client.post(f"{TURN}/stop")
        rest = read(client, after=seen[-1]["id"])
        assert rest[-1]["chunk"]["type"] in ("session.run.stopped", "session.run.completed")
        assert rest[0]["id"] > seen[-1]["id"]
