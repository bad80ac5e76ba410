"""A chat whose turns are answered by a Cloudflare Workflow, with their stream in a D1 database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from workers import Response, WorkerEntrypoint, WorkflowEntrypoint

from perdure import ChatTurnEngine, ChatTurnIdentity, D1DurableRunStore, Frame, Turn, frames
from perdure.engines.cloudflare import answer_on_workflow
from perdure.errors import PerdureError
from perdure.turn.identity import Asked


async def model(message: str) -> AsyncIterator[Frame]:
    """Echo, slowly; a real one asks a model."""
    for word in f"You said: {message}".split():
        await asyncio.sleep(0.01)
        yield frames.text(f"{word} ")
    yield frames.upstream_end("stop")


async def answer(turn: Turn) -> AsyncIterator[Frame]:
    """Each stream and each step is a step of the workflow, done once."""
    async for frame in turn.stream("answer", lambda: model(turn.user_message), result=len):
        yield frame


class Chat(WorkflowEntrypoint):
    async def run(self, event, step):
        """Answer one turn; the platform brings the attempts."""
        asked = event["payload"]
        store = D1DurableRunStore(self.env.DB)
        engine = ChatTurnEngine(store, produce=answer, recover=False)
        who = ChatTurnIdentity("", asked["session"], asked["user"], asked["number"])
        try:
            run = await answer_on_workflow(
                engine,
                step,
                workflow_name="chat",
                instance_id=event["instanceId"],
                turn=who,
                asked=Asked(asked["message"]),
            )
            return run.state
        finally:
            await engine.aclose()
            await store.close()


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        """POST /chats/SESSION/turns/N asks; GET reads it, from the last seen event on."""
        match urlsplit(request.url).path.split("/"):
            case ["", "chats", session, "turns", number] if number.isdecimal():
                who = ChatTurnIdentity("", session, user_of(request), int(number))
            case _:
                return Response("not found", status=404)
        if request.method == "POST":
            message = (await request.json())["message"]
            params = {"session": session, "user": who.user_id, "number": int(number)}
            instance = {"id": f"{session}-{number}", "params": {**params, "message": message}}
            await self.env.CHAT.create(instance)
            return Response.json({"asked": instance["id"]}, status=202)
        store = D1DurableRunStore(self.env.DB)
        engine = ChatTurnEngine(store, produce=answer, recover=False)
        try:
            cursor = request.headers.get("last-event-id")
            await engine.open(who, after=cursor)
            told = [chunk async for chunk in engine.read(who, after=cursor, wire="sse")]
        except PerdureError as error:
            return Response(json.dumps({"code": error.code}), status=409)
        finally:
            await engine.aclose()
            await store.close()
        text = "".join(chunk if isinstance(chunk, str) else chunk.decode() for chunk in told)
        return Response(text, headers={"content-type": "text/event-stream"})


def user_of(request):
    """Return who asks; a real one checks a session or a token."""
    return request.headers.get("x-user") or "somebody"
