"""The backend for Anthropic's Messages API, streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from perdure.backends.endpoint import Answer, Endpoint
from perdure.backends.message_reader import OVERLOADED, MessageReader, replay_name
from perdure.backends.message_request import message_request
from perdure.backends.protocol import Prompt
from perdure.backends.reading import (
    IDLE_TIMEOUT_MS,
    begins_with_error,
    key_header,
    read_answer,
    request_body,
)
from perdure.backends.retry import BackendRetry
from perdure.backends.telling import telling
from perdure.core.frames import Frame
from perdure.core.records import JsonValue
from perdure.errors import BackendTransportError, UsageError

if TYPE_CHECKING:
    import httpx2

BASE_URL: Final = "https://api.anthropic.com"
API_VERSION: Final = "2023-06-01"
MAX_TOKENS: Final = 8_192
"""So long an answer may be where nothing else is said; the provider wants a number."""
PAUSES_MAX: Final = 8
"""So often an answer that pauses is gone on with."""


class AnthropicBackend:
    """Asks a Messages endpoint: one streamed POST for each prompt.

    `/v1/messages` is appended to `base_url`, with or without a `/v1` of its own. `max_tokens` is
    the limit of an answer whose prompt names none. Prompts have the shape of the chat completions
    API; blocks of this provider within `content`, and tools of its own, are sent as they are, and
    a prompt's `extra_body` may say `thinking`, `stop_sequences` and so on. `headers` may name
    `anthropic-version` and `anthropic-beta`.

    Where the provider pauses (its own tools took long), it is asked to go on, up to 8 times:
    it is one answer with the usage of all. What the provider wants back with the results
    of tools, such as signed thoughts, stands in `upstream_end`; a message with it is sent as the
    provider told it.

    The other arguments, retries and time limits are those of OpenAIBackend. The status 529
    (overloaded) always counts as one that may pass, and so does such an error instead of the
    beginning of an answer. A message that is not stopped is a failure. Of the usage, `tokens_in`
    has what was read from the cache and written there in it.

    Raises UsageError for a value that cannot be used.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str = BASE_URL,
        model: str | None = None,
        max_tokens: int = MAX_TOKENS,
        retry: BackendRetry | None = None,
        idle_timeout_ms: float = IDLE_TIMEOUT_MS,
        headers: Mapping[str, str] | None = None,
        client: httpx2.AsyncClient | None = None,
    ) -> None:
        if max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}, but must be 1 or more")
        policy = retry or BackendRetry()
        self.name = "anthropic"
        self.model = model
        self._max_tokens = max_tokens
        self._endpoint = Endpoint(
            self.name,
            base_url,
            path="/messages" if base_url.rstrip("/").endswith("/v1") else "/v1/messages",
            headers={
                "Content-Type": "application/json",
                "Accept": "text/event-stream",
                "anthropic-version": API_VERSION,
                **({"x-api-key": api_key.strip()} if api_key else {}),
                **(headers or {}),
            },
            retry=replace(policy, retry_statuses=policy.retry_statuses | {OVERLOADED}),
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
        said: list[dict[str, Any]] = []
        reader: MessageReader | None = None
        for number in range(PAUSES_MAX + 1):
            try:
                answer = await self._ask(prompt, said, number)
            except BackendTransportError:
                # What the answer used before it paused is billed as well.
                for frame in () if reader is None else reader.usage_so_far():
                    yield frame
                raise
            reader = self._reader(
                answer.status,
                answer.request_id,
                said=tuple(said),
                counted=None if reader is None else reader.counts,
            )
            async with aclosing(read_answer(self._endpoint, answer, reader)) as found:
                async for frame in found:
                    goes_on = reader.is_paused and number < PAUSES_MAX
                    if not (goes_on and frame.kind in ("usage", "upstream_end")):
                        yield frame
            if not reader.is_paused:
                return
            said += reader.blocks

    async def _ask(self, prompt: Prompt, said: Sequence[dict[str, Any]], number: int) -> Answer:
        """Ask for an answer, or for how it goes on behind what it `said` before it paused."""
        asked = message_request(
            prompt,
            model=self.model,
            max_tokens=self._max_tokens,
            replayed_as=replay_name(self.name),
            said=said,
        )
        key = prompt.idempotency_key
        if key is not None and number:
            # It is another question, which must not be taken for the first one.
            key = f"{key}-{number}"
        return await self._endpoint.post(request_body(asked), key_header(key))

    def _refuse_first(self, first: bytes) -> None:
        """Raise BackendTransportError for an error where the answer should begin."""
        if begins_with_error(first):
            for _ in self._reader(200, None).feed(first):
                pass

    def _reader(
        self,
        status: int,
        request_id: str | None,
        *,
        said: Sequence[Mapping[str, JsonValue]] = (),
        counted: Mapping[str, int] | None = None,
    ) -> MessageReader:
        return MessageReader(
            self.name,
            status=status,
            request_id=request_id,
            retry_statuses=self._endpoint.retry.retry_statuses,
            said=said,
            counted=counted,
        )
