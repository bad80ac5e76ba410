"""The client and the endpoint on the pages: they do what they are there for, killed or not."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from perdure import RunStore, open_store
from tests.docs.pages import ROOT, blocks_of

SERVE = "from perdure.cli.main import main; main()"
TURN = "chat:kitchen:0"


def on_the_wires_page(piece: str) -> str:
    blocks = blocks_of(ROOT / "docs" / "reference" / "wire.md")
    return next(block.text for block in blocks if piece in block.text)


def whole_client() -> str:
    return on_the_wires_page("def answer(")


def in_python(session: str) -> list[str]:
    """Return a command that asks in a session, and prints the answer."""
    code = f"{whole_client()}\nprint(answer({session!r}, 0, 'A table'))"
    return [sys.executable, "-X", "utf8", "-c", code]


def in_javascript(session: str) -> list[str]:
    code = on_the_wires_page("function follow(")
    code += f"""
let text = "";
await follow("{session}", 0, "A table", (event) => {{ text = textOf(text, event); }});
console.log(text);
"""
    return ["node", "--input-type=module", "--eval", code]


async def serve(folder: Path, port: int = 0) -> tuple[Process, str]:
    """Start a service; return it with its address once it has said that."""
    options = ["--backend", "scripted", "--token-delay-ms", "5", "--lease-ms", "1000"]
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVE, "serve", "--port", str(port), *options),
        cwd=folder,
        stdout=PIPE,
    )
    assert server.stdout is not None
    while line := await server.stdout.readline():
        if match := re.match(rb"address +(http://\S+?)/?\n", line):
            return server, match[1].decode()
    raise AssertionError("the service did not start")


async def until_seq(store: RunStore, seq: int) -> None:
    while not await store.read_frames(TURN, after=seq, limit=1):
        await store.wait_for_change(TURN, timeout_ms=100)


@pytest.mark.parametrize(
    "command", [in_python, pytest.param(in_javascript, marks=pytest.mark.node)]
)
async def test_the_client_reads_the_whole_answer_although_the_server_is_killed(
    tmp_path: Path, command: Callable[[str], list[str]]
) -> None:
    server, address = await serve(tmp_path)
    client = await asyncio.create_subprocess_exec(
        *command(address + "/v1/sessions/kitchen"), stdout=PIPE
    )
    store = await open_store(f"sqlite:{tmp_path / 'perdure.db'}")
    try:
        await until_seq(store, 20)
        server.kill()
        await server.wait()
        server, _ = await serve(tmp_path, urlsplit(address).port or 0)
        told, _ = await asyncio.wait_for(client.communicate(), 60)
        run = await store.read_run(TURN)
        steps = await store.read_steps(TURN)
    finally:
        await store.close()
        for process in (client, server):
            if process.returncode is None:
                process.terminate()
                await process.wait()
    assert run is not None
    assert (run.state, run.epoch) == ("completed", 2)
    assert told.decode() == steps[0].result["finalText"] + "\n"


def test_the_client_comes_back_when_it_is_told_to_and_takes_a_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = b'{"id":null,"chunk":{"type":"result","data":{"finalText":"It is clear."}}}\n'
    end = b'{"id":"0001_0000000003_97bce5","chunk":{"type":"session.run.completed","data":{}}}\n'
    answers = [
        httpx2.Response(503, headers={"retry-after": "0"}),
        httpx2.Response(429, headers={"retry-after": "0"}),
        httpx2.Response(200, content=result + end),
    ]
    asked: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def stream(method: str, url: str, **_: Any) -> Iterator[httpx2.Response]:
        asked.append((method, url))
        answer = answers.pop(0)
        answer.request = httpx2.Request(method, url)
        yield answer

    monkeypatch.setattr(httpx2, "stream", stream)
    names: dict[str, Any] = {}
    exec(compile(whole_client(), "wire.md", "exec"), names)
    assert names["answer"]("http://service/v1/sessions/k", 0, "Hi") == "It is clear."
    assert asked == [("POST", "http://service/v1/sessions/k/turns?envelope=1")] * 3


async def test_the_endpoint_of_the_readme_submits_and_rejoins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(ROOT / "README.md")
    code = next(block.text for block in blocks if "Starlette(" in block.text)
    made: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), made)
    transport = httpx2.ASGITransport(made["app"])
    address = "http://service/chats/kitchen/turns/0"
    async with httpx2.AsyncClient(transport=transport) as client:
        submitted = await client.post(address, json={"message": "A table"})
        cursors = re.findall(r"^id: (\S+)$", submitted.text, re.MULTILINE)
        last = {"last-event-id": cursors[-3]}
        rejoined = await client.get(address, headers=last)
        over = await client.get(address, headers={"last-event-id": cursors[-1]})
    await made["engine"].aclose()
    assert '"replayed":true' in rejoined.text
    assert (over.status_code, over.text) == (204, "")
    assert submitted.text.endswith(rejoined.text.replace("true", "false"))
