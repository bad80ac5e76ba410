"""What a backend is: something that answers a prompt with a stream of frames."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from perdure.core.frames import Frame
from perdure.core.records import JsonValue


class Prompt(NamedTuple):
    """What a model is asked: a whole conversation, and how to answer it.

    `messages` and `tools` have the shape of the chat completions API: `{"role", "content"}` and
    `{"type": "function", "function": {"name", "description"?, "parameters"?}}`; `tool_choice`
    is `auto`, `none`, `required` or `{"type": "function", "function": {"name"}}` and counts only
    with tools. `model` None asks the backend's own. `idempotency_key` is equal whenever the same
    question is asked again after a crash. `extra_body` is merged into the request, for what has
    no name here. What is None is not sent.
    """

    messages: Sequence[Mapping[str, JsonValue]]
    model: str | None = None
    idempotency_key: str | None = None
    tools: Sequence[Mapping[str, JsonValue]] = ()
    tool_choice: str | Mapping[str, JsonValue] | None = None
    response_format: Mapping[str, JsonValue] | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    extra_body: Mapping[str, JsonValue] = {}


@runtime_checkable
class Backend(Protocol):
    """Whoever answers prompts. One instance serves any number of calls at once."""

    @property
    def name(self) -> str:
        """The provider, as it stands in usage rows."""
        ...

    @property
    def model(self) -> str | None:
        """The model that is asked when a prompt names none."""
        ...

    def stream(self, prompt: Prompt) -> AsyncIterator[Frame]:
        """Ask, and yield the answer as it arrives; the call is made at the first `anext`.

        Yields deltas (`text`, `reasoning`), `tool_call` (and `tool_result`, if the backend runs
        the tools itself), then at most one `usage`, and last exactly one `upstream_end`, which
        says that the provider finished. An answer without it is not whole, and never ends
        silently: BackendTransportError, or BackendTimeoutError when nothing came in time; the
        error's `retryable` says whether the same call may succeed later.

        Cancelling the reader, or closing an iterator that has `aclose`, ends the call upstream.
        """
        ...

    async def aclose(self) -> None:
        """Give back connections; calls that are still running may fail."""
        ...


@runtime_checkable
class AttachableBackend(Backend, Protocol):
    """A backend whose provider goes on with an answer although nobody listens.

    Its `stream` yields, before anything else, one `upstream_begin` with the handle of the answer.
    Closing the iterator leaves the answer running: `attach` joins it again, in this process or in
    another one, and `cancel` ends it.
    """

    def attach(self, handle: JsonValue) -> AsyncIterator[Frame]:
        """Join an answer, and yield it from its beginning as `stream` would, to its end.

        The texts and the other frames are the same as they were, however they are cut. Raises
        BackendTransportError, at the first `anext`, for an answer that is not kept any more.
        """
        ...

    async def cancel(self, handle: JsonValue) -> None:
        """End an answer. One that is over, or not kept, stays as it is."""
        ...
