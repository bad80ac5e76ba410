"""Floor 2: who answers a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.core.lazily import lazily

if TYPE_CHECKING:
    from perdure.backends.anthropic import AnthropicBackend as AnthropicBackend
    from perdure.backends.openai import OpenAIBackend as OpenAIBackend
    from perdure.backends.protocol import AttachableBackend as AttachableBackend
    from perdure.backends.protocol import Backend as Backend
    from perdure.backends.protocol import Prompt as Prompt
    from perdure.backends.responses import OpenAIResponsesBackend as OpenAIResponsesBackend
    from perdure.backends.retry import BackendRetry as BackendRetry
    from perdure.backends.scripted import ScriptedBackend as ScriptedBackend

__all__ = [
    "AnthropicBackend",
    "AttachableBackend",
    "Backend",
    "BackendRetry",
    "OpenAIBackend",
    "OpenAIResponsesBackend",
    "Prompt",
    "ScriptedBackend",
]

__getattr__ = lazily(
    __name__,
    {
        "perdure.backends.anthropic": ("AnthropicBackend",),
        "perdure.backends.openai": ("OpenAIBackend",),
        "perdure.backends.protocol": (
            "AttachableBackend",
            "Backend",
            "Prompt",
        ),
        "perdure.backends.responses": ("OpenAIResponsesBackend",),
        "perdure.backends.retry": ("BackendRetry",),
        "perdure.backends.scripted": ("ScriptedBackend",),
    },
)
