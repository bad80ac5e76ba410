"""What the configs say that LangGraph hands around: a thread, a namespace, how far it was seen."""

from __future__ import annotations

from typing import Any, Final

from perdure.errors import SessionBusyError, UsageError

Config = Any
"""A RunnableConfig, whose `configurable` is a plain dict."""

SEEN: Final = "__perdure_seen"
"""Where a config says up to which row of the log its reader has seen the thread.

LangGraph hands it on from what it reads to what it writes, and keeps it out of metadata.
"""
FIRST_STEP: Final = -1
"""The step of a thread's first checkpoint, to LangGraph."""


def overtaken(thread_id: str, other: str) -> SessionBusyError:
    """Return what is raised to whom somebody else was faster than."""
    return SessionBusyError(
        f"somebody else has gone on with the thread {thread_id!r:.60} meanwhile, to the checkpoint "
        f"{other}: invoke the graph again, to go on from there"
    )


def thread_of(config: Config) -> tuple[str, str]:
    """Return thread and namespace that a config names. Raises UsageError without a thread."""
    configurable = config.get("configurable", {})
    if "thread_id" not in configurable:
        raise UsageError("the config names no thread: {'configurable': {'thread_id': ...}}")
    return str(configurable["thread_id"]), configurable.get("checkpoint_ns", "")
