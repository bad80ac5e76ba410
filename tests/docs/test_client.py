"""The client on the page of the wire: it reads a whole answer although its server is killed."""

from __future__ import annotations

import asyncio
import re
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from urllib.parse import urlsplit

from perdure import RunStore, open_store
from tests.docs.pages import ROOT, blocks_of

SERVE = "from perdure.cli.main import main; main()"
TURN = "chat:kitchen:0"


def whole_client() -> str:
    blocks = blocks_of(ROOT / "docs" / "reference" / "wire.md")
    return next(block.text for block in blocks if "def answer(" in block.text)


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


async def test_the_client_reads_the_whole_answer_although_the_server_is_killed(
    tmp_path: Path,
) -> None:
    server, address = await serve(tmp_path)
    code = f"{whole_client()}\nprint(answer({address + '/v1/sessions/kitchen'!r}, 0, 'A table'))"
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "utf8", "-c", code), stdout=PIPE
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
