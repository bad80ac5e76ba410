"""Asking an ASGI app with every byte under control: also what no client would send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from starlette.requests import Request
from starlette.types import ASGIApp, Message

from perdure.core.frames import text, upstream_end
from perdure.store.protocol import RunStore
from perdure.turn.engine import ChatTurnEngine
from perdure.web.app import Caller, create_app
from tests.turn.stage import Script, until

PATIENCE_S = 20.0
HANG_S = 1.0
TURNS = "/v1/sessions/s/turns"
STREAM, STOP, TURN = f"{TURNS}/0/stream", f"{TURNS}/0/stop", f"{TURNS}/0"
JSON = "application/json"


class Answer(NamedTuple):
    """What came back; `is_whole` is false for a body that was cut."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == JSON, self
        return json.loads(self.body)

    @property
    def error(self) -> Mapping[str, str]:
        """Return the error of the answer, in the one form that errors have."""
        answer = self.json
        assert list(answer) == ["error"]
        error: Mapping[str, str] = answer["error"]
        assert list(error)[:3] == ["code", "message", "hint"]
        assert all(error.values())
        return error

    @property
    def events(self) -> list[Any]:
        assert self.body.endswith(b"\n")
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def kinds(self) -> list[str]:
        return [event["type"] for event in self.events]


class Service(NamedTuple):
    """An app with all that stands behind it."""

    app: ASGIApp
    engine: ChatTurnEngine
    store: RunStore
    script: Script

    async def ask(self, method: str, target: str, **options: Any) -> Answer:
        return await ask(self.app, method, target, **options)

    async def submit(
        self, message: str = "Hi", *, index: int = 0, target: str = TURNS, **options: Any
    ) -> Answer:
        body = {"turnIndex": index, "message": message, **options.pop("more", {})}
        return await self.ask("POST", target, send=body, **options)


def by_header(request: Request) -> Caller | None:
    """Know callers by a header `Authorization: TENANT/USER`."""
    tenant, slash, user = request.headers.get("authorization", "").partition("/")
    return Caller(tenant, user) if slash else None


def serve(store: RunStore, script: Script | None = None, **options: Any) -> Service:
    """Return a service on `store` whose turns play `script`."""
    script = script or Script()
    engine = ChatTurnEngine(store, produce=script, recover=False, **options.pop("engine", {}))
    app = create_app(engine, store, authorize=options.pop("authorize", by_header), **options)
    return Service(app, engine, store, script)


async def ask(
    app: ASGIApp,
    method: str,
    target: str,
    *,
    send: object = None,
    body: bytes | Sequence[bytes] = b"",
    headers: Sequence[tuple[str, str]] = (),
    caller: str | None = "/ann",
    leaves: asyncio.Event | None = None,
) -> Answer:
    """Make one request. `target` is sent as it stands; `send` is a value that becomes the body.

    The client leaves when `leaves` is set. Headers of the test come before the usual ones.
    """
    named = {name.lower() for name, _ in headers}
    sent = [(name.lower(), value) for name, value in headers]
    if send is not None:
        body = json.dumps(send).encode()
    if body and "content-type" not in named:
        sent.append(("content-type", JSON))
    if caller is not None and "authorization" not in named:
        sent.append(("authorization", caller))
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote_to_bytes(path).decode("utf-8", "replace"),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    return await _exchange(app, scope, [body] if isinstance(body, bytes) else list(body), leaves)


async def _exchange(
    app: ASGIApp, scope: dict[str, Any], pieces: list[bytes], leaves: asyncio.Event | None
) -> Answer:
    got: list[Message] = []
    gone = leaves or asyncio.Event()

    async def receive() -> Message:
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        got.append(message)

    async with asyncio.timeout(PATIENCE_S):
        await app(scope, receive, send)
    start, parts = got[0], got[1:]
    return Answer(
        status=start["status"],
        headers={name.decode(): value.decode("latin-1") for name, value in start["headers"]},
        body=b"".join(part["body"] for part in parts),
        is_whole=bool(parts) and not parts[-1].get("more_body", False),
    )


def text_of(answer: Answer) -> str:
    deltas = (event["data"] for event in answer.events if "delta" in event["data"])
    return "".join(data["delta"] for data in deltas if data["part"]["type"] == "text")


async def begin(service: Service, **options: Any) -> asyncio.Task[Answer]:
    """Submit a turn whose script stops at an event, and return once it has said something."""
    reading = asyncio.create_task(service.submit(**options))
    await until(lambda: service.script.calls or reading.done())

    async def has_spoken() -> bool:
        target = f"{TURNS}/{options.get('index', 0)}"
        caller = options.get("caller", "/ann")
        return reading.done() or bool(
            (await service.ask("GET", target, caller=caller)).json["text"]
        )

    await until(has_spoken)
    return reading


def halting(event: asyncio.Event) -> Script:
    return Script([text("Hello"), event, text(" there"), upstream_end("stop")])


async def in_time(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Return the answer, which comes within a second; a busy machine is asked once more."""
    try:
        async with asyncio.timeout(HANG_S):
            return await ask()
    except TimeoutError:
        async with asyncio.timeout(HANG_S):
            return await ask()
