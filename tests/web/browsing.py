"""A real browser, and services with the chat page for it to open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perdure.store.memory import MemoryStore
from perdure.turn.engine import ChatTurnEngine
from perdure.web.app import LOOPBACK_CALLER, create_app
from perdure.web.loopback import LoopbackGuard
from perdure.web.server import StreamingServer
from tests.turn.stage import Script

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE_MS = 15_000

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """Return a browser window whose pages must not have a fault of their own."""
    context = await browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    faults: list[str] = []
    context.on("weberror", lambda error: faults.append(str(error.error)))
    yield context
    await context.close()
    assert not faults


class Site(NamedTuple):
    """A service that listens, and the producer behind it."""

    origin: str
    script: Script

    def at(self, session: str) -> str:
        return f"{self.origin}/#session={session}"


Serve = Callable[..., Any]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Return a coroutine function that serves a script in this process, page and all."""
    async with contextlib.AsyncExitStack() as stack:

        async def serve(*script: Any, **options: int) -> Site:
            return await stack.enter_async_context(serving(Script(*script), **options))

        yield serve


@contextlib.asynccontextmanager
async def serving(script: Any, *, cuts: int = 0) -> AsyncGenerator[Site, None]:
    """Serve a script; of the first `cuts` streams nothing more than the first chunk arrives."""
    store = MemoryStore()
    engine = ChatTurnEngine(store, produce=script)
    app = create_app(engine, store, authorize=lambda _: LOOPBACK_CALLER, drain_ms=0)
    closing, hurry = app.state.close_streams, app.state.hurry
    guarded = LoopbackGuard(cutting(app, cuts))
    server = StreamingServer(guarded, close_streams=closing, hurry=hurry)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = asyncio.get_running_loop().create_task(server.serve_on(listener))
        yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}", script)
        server.handle_exit(signal.SIGTERM, None)
        await running
    await store.close()


def cutting(app: ASGIApp, cuts: int) -> ASGIApp:
    left = [None] * cuts

    async def cut(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_first(message: Message) -> None:
            await send(message)
            if message.get("body"):
                raise OSError("the connection broke")

        is_cut = scope.get("path", "").endswith("/stream") and left
        if is_cut:
            left.pop()
        with contextlib.suppress(OSError):
            await app(scope, receive, send_first if is_cut else send)

    return cut


async def ask(page: Page, message: str) -> None:
    await page.get_by_label("Your message").fill(message)
    await page.keyboard.press("Enter")


@contextlib.asynccontextmanager
async def command(
    folder: Path, port: int, *, token_delay_ms: int
) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """Run `perdure serve` on one database, and kill it if the test did not."""
    options = {
        "--port": port,
        "--store": f"sqlite:{folder / 'turns.db'}",
        "--backend": "scripted",
        "--token-delay-ms": token_delay_ms,
        "--lease-ms": 1_000,
    }
    words = [str(word) for option in options.items() for word in option]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "perdure", "serve", *words),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_MS / 1_000):
            while not (await process.stdout.readline()).startswith(b"address"):
                assert process.returncode is None
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
