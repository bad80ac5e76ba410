"""The producer that most products begin with: ask a model, with the conversation so far."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from perdure.backends.joining import join
from perdure.backends.protocol import AttachableBackend, Backend, Prompt
from perdure.core.frames import Frame
from perdure.core.records import JsonValue
from perdure.errors import AttachmentsNotShownError, BackendTransportError
from perdure.turn.attachments import Attachment, attachments_from_json
from perdure.turn.handout import Turn

logger = logging.getLogger("perdure.turn")

GO_ON: Final = (
    "Your last answer was cut off by a technical failure. Go on exactly where it ended: do not "
    "repeat any of it, do not begin anew, and do not mention the interruption."
)
"""What a model is asked that may not be handed the beginning of its own answer."""

Message = Mapping[str, JsonValue]
AttachmentPart = Callable[[Attachment], JsonValue | Awaitable[JsonValue]]
"""Makes of an attachment what the model is shown of it."""


class BackendProducer:
    """A producer that answers each turn by one call of `backend`.

    The model is given `instructions` (as the system message), the history of the turn and the
    user's message; the turn's own `model` counts before that of the backend. An attempt after a
    crash asks again, under the same idempotency key. `provider` and `model` stand in the usage
    row that is written before the call, so that a bill whose answer was lost can be found.

    An interrupted answer is joined again (`attach`) if the backend is an AttachableBackend. With
    `on_interrupted="continue"` (`continue_partial`) the model is shown what there is of it and
    asked by a user message to go on. `accepts_prefill` declares that the model goes on by itself
    behind a last message of the assistant, as few do, so that it need not be asked.

    `attachment_part` makes of an attachment the part of a message that the model is shown, such as
    `{"type": "image_url", "image_url": {"url": …}}`; it may be plain or async, and is asked anew in
    every attempt, so that an address may be short-lived; `attachment_text` and `image_part` are two
    such. Without it a message with attachments is refused (`shows_attachments` is False): a model
    that does not see them would answer something else.

    `extra_body` is merged into each request: how long to think, say, or None for a field that the
    endpoint does not know.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        instructions: str | None = None,
        accepts_prefill: bool = False,
        attachment_part: AttachmentPart | None = None,
        extra_body: Mapping[str, JsonValue] | None = None,
    ) -> None:
        self.provider = backend.name
        self.model = backend.model
        self._backend = backend
        self._instructions = instructions
        self._accepts_prefill = accepts_prefill
        self.shows_attachments = attachment_part is not None
        self._attachment_part = attachment_part
        self._extra_body = dict(extra_body or {})

    def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
        return self._answer(turn, [], turn.idempotency_key)

    async def attach(self, turn: Turn) -> AsyncIterator[Frame] | None:
        """Join the answer upstream; None where the backend cannot, or has another answer."""
        backend = self._backend
        if not isinstance(backend, AttachableBackend):
            return None
        try:
            return await join(backend.attach(turn.upstream), turn.partial.parts)
        except BackendTransportError as error:
            logger.info("an answer cannot be joined again: %s", error)
            return None

    def continue_partial(self, turn: Turn) -> AsyncIterator[Frame]:
        """Ask the model to go on behind what readers have.

        It is another question, so it has another idempotency key, the same for the same partial.
        """
        behind = partial_messages(turn.partial.parts)
        if not self._accepts_prefill:
            behind.append({"role": "user", "content": GO_ON})
        key = f"{turn.idempotency_key}:{len(turn.partial.text)}"
        return self._answer(turn, behind, key)

    async def cancel(self, handle: JsonValue) -> None:
        """End the answer upstream that nobody waits for."""
        if isinstance(self._backend, AttachableBackend):
            await self._backend.cancel(handle)

    async def _asked(self, turn: Turn) -> list[Message]:
        messages: list[Message] = []
        if self._instructions is not None:
            messages.append({"role": "system", "content": self._instructions})
        for message in turn.history:
            attached = attachments_from_json(message.get("attachments"))
            messages.append(await self._said(message["content"], attached) if attached else message)
        messages.append(await self._said(turn.user_message, turn.attachments))
        return messages

    async def _said(self, text: JsonValue, attachments: Sequence[Attachment]) -> Message:
        """Return what a user said, with the parts of what came along behind the text."""
        if not attachments:
            return {"role": "user", "content": text}
        if self._attachment_part is None:
            raise AttachmentsNotShownError(
                "the conversation has attachments, which this producer cannot show to the model: "
                "give answer_with an `attachment_part`"
            )
        parts: list[JsonValue] = [{"type": "text", "text": text}]
        for attachment in attachments:
            part = self._attachment_part(attachment)
            parts.append(await part if inspect.isawaitable(part) else part)
        return {"role": "user", "content": parts}

    async def _answer(self, turn: Turn, behind: list[Message], key: str) -> AsyncIterator[Frame]:
        messages = [*await self._asked(turn), *behind]
        prompt = Prompt(messages, turn.model, key, extra_body=self._extra_body)
        frames = self._backend.stream(prompt)
        async with AsyncExitStack() as stack:
            # The call upstream must end with the turn, not when the garbage is collected.
            aclose = getattr(frames, "aclose", None)
            if aclose is not None:
                stack.push_async_callback(aclose)
            async for frame in frames:
                yield frame


def partial_messages(parts: Iterable[Mapping[str, JsonValue]]) -> list[Message]:
    """Return the beginning of an answer as messages: its text, and tools that have answered.

    Reasoning, and a tool call without a result, are left out.
    """
    messages: list[Message] = []
    known = list(parts)
    results = {part["call"]: part for part in known if part["k"] == "tool_result"}
    spoken: list[str] = []
    for part in known:
        if part["k"] == "text":
            spoken.append(part["d"])
        elif part["k"] == "tool_call" and part["call"] in results:
            messages += _tool_messages(part, results[part["call"]], "".join(spoken))
            spoken.clear()
    if spoken:
        messages.append({"role": "assistant", "content": "".join(spoken)})
    return messages


def _tool_messages(
    call: Mapping[str, JsonValue], result: Mapping[str, JsonValue], spoken: str
) -> list[Message]:
    function = {"name": call["name"], "arguments": json.dumps(call["args"])}
    calls: list[Any] = [{"id": call["call"], "type": "function", "function": function}]
    told = result["error"] if "error" in result else result["result"]
    return [
        {"role": "assistant", "content": spoken or None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": call["call"], "content": json.dumps(told)},
    ]


def attachment_text(attachment: Attachment) -> Message:
    """Return an attachment as a part of text that names it, and where it is if it says so."""
    size = "" if attachment.size_bytes is None else f", {attachment.size_bytes} bytes"
    where = "" if attachment.url is None else f": {attachment.url}"
    named = attachment.name or attachment.id
    return {"type": "text", "text": f"[Attachment {named} ({attachment.media_type}{size}){where}]"}


def image_part(attachment: Attachment) -> Message:
    """Return an image with an http(s) address as a part that the model's provider fetches.

    Everything else is named by a text, as `attachment_text` does.
    """
    url, is_image = attachment.url or "", attachment.media_type.lower().startswith("image/")
    if is_image and url.lower().startswith(("http://", "https://")):
        return {"type": "image_url", "image_url": {"url": url}}
    return attachment_text(attachment)


def answer_with(
    backend: Backend,
    *,
    instructions: str | None = None,
    accepts_prefill: bool = False,
    attachment_part: AttachmentPart | None = None,
    extra_body: Mapping[str, JsonValue] | None = None,
) -> BackendProducer:
    """Return a producer that answers each turn by one call of `backend`.

    `instructions` is the system message. With `on_interrupted="continue"` an interrupted answer is
    gone on with: the model is asked by a user message, unless `accepts_prefill` declares that it
    goes on by itself behind the beginning of its answer. `attachment_part` makes of an Attachment
    the part of a message that the model is shown, as `attachment_text` and `image_part` do;
    without it a message with attachments is refused when it is submitted. `extra_body` is merged
    into each request, for what has no name here: how long to think, how warm, how long an answer.
    """
    return BackendProducer(
        backend,
        instructions=instructions,
        accepts_prefill=accepts_prefill,
        attachment_part=attachment_part,
        extra_body=extra_body,
    )
