"""A chat endpoint in your own Starlette application: submit, rejoin, stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from perdure import ChatTurnEngine, ChatTurnIdentity, Frame, RunStore, Turn, frames, open_store
from perdure.errors import PerdureError
from perdure.turn.reading import is_at_end
from perdure.web.requests import message_of, session_id_of, turn_index_of
from perdure.web.responses import Unauthorized, answer_error


async def produce(turn: Turn) -> AsyncIterator[Frame]:  # A real one asks a backend.
    for word in f"You said: {turn.user_message}".split():
        await asyncio.sleep(0.01)
        yield frames.text(f"{word} ")


def create_app(store: RunStore) -> tuple[Starlette, ChatTurnEngine]:
    engine = ChatTurnEngine(store, produce=produce)
    event_stream = partial(StreamingResponse, media_type="text/event-stream")

    def whose(request: Request) -> ChatTurnIdentity:
        if not (user := request.headers.get("x-user")):
            raise Unauthorized("the header x-user is missing")
        return ChatTurnIdentity("", session_id_of(request), user, turn_index_of(request))

    async def submit(request: Request) -> StreamingResponse:
        turn = await engine.submit(whose(request), await message_of(request))
        return event_stream(turn.lines(wire="sse"), 201 if turn.created else 200)

    async def rejoin(request: Request) -> Response:
        who, cursor = whose(request), request.headers.get("last-event-id")
        if await is_at_end(await engine.open(who, after=cursor)):
            return Response(status_code=204)  # It tells an EventSource to stay away.
        return event_stream(engine.read(who, after=cursor, wire="sse"))

    async def stop(request: Request) -> JSONResponse:
        return JSONResponse({"state": (await engine.stop(whose(request))).state})

    path, post = "/chats/{session_id}/turns/{turn_index}", ["POST"]
    routes = [Route(path, submit, methods=post), Route(path, rejoin)]
    routes.append(Route(f"{path}/stop", stop, methods=post))
    return Starlette(routes=routes, exception_handlers={PerdureError: answer_error}), engine


async def main() -> None:
    store = await open_store("memory:")
    app, engine = create_app(store)
    url, transport = "http://service/chats/garden/turns/0", httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, headers={"x-user": "ada"}) as client:
        submitted = await client.post(url, json={"message": "good morning"})
        rejoined, stopped = await client.get(url), await client.post(f"{url}/stop")
    await engine.aclose()
    await store.close()
    print(submitted.text)
    print(f"{submitted.status_code} submitted, {rejoined.status_code} rejoined,", stopped.json())


if __name__ == "__main__":
    asyncio.run(main())
