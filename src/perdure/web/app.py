"""The service as a Starlette app: submit, stream, read and stop chat turns over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, NamedTuple

from perdure.agent.tool_approval import decide
from perdure.core.identity import stored_id
from perdure.core.limits import DRAIN_MS, HEARTBEAT_MS
from perdure.core.records import RunRecord
from perdure.durable.erasing import erase_session, erase_user
from perdure.durable.signals import hearing_signals
from perdure.errors import (
    FramesExpiredError,
    PerdureError,
    RunNotFoundError,
    TooManyTurnsError,
    UsageError,
)
from perdure.store.protocol import RunStore
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.identity import ChatTurnIdentity, check_identity, identity_of, run_id_of
from perdure.turn.reading import Reading, is_at_end, known_turn, lines
from perdure.turn.revising import meant_revision
from perdure.turn.wire.codecs import codec_for

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute, Match, Route
except ImportError as error:
    raise ImportError("the web app needs Starlette: pip install 'perdure[serve]'") from error

from perdure.web.admission import DEFAULT_LIMITS, Admission, AdmissionLimits
from perdure.web.approving import approval_of, approvals_view, decided_view
from perdure.web.bodies import Submission
from perdure.web.page import page_routes
from perdure.web.requests import (
    NO_SLASH,
    cursor_of,
    decision_of,
    format_of,
    has_encoded_slash,
    in_time,
    revision_of,
    session_id_of,
    stops_first,
    submission_of,
    turn_address,
    turn_index_of,
)
from perdure.web.responses import (
    WRITE_STALL_MS,
    StreamAnswer,
    Unauthorized,
    error_answer,
    json_answer,
    refusal_answer,
    unexpected_answer,
)
from perdure.web.views import session_view, turn_view

Handler = Callable[[Request], Awaitable[Response]]


class Caller(NamedTuple):
    """Who makes a request: the tenant ('' is the default one) and the user in it."""

    tenant_id: str
    user_id: str


Authorize = Callable[[Request], Caller | Awaitable[Caller | None] | None]


def create_app(
    engine: ChatTurnEngine,
    store: RunStore,
    *,
    authorize: Authorize,
    page: bool = True,
    drain_ms: int = DRAIN_MS,
    heartbeat_ms: int = HEARTBEAT_MS,
    write_stall_ms: int = WRITE_STALL_MS,
    limits: AdmissionLimits = DEFAULT_LIMITS,
) -> Starlette:
    """Return an app that serves `engine`, whose store is `store`; mount it or run it.

    `authorize(request)` says who asks, or None (401); it may be a coroutine function, and may
    raise Starlette's HTTPException. A session belongs to the user of its first turn: to everybody
    else it does not exist. A stream that was silent for `heartbeat_ms` gets a heartbeat, and one
    whose client takes nothing for `write_stall_ms` is cut. What is over `limits` is refused with
    429 (turns, streams) or 503 (bodies); a turn that was begun is always joined or replayed.

    The app's lifespan starts the engine's recovery and, at its end, lets turns go on for
    `drain_ms` and gives back the others. A mounted app has no lifespan of its own: enter
    `app.router.lifespan_context(app)` in that of the outer one. A server that waits for open
    responses before it ends the lifespan would wait for every live stream, so from its lifespan
    on the app hears SIGTERM and SIGINT before the server does, and cuts them; a second signal
    ends the drain. Where it cannot (outside the main thread, or if the server's workers get no
    signal) call `app.state.close_streams()` and `app.state.hurry()` instead.
    """
    service = Service(engine, store, authorize, limits)
    service.heartbeat_ms, service.write_stall_ms = heartbeat_ms, write_stall_ms
    service.drain_ms = drain_ms
    routes: list[BaseRoute] = [*service.routes()]
    if page:
        routes += page_routes()
    handlers = {HTTPException: _refused}
    app = Starlette(routes=routes, lifespan=service.lifespan, exception_handlers=handlers)
    # A redirect would send a browser wherever the header Host says.
    app.router.redirect_slashes = False
    app.state.close_streams, app.state.hurry = service.close_streams, service.hurry
    return app


async def _refused(request: Request, refused: Exception) -> Response:
    assert isinstance(refused, HTTPException)
    if refused.status_code in (404, 405) and has_encoded_slash(request):
        return error_answer(UsageError(NO_SLASH))
    if refused.status_code == 405:
        # The path may have other methods in other routes.
        routes = [route for route in request.app.routes if isinstance(route, Route)]
        here = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
        allowed = sorted({method for route in here for method in route.methods or ()})
        refused.headers = {**(refused.headers or {}), "Allow": ", ".join(allowed)}
    return refusal_answer(refused)


class Service:
    """The endpoints. Each is a reader or a command; turns belong to the engine."""

    def __init__(
        self,
        engine: ChatTurnEngine,
        store: RunStore,
        authorize: Authorize,
        limits: AdmissionLimits = DEFAULT_LIMITS,
    ) -> None:
        self._engine = engine
        self._store = store
        self._authorize = authorize
        self._admission = Admission(store.handle, limits)
        self.heartbeat_ms: int = HEARTBEAT_MS
        self.write_stall_ms: int = WRITE_STALL_MS
        self.drain_ms: int = DRAIN_MS
        self._closing = asyncio.Event()
        self._hurry = asyncio.Event()

    def routes(self) -> list[Route]:
        session = "/v1/sessions/{session_id}"
        turns = session + "/turns"
        turn = turns + "/{turn_index}"
        return [
            Route(turns, self._guarded(self.submit), methods=["POST"]),
            Route(turn + "/stream", self._guarded(self.stream), methods=["GET"]),
            Route(turn + "/stop", self._guarded(self.stop), methods=["POST"]),
            Route(turn + "/approvals", self._guarded(self.approvals), methods=["GET"]),
            Route(turn + "/approvals", self._guarded(self.decide), methods=["POST"]),
            Route(turn, self._guarded(self.turn), methods=["GET"]),
            Route(session, self._guarded(self.session), methods=["GET"]),
            Route(session, self._guarded(self.delete_session), methods=["DELETE"]),
            Route("/v1/me", self._guarded(self.delete_mine), methods=["DELETE"]),
            Route("/healthz", self._guarded(self.alive), methods=["GET"]),
            Route("/readyz", self._guarded(self.ready), methods=["GET"]),
        ]

    def close_streams(self) -> None:
        """Cut every stream: its client reconnects, here or elsewhere, and misses nothing."""
        self._closing.set()

    def hurry(self) -> None:
        """End a drain, or the one to come, at once."""
        self._hurry.set()

    @contextlib.asynccontextmanager
    async def lifespan(self, _: object) -> AsyncGenerator[None, None]:
        """Look for turns that nobody works on; at the end cut streams, and drain."""
        self._engine.start()
        told = asyncio.get_running_loop().call_soon_threadsafe
        close, hurry = (
            functools.partial(told, self.close_streams),
            functools.partial(told, self.hurry),
        )
        with hearing_signals(close, hurry):
            try:
                yield
            finally:
                self.close_streams()
                await self._drain()

    async def _drain(self) -> None:
        """Let turns go on for a while, unless there is a hurry; then give them back."""
        loop = asyncio.get_running_loop()
        draining = loop.create_task(self._engine.aclose(drain_ms=self.drain_ms))
        hurried = loop.create_task(self._hurry.wait())
        await asyncio.wait((draining, hurried), return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            await self._engine.aclose(drain_ms=0)
        hurried.cancel()
        await draining

    # Commands.

    async def submit(self, request: Request) -> Response:
        """Accept a turn and stream it."""
        caller, session_id = await self._caller(request), session_id_of(request)
        format = format_of(request)
        with self._admission.receiving() as receiving:
            asked = await in_time(submission_of(request, receiving.add), self._closing)
        identity = ChatTurnIdentity(
            caller.tenant_id, session_id, caller.user_id, asked.turn_index, asked.revision
        )
        run_id = run_id_of(check_identity(identity))
        await self._admit(caller.tenant_id, run_id, asked)
        with self._admission.entering(stored_id(caller.tenant_id, run_id)):
            submitted = await self._engine.submit(
                identity,
                asked.message,
                model=asked.model,
                attachments=asked.attachments,
                retry=asked.retry,
                regenerate=asked.regenerate,
                busy=asked.busy,
            )
        reading = await self._engine.open(submitted.identity, dialect=format.dialect)
        answer = self._streamed(reading, format.wire, 201 if submitted.created else 200)
        answer.headers["location"] = turn_address(request, submitted.identity)
        return answer

    async def stop(self, request: Request) -> Response:
        """Stop a turn durably; one that is over stays as it is."""
        caller = await self._caller(request)
        run = await self._engine.stop(await self._identity(caller, request))
        return json_answer(await turn_view(self._view(caller), run))

    async def decide(self, request: Request) -> Response:
        """Decide a call of a turn that waits for a human."""
        caller = await self._caller(request)
        with self._admission.receiving() as receiving:
            decision = await in_time(decision_of(request, receiving.add), self._closing)
        run = await self._run(caller, request)
        view = self._view(caller)
        approval = await approval_of(view, run, decision, by=caller.user_id)
        decided = await decide(view, run.run_id, decision.event, approval)
        return json_answer(decided_view(decided))

    async def delete_session(self, request: Request) -> Response:
        """Delete a session with everything of it."""
        caller, session_id = await self._caller(request), session_id_of(request)
        stop = self._stop_one if stops_first(request) else None
        erased = await erase_session(
            self._view(caller), session_id, owner_id=caller.user_id, stop=stop
        )
        return json_answer(erased._asdict())

    async def delete_mine(self, request: Request) -> Response:
        """Delete every session of the caller."""
        caller = await self._caller(request)
        stop = self._stop_one if stops_first(request) else None
        erased = await erase_user(self._view(caller), caller.user_id, stop=stop)
        return json_answer(erased._asdict())

    # Readers.

    async def stream(self, request: Request) -> Response:
        """Stream a turn from behind a cursor, wherever it runs."""
        caller, format = await self._caller(request), format_of(request)
        cursor = cursor_of(request)
        identity = await self._identity(caller, request, cursor)
        try:
            reading = await self._engine.open(identity, after=cursor, dialect=format.dialect)
        except FramesExpiredError as error:
            return error_answer(error, turn=turn_address(request, identity))
        if await is_at_end(reading):
            return Response(status_code=204)  # It tells an EventSource not to come back.
        return self._streamed(reading, format.wire, 200)

    async def turn(self, request: Request) -> Response:
        """Show a turn."""
        caller = await self._caller(request)
        run = await self._run(caller, request)
        return json_answer(await turn_view(self._view(caller), run))

    async def approvals(self, request: Request) -> Response:
        """Show the calls of a turn that wait for a human."""
        caller = await self._caller(request)
        run = await self._run(caller, request)
        return json_answer(await approvals_view(self._view(caller), run))

    async def session(self, request: Request) -> Response:
        """Show a conversation."""
        caller, session_id = await self._caller(request), session_id_of(request)
        view = await session_view(self._view(caller), session_id, caller.user_id)
        if view is None:
            raise RunNotFoundError(f"there is no session {session_id!r}")
        return json_answer(view)

    async def alive(self, request: Request) -> Response:
        """Say that the process answers."""
        return json_answer({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Say that the store can be read, at the schema that this version needs."""
        await self._store.list_runs(limit=1)
        return json_answer({"status": "ok"})

    # Parts of the above.

    def _guarded(self, handler: Handler) -> Handler:
        """Turn what goes wrong into an answer; nothing of the inside gets out."""

        @functools.wraps(handler)
        async def guarded(request: Request) -> Response:
            try:
                return await handler(request)
            except PerdureError as error:
                return error_answer(error)
            except HTTPException:
                raise
            except ClientDisconnect:
                return Response(status_code=400)  # Nobody is there to read it.
            except Exception as error:
                return unexpected_answer(error)

        return guarded

    async def _admit(self, tenant_id: str, run_id: str, asked: Submission) -> None:
        """Refuse a turn that would begin here, if this process works on as many as it may."""
        try:
            self._admission.check_turn(tenant_id)
        except TooManyTurnsError:
            run = await self._store.for_tenant(tenant_id).read_run(run_id)
            retried = asked.retry and run is not None and run.state in ("failed", "parked")
            if run is None or retried or asked.regenerate:
                raise

    async def _stop_one(self, run: RunRecord) -> None:
        await self._engine.stop(identity_of(run))

    async def _caller(self, request: Request) -> Caller:
        known = self._authorize(request)
        caller = await known if inspect.isawaitable(known) else known
        if caller is None:
            raise Unauthorized("nobody is known to have made this request")
        return caller

    async def _identity(
        self, caller: Caller, request: Request, cursor: str | None = None
    ) -> ChatTurnIdentity:
        """Return the turn of the path, in the revision of the query or in the one that is meant."""
        turn = ChatTurnIdentity(
            caller.tenant_id, session_id_of(request), caller.user_id, turn_index_of(request)
        )
        revision = revision_of(request)
        if revision is None:
            return await meant_revision(self._view(caller), turn, cursor=cursor)
        return turn._replace(revision=revision)

    def _view(self, caller: Caller) -> RunStore:
        return self._store.for_tenant(caller.tenant_id)

    async def _run(self, caller: Caller, request: Request) -> RunRecord:
        identity = await self._identity(caller, request)
        return await known_turn(self._view(caller), identity)

    def _streamed(self, reading: Reading, wire: str, status: int) -> Response:
        self._admission.check_stream()
        codec = codec_for(wire)
        return StreamAnswer(
            lines(reading._replace(heartbeat_ms=self.heartbeat_ms), codec),
            status=status,
            content_type=codec.content_type,
            closing=self._closing,
            counted=self._admission.streaming,
            write_stall_ms=self.write_stall_ms,
        )


LOOPBACK_CALLER: Final = Caller("", "local")
"""Whom an anonymous service on loopback takes everybody for."""
