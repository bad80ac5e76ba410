"""A durable chat endpoint in Flask, for `gunicorn --config python:flask_app flask_app:app`."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, request

from perdure import ChatTurnIdentity, PerdureError, UsageError, answer_with
from perdure.backends import ScriptedBackend
from perdure.sync import Items, SyncEngine
from perdure.web.bodies import message_in

backend = ScriptedBackend(token_delay_ms=20)
engine = SyncEngine("sqlite:chat.db", produce=answer_with(backend), drain_ms=500)
app = Flask(__name__)


def whose(chat: str, turn: int) -> ChatTurnIdentity:
    if "x-user" not in request.headers:
        raise UsageError("the header x-user is missing")
    return ChatTurnIdentity("", chat, request.headers["x-user"], turn)


def streamed(lines: Items[bytes], status: int = 200) -> Response:
    return Response(lines, status, content_type="application/x-ndjson")


@app.post("/chats/<chat>/turns/<int:turn>")
def submit(chat: str, turn: int) -> Response:
    submitted = engine.submit(whose(chat, turn), message_in(request.get_data()))
    return streamed(submitted.lines(wire="envelope"), 201 if submitted.created else 200)


@app.get("/chats/<chat>/turns/<int:turn>")
def read(chat: str, turn: int) -> Response:
    identity, after = whose(chat, turn), request.args.get("after")
    # What is wrong is said before the answer begins.
    engine.call(lambda chats: chats.open(identity, after=after))
    return streamed(engine.read(identity, after=after, wire="envelope"))


@app.post("/chats/<chat>/turns/<int:turn>/stop")
def stop(chat: str, turn: int) -> dict[str, str]:
    return {"state": engine.stop(whose(chat, turn)).state}


@app.errorhandler(PerdureError)
def refused(error: PerdureError) -> tuple[dict[str, str], int]:
    status = {"not_found": 404, "manifest_mismatch": 409, "session_busy": 409}
    return {"code": error.code, "message": str(error)}, status.get(error.code, 400)


# Settings of gunicorn: a stream holds a thread for as long as somebody reads it.
threads = 16
graceful_timeout = 10


def post_worker_init(worker: Any) -> None:
    """In each worker, behind the fork: go on with turns, and cut streams at SIGTERM."""
    engine.start()
