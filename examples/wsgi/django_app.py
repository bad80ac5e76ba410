"""A durable chat endpoint in Django, for `gunicorn --config python:django_app django_app:app`."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from perdure import ChatTurnIdentity, PerdureError, UsageError, answer_with
from perdure.backends import ScriptedBackend
from perdure.sync import Items, SyncEngine
from perdure.web.bodies import message_in

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"], SECRET_KEY="an example")

backend = ScriptedBackend(token_delay_ms=20)
engine = SyncEngine("sqlite:chat.db", produce=answer_with(backend), drain_ms=500)


def whose(request: HttpRequest, chat: str, turn: int) -> ChatTurnIdentity:
    if "x-user" not in request.headers:
        raise UsageError("the header x-user is missing")
    return ChatTurnIdentity("", chat, request.headers["x-user"], turn)


def streamed(lines: Items[bytes], status: int = 200) -> StreamingHttpResponse:
    return StreamingHttpResponse(lines, status=status, content_type="application/x-ndjson")


@csrf_exempt
def turn(request: HttpRequest, chat: str, turn: int) -> Any:
    """Submit a turn, or read it from behind a cursor."""
    try:
        identity = whose(request, chat, turn)
        if request.method == "POST":
            submitted = engine.submit(identity, message_in(request.body))
            return streamed(submitted.lines(wire="envelope"), 201 if submitted.created else 200)
        after = request.GET.get("after")
        # What is wrong is said before the answer begins.
        engine.call(lambda chats: chats.open(identity, after=after))
        return streamed(engine.read(identity, after=after, wire="envelope"))
    except PerdureError as error:
        return refused(error)


@csrf_exempt
def stop(request: HttpRequest, chat: str, turn: int) -> HttpResponse:
    try:
        return JsonResponse({"state": engine.stop(whose(request, chat, turn)).state})
    except PerdureError as error:
        return refused(error)


def refused(error: PerdureError) -> JsonResponse:
    status = {"not_found": 404, "manifest_mismatch": 409, "session_busy": 409}
    told = {"code": error.code, "message": str(error)}
    return JsonResponse(told, status=status.get(error.code, 400))


urlpatterns = [
    path("chats/<str:chat>/turns/<int:turn>", turn),
    path("chats/<str:chat>/turns/<int:turn>/stop", stop),
]
app = get_wsgi_application()

# Settings of gunicorn: a stream holds a thread for as long as somebody reads it.
threads = 16
graceful_timeout = 10


def post_worker_init(worker: Any) -> None:
    """In each worker, behind the fork: go on with turns, and cut streams at SIGTERM."""
    engine.start()
