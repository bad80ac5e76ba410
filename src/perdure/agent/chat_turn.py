"""run_chat_turn: a conversation and a whole profile, sent to an agent in a sandbox."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from perdure.agent.calls import CutShort
from perdure.agent.cancel import CancelSignal
from perdure.agent.chat_turn_events import ChatTurnEvent, ChatTurnReader
from perdure.agent.profile import (
    AgentProfile,
    AgentSubagentProfile,
    ProfilePrompt,
    ProfileResources,
    merge_agent_profiles,
    wire_profile,
)
from perdure.agent.pumping import pumped
from perdure.backends.retry import BackendRetry
from perdure.core.effects import new_uuid
from perdure.core.records import JsonValue
from perdure.core.secret import Secret
from perdure.core.wire import to_wire
from perdure.errors import BackendTransportError, ChatTurnError, UsageError, ValueTooLargeError

PATH: Final = "/runtime/agents/run/stream"
"""What the address of a sandbox is followed by."""
BACKEND_TYPE: Final = "claude-code"
"""The kind of agent that runs a profile whose `metadata.backend.type` names none."""
IDLE_TIMEOUT_MS: Final = 60_000
WORDS_MAX: Final = 500
"""So many characters of a refusal's body stand in the message of its error."""

Wire = Mapping[str, JsonValue]
Profile = AgentProfile | Wire


@dataclass(frozen=True, slots=True)
class ChatTurnMessage:
    """One message of the conversation before a turn."""

    role: Literal["user", "assistant", "system"]
    content: str
    metadata: Wire | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurnOverlay:
    """What is laid over the profile for one turn only."""

    prompt_overlay: ProfilePrompt | Wire | None = None
    resources_overlay: ProfileResources | Wire | None = None
    subagents_overlay: Mapping[str, AgentSubagentProfile | Wire] | None = None
    metadata: Wire | None = None


@dataclass(frozen=True, slots=True)
class ChatTurnAuth:
    """The header that a sandbox knows its caller by; a value that is a text becomes a Secret."""

    name: str
    value: str | Secret

    def __post_init__(self) -> None:
        if isinstance(self.value, str):
            object.__setattr__(self, "value", Secret(self.value))


@dataclass(frozen=True, slots=True)
class ChatTurnSandbox:
    """Where a chat turn is run: the address of a sandbox, and the header that opens it."""

    id: str
    runtime_url: str
    auth_header: ChatTurnAuth | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurnCalling:
    """How a sandbox is called.

    A call is tried again, as `retry` says, until its answer begins. `idle_timeout_ms` is how long
    the answer may be silent (0: for ever). All tries carry one `Idempotency-Key`: the given one,
    which should be the same whenever the same turn is asked for again, or a random one. `client`,
    an `httpx2.AsyncClient`, replaces the HTTP client and stays the caller's to close.
    """

    retry: BackendRetry | None = None
    idle_timeout_ms: float = IDLE_TIMEOUT_MS
    idempotency_key: str | None = None
    client: Any = None


def compose_turn_profile(
    base: Profile | None, overlay: ChatTurnOverlay | None
) -> dict[str, JsonValue]:
    """Return the profile of one turn in wire form: `overlay` laid over `base`; both stay."""
    given = overlay or ChatTurnOverlay()
    parts: dict[str, JsonValue] = {
        "prompt": to_wire(given.prompt_overlay),
        "resources": to_wire(given.resources_overlay),
        "subagents": to_wire(given.subagents_overlay),
        "metadata": to_wire(given.metadata),
    }
    return cast("dict[str, JsonValue]", merge_agent_profiles(wire_profile(base), parts))


def sandbox_as_chat_turn_target(
    instance: Any, auth_header: ChatTurnAuth | None = None
) -> ChatTurnSandbox:
    """Return where the chat turns of a sandbox go: its `url`, else `connection.runtime_url`.

    `instance` is an object or, with `runtimeUrl`, its wire form. Raises ChatTurnError for one
    that has no address.
    """
    url = _member(instance, "url", "url") or _member(
        _member(instance, "connection", "connection"), "runtime_url", "runtimeUrl"
    )
    id = str(_member(instance, "id", "id") or "")
    if not (isinstance(url, str) and url):
        why = "has no address: it may not be running yet"
        raise ChatTurnError(f"the sandbox {id!r} {why}", backend=id, retryable=False)
    return ChatTurnSandbox(id, url.rstrip("/"), auth_header)


async def run_chat_turn(
    profile: Profile,
    message: str,
    sandbox: ChatTurnSandbox,
    *,
    overlay: ChatTurnOverlay | None = None,
    prior_messages: Sequence[ChatTurnMessage | Wire] = (),
    model_override: str | None = None,
    signal: CancelSignal | None = None,
    calling: ChatTurnCalling | None = None,
) -> AsyncGenerator[ChatTurnEvent, None]:
    """Send the composed profile and the conversation to a sandbox, and yield what it streams.

    Events whose type is known are typed, with nothing filled in; any other is an UnknownEvent.
    Nothing is stored: a durable chat is `ChatTurnEngine`'s. Closing this ends the call.

    Raises ChatTurnError when the sandbox refuses, breaks off or falls silent, AgentRuntimeError
    when `signal` fires, and UsageError for an address or a header that cannot be used. Needs
    `pip install 'perdure[openai]'`.
    """
    body = _body(
        compose_turn_profile(profile, overlay),
        [*map(to_wire, prior_messages), {"role": "user", "content": message}],
        model_override,
    )
    wanted = signal or CancelSignal()
    wanted.raise_if_cancelled()

    def events() -> AsyncIterator[ChatTurnEvent]:
        return _events(sandbox, body, calling or ChatTurnCalling())

    try:
        async with aclosing(pumped(events, wanted)) as pumping:
            async for event in pumping:
                yield event
    except CutShort:
        wanted.raise_if_cancelled()
    except ValueTooLargeError as error:
        raise ChatTurnError(
            f"the sandbox {sandbox.id!r} sent too much at once: {error}",
            backend=sandbox.id,
            retryable=False,
        ) from error
    except BackendTransportError as failure:
        words = f": {failure.body[:WORDS_MAX]}" if failure.body else ""
        raise ChatTurnError(
            f"{failure}{words}",
            backend=sandbox.id,
            status=failure.status,
            body=failure.body,
            retryable=failure.retryable,
        ) from failure


async def _events(
    sandbox: ChatTurnSandbox, body: bytes, calling: ChatTurnCalling
) -> AsyncGenerator[ChatTurnEvent, None]:
    from perdure.backends.endpoint import Endpoint, stream_headers

    if not sandbox.runtime_url.lower().startswith(("http://", "https://")):
        # The address is not shown: it may hold a password or a key.
        raise UsageError(
            f"runtime_url of the sandbox {sandbox.id!r} must be an address such as "
            "https://box.example.com"
        )
    auth = sandbox.auth_header
    opening = {auth.name: cast("Secret", auth.value).reveal()} if auth is not None else None
    endpoint = Endpoint(
        f"the sandbox {sandbox.id!r}",
        sandbox.runtime_url.rstrip("/"),
        path=PATH,
        headers=stream_headers(None, opening),
        retry=calling.retry or BackendRetry(),
        idle_timeout_ms=calling.idle_timeout_ms,
        client=calling.client,
    )
    key = calling.idempotency_key or new_uuid()
    async with (
        aclosing(endpoint),
        aclosing(await endpoint.post(body, {"Idempotency-Key": key})) as answer,
    ):
        reader, is_empty = ChatTurnReader(), True
        while chunk := await answer.chunk(calling.idle_timeout_ms):
            is_empty = False
            for event in reader.feed(chunk):
                yield event
        if is_empty:
            raise BackendTransportError(
                f"{endpoint} answered without a body", backend=sandbox.id, status=answer.status
            )
        for event in reader.close():
            yield event


def _body(profile: dict[str, JsonValue], messages: list[JsonValue], model: str | None) -> bytes:
    backend: dict[str, JsonValue] = {"type": _backend_type(profile), "profile": profile}
    if model is not None:
        backend["model"] = {"default": model}
    try:
        return json.dumps({"backend": backend, "messages": messages}, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the profile or the messages are not plain JSON: {error}") from error


def _backend_type(profile: Mapping[str, JsonValue]) -> str:
    found = _member(_member(profile.get("metadata"), "backend", "backend"), "type", "type")
    return found if isinstance(found, str) and found else BACKEND_TYPE


def _member(value: Any, name: str, wire: str) -> Any:
    if isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value).get(wire)
    return getattr(value, name, None)
