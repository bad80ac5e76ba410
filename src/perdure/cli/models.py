"""The model that the environment names, for the commands that ask one."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from perdure.backends.protocol import Backend
from perdure.backends.retry import BackendRetry
from perdure.errors import UsageError

_PREFIXES: Final = {
    "openai": "OPENAI",
    "openai-responses": "OPENAI",
    "anthropic": "ANTHROPIC",
}


class _Named(NamedTuple):
    key: str | None
    base_url: str | None
    model: str | None


def chosen_backend(backend: str = "auto") -> str:
    """Return what `auto` stands for; it is `scripted` where the environment names no provider."""
    if backend != "auto":
        return backend
    return next(
        (each for each in ("openai", "anthropic") if any(_named(_PREFIXES[each])[:2])), "scripted"
    )


def model_backend(backend: str, *, retry: BackendRetry | None = None) -> Backend:
    """Return the backend of a provider. Raises UsageError for what the environment lacks."""
    prefix = _PREFIXES[backend]
    key, base_url, model = _named(prefix)
    if not key and not base_url:
        raise UsageError(f"the backend {backend!r} needs {prefix}_API_KEY or {prefix}_BASE_URL")
    if not model:
        raise UsageError(f"set {prefix}_MODEL to the name of the model that should answer")
    if backend == "anthropic":
        from perdure.backends import anthropic

        address = base_url or anthropic.BASE_URL
        return anthropic.AnthropicBackend(key, base_url=address, model=model, retry=retry)
    from perdure.backends.openai import BASE_URL, OpenAIBackend
    from perdure.backends.responses import OpenAIResponsesBackend

    kind = OpenAIResponsesBackend if backend == "openai-responses" else OpenAIBackend
    return kind(key, base_url=base_url or BASE_URL, model=model, retry=retry)


def _named(prefix: str) -> _Named:
    return _Named(
        *(os.environ.get(f"{prefix}_{each}") for each in ("API_KEY", "BASE_URL", "MODEL"))
    )
