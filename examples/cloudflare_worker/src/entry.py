"""A durable chat endpoint in a Python Worker: its memory is a D1 database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from js import TransformStream
from pyodide.ffi import JsException, create_proxy, to_js
from workers import Response, WorkerEntrypoint

from perdure import ChatTurnEngine, ChatTurnIdentity, D1DurableRunStore, Frame, Turn, frames
from perdure.errors import PerdureError

DRAIN_MS = 20_000
"""A Worker may go on for 30 s after its client has left."""


async def answer(turn: Turn) -> AsyncIterator[Frame]:
    """Echo, slowly; a real one asks a model."""
    for word in f"You said: {turn.user_message}".split():
        await asyncio.sleep(0.01)
        yield frames.text(f"{word} ")


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        """POST /chats/SESSION/turns/N asks; GET reads it again, from the last seen event on."""
        match urlsplit(request.url).path.split("/"):
            case ["", "chats", session_id, "turns", number] if number.isdecimal():
                who = ChatTurnIdentity("", session_id, user_of(request), int(number))
            case _:
                return Response("not found", status=404)
        store = D1DurableRunStore(self.env.DB)
        engine = ChatTurnEngine(store, produce=answer, recover=False)
        try:
            if request.method == "POST":
                message = (await request.json())["message"]
                lines = (await engine.submit(who, message)).lines(wire="sse")
            else:
                cursor = request.headers.get("last-event-id")
                lines = await opened(engine, who, cursor)
        except PerdureError as error:
            await store.close()
            return Response.json({"code": error.code}, status=409)
        stream = TransformStream.new()
        sending = asyncio.ensure_future(send(lines, stream.writable.getWriter(), engine, store))
        # The turn goes on when the client leaves, for as long as a Worker may.
        self.ctx.waitUntil(create_proxy(sending))
        return Response(stream.readable, headers={"content-type": "text/event-stream"})

    async def scheduled(self, controller, env=None, ctx=None):
        """Go on with what was cut off: a cron trigger calls this every minute."""
        store = D1DurableRunStore(self.env.DB)
        engine = ChatTurnEngine(store, produce=answer)
        engine.start()
        await asyncio.sleep(1)
        await engine.aclose(drain_ms=DRAIN_MS)
        await store.close()


def user_of(request):
    """Return who asks; a real one checks a session or a token."""
    return request.headers.get("x-user") or "somebody"


async def opened(engine, who, cursor):
    """Return the lines of a turn that is known, or raise."""
    await engine.open(who, after=cursor)
    return engine.read(who, after=cursor, wire="sse")


async def send(lines, writer, engine, store):
    """Write the lines until the client leaves; then finish the turn, or give it back."""
    try:
        async for chunk in lines:
            await writer.write(to_js(chunk))
        await writer.close()
    except JsException:
        pass  # The client has left, and comes back with its cursor.
    finally:
        await engine.aclose(drain_ms=DRAIN_MS)
        await store.close()
