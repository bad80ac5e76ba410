"""What a turn amounts to while it streams: its parts, its text and what it used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from perdure.core import frames
from perdure.core.changes import SettleUsage
from perdure.core.frames import DELTA_KINDS, KEPT_KINDS, Frame
from perdure.core.jsonvalue import encode_value
from perdure.core.limits import TURN_LOG_BYTES_MAX
from perdure.core.records import JsonValue
from perdure.errors import UsageError

is_a: Callable[[object, type[object]], bool] = isinstance
"""`isinstance` that narrows nothing: checkers take the fields of a dict that it finds for unknown,
and to tell them otherwise takes as long at each token."""

_PIECES_MAX: Final = 128
_DELTA_FIELDS: Final = 2
"""So many have the event of a plain delta, its data (`delta`, `part`) and its part."""
_DELTA_PART: Final = dict.fromkeys(("id", "type")).keys()


def frame_of(item: object) -> Frame:
    """Return the frame that a producer's item stands for.

    A reference producer yields events `{type, data}`. One that is nothing but a delta of a known
    part is kept as text, which merges; any other travels verbatim. Raises UsageError, also for a
    frame that a producer cannot make, or that its readers could not be shown.
    """
    taken = frame_or_event(item)
    return taken if isinstance(taken, Frame) else frames.event(taken)


def frame_or_event(item: Any) -> Frame | dict[str, JsonValue]:
    """Return the frame of an item as `frame_of` does, but an event that travels verbatim as it is.

    There may be one for each token, and what is kept of it is its JSON.
    """
    if isinstance(item, Frame):
        if item.kind in DELTA_KINDS:
            return item
        frame = _checked(item)
        return frame.data["event"] if frame.kind == "event" and len(frame.data) == 1 else frame
    if not is_a(item, dict) or type(item.get("type")) is not str:
        raise UsageError(
            "a producer yields frames (perdure.frames) or events {type, data}, "
            f"not {type(item).__name__}"
        )
    return _delta_of(item) or item


_NEEDED: Final[Mapping[str, frozenset[str]]] = {
    "tool_call": frozenset({"call", "name", "args"}),
    "tool_result": frozenset({"call"}),
    "source": frozenset({"url", "title"}),
    "data": frozenset({"name", "value"}),
    "event": frozenset({"event"}),
    "usage": frozenset(),
    "upstream_end": frozenset({"finish"}),
}
"""What the readers of each kind of frame rely on."""
_COUNTS: Final = frozenset({"in", "out", "cached", "cache_written", "reasoning"})


def _checked(frame: Frame) -> Frame:
    kind, data = frame.kind, frame.data
    needed = _NEEDED.get(kind)
    if needed is None:
        raise UsageError(f"a producer yields no frames of kind {kind!r}")
    missing = needed - data.keys()
    if missing:
        raise UsageError(f"a {kind} frame lacks {', '.join(sorted(missing))}")
    if kind == "tool_result" and not data.keys() & {"result", "error"}:
        raise UsageError("a tool_result frame needs a result or an error")
    if kind == "event" and type(_fields(data["event"]).get("type")) is not str:
        raise UsageError("an event frame needs an event {type, data}")
    if kind == "data" and type(data["name"]) is not str:
        raise UsageError("the name of a data frame must be a str")
    if kind == "upstream_end" and type(data["finish"]) is not str:
        raise UsageError("the finish reason of an upstream_end frame must be a str")
    if kind == "usage" and not all(type(data.get(name, 0)) is int for name in _COUNTS):
        raise UsageError("a usage frame counts tokens in integers")
    if "replay" in data and kind == "upstream_end":
        # It may be long, and only whoever asks the model again has a use for it.
        return frame._replace(data={name: data[name] for name in data if name != "replay"})
    return frame


def _fields(value: JsonValue) -> Mapping[str, JsonValue]:
    """Return the fields of a JSON object; none of anything else."""
    return value if is_a(value, dict) else _NONE


_NONE: Final[Mapping[str, JsonValue]] = MappingProxyType({})


def _delta_of(event: Mapping[str, JsonValue]) -> Frame | None:
    # Most events are told apart by how many fields they have, which costs the least.
    if len(event) != _DELTA_FIELDS or event["type"] != "message.part.updated":
        return None
    data: Any = event.get("data")
    if not is_a(data, dict) or len(data) != _DELTA_FIELDS:
        return None
    part: Any = data.get("part")
    if not is_a(part, dict) or len(part) != _DELTA_FIELDS or part.keys() != _DELTA_PART:
        return None
    delta = data.get("delta")
    if not isinstance(delta, str):
        return None
    kind, part_id = part["type"], part["id"]
    # The reference adds every delta to the final text, those of reasoning too: these stay events.
    if kind != "text" or not isinstance(part_id, str) or not delta:
        return None
    return Frame(0, 0, kind, {"part": part_id, "delta": delta})


def text_change(event: Mapping[str, JsonValue]) -> tuple[str, bool] | None:
    """Return what a reference event does to the running text (its rules): the text, and whether it
    takes the place of what there is; mostly nothing."""
    kind = event.get("type")
    if kind == "message.part.updated":
        data = _fields(event.get("data"))
        delta = data.get("delta")
        if isinstance(delta, str) and delta:
            return delta, False
        part = _fields(data.get("part"))
        whole = part.get("text") if part.get("type") == "text" else None
    elif kind == "result":
        whole = _fields(event.get("data")).get("finalText")
    else:
        return None
    return (whole, True) if isinstance(whole, str) else None


def spoken_in(frame: Frame) -> int:
    """Return how much of what a model says is in a frame: characters, or 1 for an event."""
    if frame.kind in DELTA_KINDS:
        return len(frame.data["delta"])
    return 1 if frame.kind == "event" else 0


class _Growing:
    """A text that grows by small pieces, which are joined now and then: each costs 64 bytes."""

    __slots__ = ("_chunks", "_pieces")

    def __init__(self) -> None:
        self._chunks: list[str] = []
        self._pieces: list[str] = []

    def add(self, piece: str) -> None:
        self._pieces.append(piece)
        if len(self._pieces) == _PIECES_MAX:
            self._chunks.append("".join(self._pieces))
            self._pieces.clear()

    def __str__(self) -> str:
        return "".join((*self._chunks, *self._pieces))


class Content:
    """Parts and text of a turn, gathered frame by frame."""

    def __init__(self) -> None:
        self.spoken = 0
        """How much of what a model says there was in this attempt, as `spoken_in` counts."""
        self._parts: list[str | list[str] | tuple[str, str]] = []
        """Encoded, or (events that follow each other) their texts, or (a part that grows) its kind
        and name: objects would cost far more room."""
        self._texts: dict[tuple[str, str], _Growing] = {}
        self._text = _Growing()
        self._usage: list[Frame] = []

    def add(self, frame: Frame, element_text: str | None = None) -> None:
        """Take in one numbered frame; `element_text` is how it is stored, if that is known."""
        kind, data = frame.kind, frame.data
        if kind in DELTA_KINDS:
            delta: str = data["delta"]
            self.spoken += len(delta)
            key = (kind, data["part"])
            text = self._texts.get(key)
            if text is None:
                text = self._texts[key] = _Growing()
                self._parts.append(key)
            text.add(delta)
            if kind == "text":
                self._text.add(delta)
        elif kind in KEPT_KINDS:
            if element_text is None:
                element_text = encode_value({"k": kind, **data}, name=f"{kind} frame")
            self._parts.append(element_text)
            if kind == "event":
                self._follow(data["event"])
        elif kind == "usage":
            self._usage.append(frame)

    def add_event(self, event: Mapping[str, JsonValue], event_text: str) -> None:
        """Take in an event that is a frame of its own; `event_text` is how it is stored."""
        last = self._parts[-1] if self._parts else None
        if type(last) is list:
            last.append(event_text)
        else:
            self._parts.append([event_text])
        self._follow(event)

    def _follow(self, event: Mapping[str, JsonValue]) -> None:
        self.spoken += 1
        change = text_change(event)
        if change is not None:
            text, replaces = change
            if replaces:
                self._text = _Growing()
            self._text.add(text)

    @property
    def text(self) -> str:
        """The final text by the reference's rules: text deltas as they came."""
        return str(self._text)

    @property
    def part_texts(self) -> list[str]:
        """Parts by first appearance as JSON, the deltas of each joined.

        Events that follow each other are one text.
        """
        told: list[str] = []
        for part in self._parts:
            if isinstance(part, str):
                told.append(part)
            elif isinstance(part, list):
                told.append(frames.event_elements(part))
            else:
                told.append(self._grown(*part))
        return told

    def _grown(self, kind: str, name: str) -> str:
        part = {"k": kind, "part": name, "d": str(self._texts[kind, name])}
        return encode_value(part, name=f"{kind} part", bytes_max=TURN_LOG_BYTES_MAX)

    def usage(self, call: int) -> SettleUsage | None:
        """Return the sum of what the usage frames said; None if there was none."""
        return usage_in(self._usage, call)


def usage_in(told: Sequence[Frame], call: int, *, epoch: int | None = None) -> SettleUsage | None:
    """Return the sum of what these usage frames say of a call; None if there are none.

    `epoch` is set for the call of an earlier attempt.
    """
    if not told:
        return None
    last = told[-1].data

    def total(name: str) -> int | None:
        known = [frame.data[name] for frame in told if name in frame.data]
        return sum(known) if known else None

    return SettleUsage(
        call,
        provider=last.get("provider"),
        model=last.get("model"),
        request_id=last.get("request"),
        tokens_in=total("in"),
        tokens_out=total("out"),
        tokens_cached=total("cached"),
        tokens_reasoning=total("reasoning"),
        tokens_cache_written=total("cache_written"),
        epoch=epoch,
    )
