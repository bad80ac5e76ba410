"""`perdure serve`: store, backend, engine and page in one process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Final

from perdure.backends.protocol import Backend
from perdure.cli.arguments import without_password
from perdure.cli.models import chosen_backend, model_backend
from perdure.cli.pricing import prices_of
from perdure.durable.retention import keep_collecting
from perdure.errors import UsageError
from perdure.observe.logs import MaskingFormatter
from perdure.store.opening import open_store
from perdure.store.priced import with_prices
from perdure.store.protocol import RunStore
from perdure.turn.answering import answer_with, attachment_text, image_part
from perdure.turn.engine import ChatTurnEngine

if TYPE_CHECKING:
    from perdure.web.app import Caller
    from perdure.web.dashboard import AuthorizeViewer


_ATTACHMENT_PARTS: Final = {"refuse": None, "text": attachment_text, "images": image_part}


def serve(options: argparse.Namespace) -> int:
    """Serve until a signal; raise what keeps it from beginning."""
    # First of all, so that a missing extra is named together with the command that installs it.
    for module in ("perdure.web.app", "perdure.web.dashboard", "perdure.web.server"):
        importlib.import_module(module)
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    _check(options)
    asyncio.run(_serve(options))
    return 0


def _check(options: argparse.Namespace) -> None:
    if not 0 <= options.port <= 65_535:
        raise UsageError(f"--port must be from 0 to 65535, it is {options.port}")
    for name in ("token_delay_ms", "drain_ms"):
        if getattr(options, name) < 0:
            raise UsageError(f"--{name.replace('_', '-')} must not be negative")
    for name in ("turns_max", "tenant_turns_max", "streams_max"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1")
    if options.lease_ms < 100:
        raise UsageError(f"--lease-ms must be at least 100, it is {options.lease_ms}")
    from perdure.web.loopback import is_loopback

    if options.authorize is None and not is_loopback(options.host):
        raise UsageError(
            f"everybody could read and write every session on {options.host}: name who may with "
            "--authorize module:callable, or listen on 127.0.0.1"
        )


async def _serve(options: argparse.Namespace) -> None:
    from perdure.web.server import StreamingServer

    listener = _listen(options.host, options.port)
    with contextlib.closing(listener):
        async with _app(options) as (app, state, backend_name):
            _announce(options, listener, backend_name)
            server = StreamingServer(app, close_streams=state.close_streams, hurry=state.hurry)
            await server.serve_on(listener)


@contextlib.asynccontextmanager
async def _app(
    options: argparse.Namespace,
) -> AsyncGenerator[tuple[Any, Any, str], None]:
    from perdure.web.admission import AdmissionLimits
    from perdure.web.app import create_app
    from perdure.web.dashboard import add_dashboard
    from perdure.web.loopback import LoopbackGuard

    prices = prices_of(options.prices)
    authorize, viewers = _loaded(options, "authorize") or _everybody, _viewers(options)
    backend = _backend(options)
    store = await open_store(options.store, durability=options.durability)
    if prices is not None:
        store = with_prices(store, prices)
    try:
        produce = answer_with(backend, attachment_part=_ATTACHMENT_PARTS[options.attachments])
        engine = ChatTurnEngine(
            store, produce=produce, busy=options.busy, lease_ms=options.lease_ms
        )
        limits = AdmissionLimits(options.turns_max, options.tenant_turns_max, options.streams_max)
        app: Any = create_app(
            engine, store, authorize=authorize, drain_ms=options.drain_ms, limits=limits
        )
        state = app.state
        if viewers is not None:
            add_dashboard(app, store, authorize=viewers)
        if options.authorize is None:
            app = LoopbackGuard(app)
        named = backend.model or "no model named"
        kind = ", responses" if options.backend == "openai-responses" else ""
        async with _collecting(store, options):
            yield app, state, f"{backend.name} ({named}{kind})"
    finally:
        await store.close()
        await backend.aclose()


@contextlib.asynccontextmanager
async def _collecting(store: RunStore, options: argparse.Namespace) -> AsyncGenerator[None, None]:
    """Delete what need not be kept, as `perdure gc` does, for as long as the service runs."""
    collecting = asyncio.create_task(
        keep_collecting(
            store, frames_after_ms=options.frames_after, runs_after_ms=options.runs_after
        )
    )
    try:
        yield
    finally:
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)


def _everybody(_: object) -> Caller:
    from perdure.web.app import LOOPBACK_CALLER

    return LOOPBACK_CALLER


def _viewers(options: argparse.Namespace) -> AuthorizeViewer | None:
    """Return who says who may see the dashboard; None: there is none."""
    from perdure.web.dashboard import Viewer

    if not _has_dashboard(options):
        return None
    if options.authorize_dashboard is not None:
        authorize: AuthorizeViewer | None = _loaded(options, "authorize_dashboard")
        return authorize
    anybody = Viewer(sees_values=True, may_act=options.dashboard == "act")
    return lambda _: anybody


def _has_dashboard(options: argparse.Namespace) -> bool:
    if options.dashboard == "off":
        return False
    return options.authorize is None or options.authorize_dashboard is not None


def _backend(options: argparse.Namespace) -> Backend:
    chosen = chosen_backend(options.backend)
    if chosen == "scripted":
        from perdure.backends.scripted import ScriptedBackend

        return ScriptedBackend(token_delay_ms=options.token_delay_ms)
    return model_backend(chosen)


def _loaded(options: argparse.Namespace, option: str) -> Any:
    """Return the callable that an option names; None where it names none."""
    name: str | None = getattr(options, option)
    return None if name is None else _load(name, f"--{option.replace('_', '-')}")


def _load(name: str, option: str) -> Any:
    module_name, _, attribute = name.partition(":")
    # An installed command does not look where it was started, other than `python -m`.
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{option} {name!r} cannot be loaded: {error}") from error
    if not callable(found):
        raise UsageError(f"{option} {name!r} names a {type(found).__name__}, not a callable")
    return found


def _listen(host: str, port: int) -> socket.socket:
    from perdure.web.responses import WRITE_STALL_MS

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends without delay only on sockets that name their protocol.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sys.platform == "linux":
        # A connection inherits it: what waits for a client that takes nothing is thrown away.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, WRITE_STALL_MS)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; "
            "choose another with --port"
        ) from error
    return listener


def _announce(options: argparse.Namespace, listener: socket.socket, backend: str) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"backend   {backend}")
    print(f"store     {without_password(options.store)} (durability {options.durability})")
    address = f"http://{shown}:{port}/"
    if _has_dashboard(options):
        print(f"dashboard {address}dashboard")
    # Last of all: what waits for the service waits for this line.
    print(f"address   {address}", flush=True)
