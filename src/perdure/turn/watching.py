"""Having the model call of a producer watched, which is no step that anybody else would see."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from perdure.core import observing
from perdure.core.changes import SettleUsage
from perdure.core.effects import monotonic_ms
from perdure.core.records import RunManifest


def asked_model(produce: object, manifest: RunManifest | None) -> tuple[str | None, str | None]:
    """Return the provider and the model that a producer says it asks; the turn's own counts."""
    asked = None if manifest is None else manifest.input.get("model")
    return getattr(produce, "provider", None), asked or getattr(produce, "model", None)


def watched_call(
    work: Coroutine[Any, Any, None],
    asked: tuple[str | None, str | None],
    *,
    usage: Callable[[], SettleUsage | None],
    error: Callable[[], BaseException | None],
) -> Coroutine[Any, Any, None]:
    """Return `work`, which drives a producer, to be watched if somebody watches.

    A producer that names its provider makes one call, which is watched while it goes on. Of any
    other one it is known only at the end, by its usage, that it has made a call itself.
    """
    observer = observing.observer
    return work if observer is None else _watched_call(observer, work, asked, usage, error)


async def _watched_call(
    observer: observing.Observer,
    work: Coroutine[Any, Any, None],
    asked: tuple[str | None, str | None],
    usage: Callable[[], SettleUsage | None],
    error: Callable[[], BaseException | None],
) -> None:
    provider, model = asked
    begun_ms = monotonic_ms()
    watch = None if provider is None else observer.model_call(provider=provider, model=model)
    interrupted: BaseException | None = None
    try:
        if watch is None:
            await work
        else:
            with watch.active():
                await work
    except BaseException as raised:
        interrupted = raised
        raise
    finally:
        used = usage()
        if watch is None and used is not None:
            lasted_ms = monotonic_ms() - begun_ms
            watch = observer.model_call(provider=provider, model=model, began_ago_ms=lasted_ms)
        if watch is not None:
            watch.end(error=interrupted or error(), usage=used)
