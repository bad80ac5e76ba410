"""The service as a FastAPI router, described in the application's OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from perdure.core.limits import DRAIN_MS, HEARTBEAT_MS
from perdure.errors import PerdureError, UsageError
from perdure.turn.engine import ChatTurnEngine

try:
    from fastapi import APIRouter, Depends, HTTPException
    from fastapi.exceptions import RequestValidationError
    from fastapi.routing import APIRoute
except ImportError as error:
    raise ImportError("the router needs FastAPI: pip install 'perdure[fastapi]'") from error

from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request
from starlette.responses import Response

from perdure.web.admission import DEFAULT_LIMITS, AdmissionLimits
from perdure.web.app import Caller, Service
from perdure.web.openapi import DESCRIPTIONS
from perdure.web.responses import WRITE_STALL_MS, error_answer, refusal_answer

__all__ = ["Caller", "ChatRouter", "chat_router"]

OPEN_TO_ALL = ("alive", "ready")
"""The endpoints that ask nobody who they are."""


class ChatRouter(APIRouter):
    """A router with the routes of the service; its lifespan is merged into the application's.

    `close_streams()` cuts every live stream and `hurry()` ends the drain, as the first and the
    second signal to stop do by themselves in the main thread.
    """

    close_streams: Callable[[], None]
    hurry: Callable[[], None]


def chat_router(
    engine: ChatTurnEngine,
    *,
    authorize: Callable[..., Any],
    drain_ms: int = DRAIN_MS,
    heartbeat_ms: int = HEARTBEAT_MS,
    write_stall_ms: int = WRITE_STALL_MS,
    limits: AdmissionLimits = DEFAULT_LIMITS,
) -> ChatRouter:
    """Return the routes of `create_app`, but the page, for `app.include_router(...)`.

    `authorize` is a FastAPI dependency (so it may depend on others, such as a security scheme,
    which the document then shows) that returns a Caller, or None for 401. Settings, and what
    happens when the server is told to stop, are those of `create_app`.
    """
    service = Service(engine, engine.store, _known_caller, limits)
    service.heartbeat_ms, service.write_stall_ms = heartbeat_ms, write_stall_ms
    service.drain_ms = drain_ms

    known = Depends(authorize)

    async def know(request: Request, caller: Any = known) -> None:
        request.state.perdure_caller = caller

    router = ChatRouter(lifespan=service.lifespan, route_class=_Answered, tags=["chat"])
    for route in service.routes():
        description = DESCRIPTIONS[route.name]
        for method in sorted(route.methods or ()):
            router.add_api_route(
                route.path,
                route.endpoint,
                methods=[method],
                name=route.name,
                summary=description.summary,
                dependencies=[] if route.name in OPEN_TO_ALL else [Depends(know)],
                response_class=Response,
                response_model=None,
                responses={**description.responses},
                openapi_extra={**description.extra},
                include_in_schema=method != "HEAD",
            )
    router.close_streams, router.hurry = service.close_streams, service.hurry
    return router


def _known_caller(request: Request) -> Caller | None:
    caller: Caller | None = request.state.perdure_caller
    return caller


class _Answered(APIRoute):
    """A route that refuses in the service's one form, also what a dependency refuses."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                return await handle(request)
            except PerdureError as error:
                return error_answer(error)
            except RequestValidationError as error:
                return error_answer(UsageError(_faults(error)))
            except StarletteHTTPException as refused:
                told = HTTPException(refused.status_code, str(refused.detail), refused.headers)
                return refusal_answer(told)

        return answered


def _faults(error: RequestValidationError) -> str:
    faults: list[dict[str, Any]] = [*error.errors()]
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
