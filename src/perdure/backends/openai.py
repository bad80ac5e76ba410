"""The backend for every endpoint that speaks OpenAI's chat completions, streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, cast

from perdure.backends.completion import CompletionReader, replay_name
from perdure.backends.endpoint import Endpoint, stream_headers
from perdure.backends.protocol import Prompt
from perdure.backends.reading import (
    IDLE_TIMEOUT_MS,
    begins_with_error,
    key_header,
    read_answer,
    request_body,
)
from perdure.backends.replay import Message, replay_in, without_replay
from perdure.backends.retry import BackendRetry
from perdure.backends.telling import telling
from perdure.core.frames import Frame

if TYPE_CHECKING:
    import httpx2

BASE_URL: Final = "https://api.openai.com/v1"


class OpenAIBackend:
    """Asks a chat completions endpoint: one streamed POST for each prompt.

    `base_url` is what `/chat/completions` is appended to; its query, if any, is kept. `api_key`
    None sends no key; `headers` are sent with each call.

    A call is tried again, as `retry` says, until its answer begins: after a status that may pass,
    a lost connection, or too long a silence. Once it has begun nothing is repeated: a lost
    connection, or `idle_timeout_ms` (0: never) without a byte, raises. Errors hold neither keys
    nor the query of the address; HTTP clients log addresses, so a key belongs into `api_key` or
    `headers`.

    An endpoint that tells events of an agent in place of choices, as sandboxes do, is read as well:
    each is an `event` frame, and `[DONE]` ends the answer.

    What a provider wants back with the results of tools (thoughts in the open, signatures of
    calls) stands in `upstream_end`, and is sent with a message that has it.

    `client` replaces the HTTP client (proxies, certificates, transports), keeps no time limit of
    its own, and stays the caller's to close. An instance belongs to one event loop.

    Raises UsageError for a value that cannot be used.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str = BASE_URL,
        model: str | None = None,
        name: str = "openai",
        retry: BackendRetry | None = None,
        idle_timeout_ms: float = IDLE_TIMEOUT_MS,
        headers: Mapping[str, str] | None = None,
        client: httpx2.AsyncClient | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self._endpoint = Endpoint(
            name,
            base_url,
            path="/chat/completions",
            headers=stream_headers(api_key, headers),
            retry=retry or BackendRetry(),
            idle_timeout_ms=idle_timeout_ms,
            client=client,
            refuse_first=self._refuse_first,
        )

    def stream(self, prompt: Prompt) -> AsyncGenerator[Frame, None]:
        """Ask, and yield the answer as it arrives, after the contract of `Backend.stream`."""
        asked = prompt.model or self.model
        return telling(self._answer(prompt), provider=self.name, model=asked)

    async def aclose(self) -> None:
        """Close the connections, if the HTTP client is not the caller's."""
        await self._endpoint.aclose()

    async def _answer(self, prompt: Prompt) -> AsyncGenerator[Frame, None]:
        answer = await self._endpoint.post(self._body(prompt), key_header(prompt.idempotency_key))
        reader = self._reader(answer.status, answer.request_id)
        async with aclosing(read_answer(self._endpoint, answer, reader)) as found:
            async for frame in found:
                yield frame

    def _refuse_first(self, first: bytes) -> None:
        """Raise BackendTransportError for an error where the answer should begin."""
        if begins_with_error(first):
            for _ in self._reader(200, None).feed(first):
                pass

    def _reader(self, status: int, request_id: str | None) -> CompletionReader:
        return CompletionReader(
            self.name,
            status=status,
            request_id=request_id,
            retry_statuses=self._endpoint.retry.retry_statuses,
        )

    def _body(self, prompt: Prompt) -> bytes:
        return request_body(
            {
                "model": prompt.model or self.model,
                "messages": [_message(each, replay_name(self.name)) for each in prompt.messages],
                "stream": True,
                "stream_options": {"include_usage": True},
                "tools": list(prompt.tools) or None,
                "tool_choice": prompt.tool_choice if prompt.tools else None,
                "response_format": prompt.response_format,
                "temperature": prompt.temperature,
                "max_tokens": prompt.max_tokens,
                **prompt.extra_body,
            }
        )


def _message(message: Message, replayed_as: str) -> Message:
    """Return a message with the fields that this provider once told with it."""
    told = replay_in(message, replayed_as)
    [plain] = without_replay([message])
    calls = cast("list[dict[str, Any]]", plain.get("tool_calls") or [])
    if len(told) != len(calls) + 1:
        return plain
    signed = [{**call, **extra} for call, extra in zip(calls, told[1:], strict=True)]
    return {**plain, **told[0], "tool_calls": signed}
