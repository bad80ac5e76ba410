"""The backend for OpenAI's Responses API, whose answers go on although nobody listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from perdure.backends.endpoint import Answer, Endpoint, stream_headers
from perdure.backends.openai import BASE_URL
from perdure.backends.protocol import Prompt
from perdure.backends.provider_error import fields_of
from perdure.backends.reading import (
    IDLE_TIMEOUT_MS,
    begins_with_error,
    key_header,
    request_body,
)
from perdure.backends.replay import replay_in
from perdure.backends.response_reader import RESPONSE_ID, ResponseReader, replay_name
from perdure.backends.retry import BackendRetry
from perdure.backends.telling import telling
from perdure.core.effects import random_float
from perdure.core.frames import Frame
from perdure.core.records import JsonValue
from perdure.errors import BackendTransportError, UsageError

if TYPE_CHECKING:
    import httpx2

_NOTHING_TO_CANCEL: Final = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.GONE}
)
"""What a provider says of a response that is over, or not kept."""
_NOT_KEPT: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_NOT_STREAMED: Final = frozenset({HTTPStatus.OK, HTTPStatus.BAD_REQUEST})
"""How a response is refused as a stream that is some minutes old, or of a server that streams none.

The first is an answer that is no stream.
"""
_OVER: Final = frozenset({"completed", "incomplete", "failed", "cancelled"})
LOOK_MS: Final = 2_000
"""So long, at most, is waited between two looks at a response that is not streamed any more."""


class OpenAIResponsesBackend:
    """Asks the Responses API in background mode: an AttachableBackend.

    A connection that breaks while an answer runs is made again behind the last event, and a worker
    that takes over a turn joins its answer, which costs no second call. For that the provider
    keeps each response for some minutes, also where it otherwise would not; to end a call takes
    `cancel`. A response that is streamed no more (this provider streams one for five minutes) is
    looked at until it is over. A prompt's `extra_body` may say `{"background": False}`, or
    `{"store": False}`, from which that follows: then nothing can be joined.

    Where the model thought before it called tools, its output stands in `upstream_end`, and a
    message that has it is sent as that output.

    The arguments are those of OpenAIBackend; `/responses` is appended to `base_url`. Raises
    UsageError for a value that cannot be used.
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
            path="/responses",
            headers=stream_headers(api_key, headers),
            retry=retry or BackendRetry(),
            idle_timeout_ms=idle_timeout_ms,
            client=client,
            refuse_first=self._refuse_first,
        )

    def stream(self, prompt: Prompt) -> AsyncGenerator[Frame, None]:
        """Ask, and yield the answer as it arrives, after the contract of AttachableBackend."""
        asked = prompt.model or self.model
        return telling(self._answer(prompt), provider=self.name, model=asked)

    def attach(self, handle: JsonValue) -> AsyncGenerator[Frame, None]:
        """Join a response that is kept, and yield it from its beginning."""
        return telling(self._joined(handle), provider=self.name, model=self.model)

    async def cancel(self, handle: JsonValue) -> None:
        """End a response; one that is over, or not kept, stays as it is."""
        try:
            await self._endpoint.call("POST", f"/{_response_id(handle)}/cancel")
        except BackendTransportError as error:
            if error.status not in _NOTHING_TO_CANCEL:
                raise

    async def aclose(self) -> None:
        """Close the connections, if the HTTP client is not the caller's."""
        await self._endpoint.aclose()

    async def _answer(self, prompt: Prompt) -> AsyncGenerator[Frame, None]:
        answer = await self._endpoint.post(self._body(prompt), key_header(prompt.idempotency_key))
        async with aclosing(self._follow(answer)) as found:
            async for frame in found:
                yield frame

    async def _joined(self, handle: JsonValue) -> AsyncGenerator[Frame, None]:
        id = _response_id(handle)
        async with aclosing(self._follow(await self._stream_of(id), id)) as found:
            async for frame in found:
                yield frame

    async def _follow(
        self, answer: Answer | None, id: str | None = None
    ) -> AsyncGenerator[Frame, None]:
        """Yield a response to its end, over as many connections as it takes.

        `answer` None: it cannot be streamed any more, and is looked at until it is over.
        """
        reader = self._reader()
        tries = 0
        try:
            while not reader.is_over:
                reached = reader.sequence
                id = id or reader.response_id
                read = self._looks(reader, id) if answer is None else self._read(answer, reader)
                async with aclosing(read) as found:
                    async for frame in found:
                        yield frame
                if not reader.is_over:
                    tries = 1 if reader.sequence > reached else tries + 1
                    answer = await self._join(reader, tries)
            for frame in reader.ending():
                yield frame
        except BackendTransportError as failure:
            self._endpoint.hide_secrets(failure)
            if not reader.is_over:
                # What a failed answer used is billed as well.
                for frame in reader.usage_so_far():
                    yield frame
            raise

    async def _read(self, answer: Answer, reader: ResponseReader) -> AsyncGenerator[Frame, None]:
        """Yield what comes over one connection; `reader.lost` is why there is no more."""
        async with aclosing(answer):
            while not reader.is_over:
                try:
                    chunk = await answer.chunk(self._endpoint.idle_timeout_ms)
                except BackendTransportError as failure:
                    reader.lost = failure
                    return
                if not chunk:
                    reader.lost = reader.cut_off()
                    return
                for frame in reader.feed(chunk):
                    yield frame

    async def _looks(self, reader: ResponseReader, id: str | None) -> AsyncGenerator[Frame, None]:
        """Yield what a response has come to, once it is over."""
        looks = 0
        while not reader.is_over:
            looks += 1
            with _instead_of_not_kept(reader.lost):
                body = await self._endpoint.call("GET", f"/{id}")
            for frame in reader.look(body):
                yield frame
            if not reader.is_over:
                wait_ms = self._endpoint.retry.wait_ms(looks, chance=0)
                await asyncio.sleep(min(wait_ms, LOOK_MS) / 1_000)

    async def _join(self, reader: ResponseReader, tries: int) -> Answer | None:
        """Return the rest of a response whose connection was lost, if the provider keeps it.

        None: it has it, but streams no more of it.
        """
        retry, lost = self._endpoint.retry, reader.lost
        assert lost is not None
        if not reader.can_be_joined or tries >= retry.tries_max:
            raise lost
        await asyncio.sleep(retry.wait_ms(tries, chance=random_float()) / 1_000)
        reader.reconnect()
        with _instead_of_not_kept(lost):
            if tries > 1 and await self._is_over(f"{reader.response_id}"):
                # It ended without an event that says so, as one does that was cancelled.
                return None
            return await self._stream_of(f"{reader.response_id}", starting_after=reader.sequence)

    async def _stream_of(self, id: str, *, starting_after: int | None = None) -> Answer | None:
        """Return the events of a response, None if it is kept and not streamed any more."""
        behind = {} if starting_after is None else {"starting_after": str(starting_after)}
        try:
            return await self._endpoint.get(f"/{id}", {"stream": "true", **behind})
        except BackendTransportError as error:
            if error.status not in _NOT_STREAMED:
                raise
            return None

    async def _is_over(self, id: str) -> bool:
        try:
            response = json.loads(await self._endpoint.call("GET", f"/{id}"))
        except ValueError:
            return False
        return fields_of(response).get("status") in _OVER

    def _refuse_first(self, first: bytes) -> None:
        """Raise BackendTransportError for an error where the answer should begin."""
        if begins_with_error(first):
            reader = self._reader()
            found = [*reader.feed(first), *(reader.ending() if reader.is_over else ())]
            assert not found

    def _reader(self) -> ResponseReader:
        return ResponseReader(self.name, retry_statuses=self._endpoint.retry.retry_statuses)

    def _body(self, prompt: Prompt) -> bytes:
        name, is_kept = replay_name(self.name), prompt.extra_body.get("store") is not False
        told = [_told(replay_in(message, name), is_kept=is_kept) for message in prompt.messages]
        asked = zip(prompt.messages, told, strict=True)
        return request_body(
            {
                "model": prompt.model or self.model,
                "input": [item for message, items in asked for item in _items(message, items)],
                "stream": True,
                "background": is_kept or None,
                "store": True,
                "tools": [_tool(tool) for tool in prompt.tools] or None,
                "tool_choice": _choice(prompt.tool_choice) if prompt.tools else None,
                "text": _format(prompt.response_format),
                "temperature": prompt.temperature,
                "max_output_tokens": prompt.max_tokens,
                **prompt.extra_body,
            }
        )


@contextmanager
def _instead_of_not_kept(lost: BackendTransportError | None) -> Generator[None]:
    """Raise, where a response is not kept, what it was lost by: it may be asked for again."""
    try:
        yield
    except BackendTransportError as error:
        if lost is not None and error.status in _NOT_KEPT:
            raise lost from error
        raise


def _response_id(handle: JsonValue) -> str:
    named = cast("dict[str, Any]", handle).get("response") if isinstance(handle, dict) else None
    if not isinstance(named, str) or not RESPONSE_ID.fullmatch(named):
        raise UsageError(f"a handle of this backend names a response, not {handle!r:.100}")
    return named


# The chat completions' shape as that of responses.


def _told(items: list[dict[str, JsonValue]], *, is_kept: bool) -> list[dict[str, JsonValue]]:
    """Return what the provider once said, unless it has not kept a thought that it kept secret."""
    thoughts = (item for item in items if item.get("type") == "reasoning")
    return items if is_kept or all(item.get("encrypted_content") for item in thoughts) else []


def _items(
    message: Mapping[str, JsonValue], told: Sequence[Mapping[str, JsonValue]]
) -> Iterator[JsonValue]:
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        called = message.get("tool_call_id")
        output = _content(role, content)
        yield {"type": "function_call_output", "call_id": called, "output": output}
        return
    calls: Sequence[Mapping[str, Any]] = message.get("tool_calls") or ()
    if told and len(calls) == sum(item.get("type") == "function_call" for item in told):
        # The calls stand in between as they are answered: their ids may be others by now.
        ids = (call["id"] for call in calls)
        for item in told:
            is_call = item.get("type") == "function_call"
            yield {**item, "call_id": next(ids)} if is_call else item
        return
    if content:
        yield {"role": role, "content": _content(role, content)}
    for call in calls:
        function = call["function"]
        yield {
            "type": "function_call",
            "call_id": call["id"],
            "name": function["name"],
            "arguments": function["arguments"],
        }


def _content(role: JsonValue, content: JsonValue) -> JsonValue:
    if not isinstance(content, list):
        return content
    parts = cast("list[dict[str, Any]]", content)
    return [_part(part, "output_text" if role == "assistant" else "input_text") for part in parts]


def _part(part: Mapping[str, Any], text_type: str) -> JsonValue:
    if part.get("type") == "text":
        return {"type": text_type, "text": part.get("text")}
    if part.get("type") == "image_url":
        image: Mapping[str, Any] = part["image_url"]
        detail = {"detail": image["detail"]} if image.get("detail") else {}
        return {"type": "input_image", "image_url": image["url"], **detail}
    if part.get("type") == "file":
        return {"type": "input_file", **part["file"]}
    return dict(part)


def _tool(tool: Mapping[str, Any]) -> JsonValue:
    function: Mapping[str, Any] | None = tool.get("function")
    return dict(tool) if function is None else {"type": "function", **function}


def _choice(choice: str | Mapping[str, JsonValue] | None) -> JsonValue:
    return choice if choice is None or isinstance(choice, str) else _tool(choice)


def _format(wanted: Mapping[str, Any] | None) -> JsonValue:
    if wanted is None:
        return None
    schema: Mapping[str, Any] | None = wanted.get("json_schema")
    return {"format": dict(wanted) if schema is None else {"type": wanted["type"], **schema}}
