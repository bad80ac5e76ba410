"""A block of content of Anthropic's Messages API, which arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from perdure.backends.fields import arguments_of, object_of, string_of
from perdure.backends.provider_error import is_object
from perdure.core import frames
from perdure.core.frames import Frame
from perdure.core.records import Effect, JsonValue

_TOOL_USES: Final[Mapping[str, Effect]] = {
    "tool_use": "at_most_once",
    "mcp_tool_use": "at_most_once",
    # Searches, and code in a box that begins empty.
    "server_tool_use": "idempotent",
}
"""The blocks that call a tool, and whether an interrupted call may be repeated."""
_ARGUMENTS: Final = "input_json_delta"
_PIECES: Final = {
    _ARGUMENTS: "partial_json",
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
}
"""The pieces in which a block arrives, and the field that has them."""


class MessageBlock:
    """A block that is still arriving; `is_cut` says that the answer was cut off within it."""

    def __init__(self, described: Mapping[str, JsonValue]) -> None:
        self.kind = string_of(described.get("type"))
        self._described = described
        self._pieces: dict[str, list[str]] = {}
        self._citations: list[JsonValue] = []
        self.is_cut = False

    def add(self, delta: Mapping[str, JsonValue]) -> None:
        """Take in a piece, whatever it is a piece of. Raises ValueError."""
        kind = string_of(delta.get("type"))
        if kind == "citations_delta":
            self._citations.append(object_of(delta.get("citation")))
        elif kind in _PIECES:
            self._pieces.setdefault(kind, []).append(string_of(delta.get(_PIECES[kind])))

    @property
    def has_no_arguments(self) -> bool:
        """Whether it is a call for which none were written."""
        return self.kind in _TOOL_USES and self._arguments() == {}

    def call(self) -> Iterator[Frame]:
        """Yield the tool call that the block is, if it is one. Raises ValueError."""
        effect = _TOOL_USES.get(self.kind)
        if effect is None:
            return
        id, name = string_of(self._described.get("id")), string_of(self._described.get("name"))
        if not id or not name:
            raise ValueError("a call has an id and a name")
        yield frames.tool_call(id, name, self._arguments(), effect)

    def said(self) -> dict[str, JsonValue]:
        """Return the whole block as the provider takes it back."""
        said = dict(self._described)
        for kind, pieces in self._pieces.items():
            if kind != _ARGUMENTS:
                name = _PIECES[kind]
                said[name] = string_of(said.get(name)) + "".join(pieces)
        if self._citations:
            said["citations"] = [*(said.get("citations") or ()), *self._citations]
        if self.kind in _TOOL_USES:
            arguments = self._arguments()
            said["input"] = arguments if is_object(arguments) else {"arguments": arguments}
        return said

    def _arguments(self) -> JsonValue:
        written = "".join(self._pieces.get(_ARGUMENTS, ()))
        given = object_of(self._described.get("input"))
        if not written and (given or not self.is_cut):
            return given
        return arguments_of(written, is_cut=self.is_cut)
