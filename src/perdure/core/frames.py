"""The items of a turn's stream: their kinds, how they are stored, and the cursor a reader keeps.

A stored row is a JSON array (ASCII) of elements. Neighbouring deltas of one part are one element
whose `d` is a list, and stand for as many frames; every other element is one frame.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, cast

from perdure.core.jsonvalue import decode_value, encode_value
from perdure.core.limits import DEPTH_MAX, FRAME_BYTES_MAX
from perdure.core.records import Effect, JsonValue
from perdure.errors import CursorError, StoreCorruptError

TERMINAL_KINDS: Final = frozenset({"completed", "failed", "stopped"})
DELTA_CHARS_MAX: Final = 8 * 1024
"""A longer delta is cut. A character has at most twelve bytes, so a piece has at most 96 KiB."""
DELTA_KINDS: Final = frozenset({"text", "reasoning"})
KEPT_KINDS: Final = frozenset(
    {"text", "reasoning", "tool_call", "tool_result", "source", "data", "event"}
)
"""What a reader keeps of a turn: the kinds that become parts of its result."""
MARK_KINDS: Final = frozenset({"upstream_end", "wait"})
"""What is stored for the next attempt, and belongs to no part of what readers see."""
SEALED_KIND: Final = "sealed"
"""Stands for all frames of a sealed row, under the seq of the last of them."""
URGENT_KINDS: Final = frozenset(
    {"tool_call", "tool_result", "event", "upstream_end", "restarted"} | TERMINAL_KINDS
)
"""What is flushed without lingering, but for what `is_waited_for` knows better."""

_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_quote = json.encoder.encode_basestring_ascii
_CURSOR = re.compile(r"(\d{4,9})_(\d{10})_([0-9a-f]{6})", re.ASCII)


class Frame(NamedTuple):
    """One item of a turn's stream.

    `seq` rises by 1 within a turn over all attempts, from 1 (`started`, never stored, is 0).
    Deltas are `{"part", "delta"}`; the other kinds carry what their constructor below takes.
    A frame that a producer makes has seq 0 and epoch 0 until the journal numbers it.
    """

    seq: int
    epoch: int
    kind: str
    data: Mapping[str, JsonValue]


def text(delta: str, part: str | None = None) -> Frame:
    """Return a piece of the answer's text; `part` None: the text part that is being written."""
    return Frame(0, 0, "text", {"part": part, "delta": delta})


def reasoning(delta: str, part: str | None = None) -> Frame:
    """Return a piece of the model's reasoning."""
    return Frame(0, 0, "reasoning", {"part": part, "delta": delta})


def tool_call(call: str, name: str, args: JsonValue, effect: Effect = "at_most_once") -> Frame:
    """Return the begin of a tool call; `effect` decides whether an interrupted one may repeat."""
    return Frame(0, 0, "tool_call", {"call": call, "name": name, "args": args, "effect": effect})


def tool_result(
    call: str, result: JsonValue = None, *, error: Mapping[str, JsonValue] | None = None
) -> Frame:
    """Return the end of a tool call: its result, or its error `{code, message}`."""
    if error is not None:
        return Frame(0, 0, "tool_result", {"call": call, "error": dict(error)})
    return Frame(0, 0, "tool_result", {"call": call, "result": result})


def source(url: str, title: str | None = None) -> Frame:
    """Return a source that the answer cites."""
    return Frame(0, 0, "source", {"url": url, "title": title})


def data(name: str, value: JsonValue) -> Frame:
    """Return a product's own item; on the wire `{"type": name, "data": value}`."""
    return Frame(0, 0, "data", {"name": name, "value": value})


def event(value: Mapping[str, JsonValue]) -> Frame:
    """Return a reference producer's event `{type, data}`, which travels verbatim."""
    return Frame(0, 0, "event", {"event": dict(value)})


class EncodedEvent(Mapping[str, JsonValue]):
    """The data of an event frame as it is stored and sent: JSON, read when it is asked for.

    A turn without pauses would else hold five objects for each of its events.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __getitem__(self, key: str) -> JsonValue:
        if key != "event":
            raise KeyError(key)
        return decode_value(self.text)

    def __iter__(self) -> Iterator[str]:
        return iter(("event",))

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return event_element(self.text)


def encoded_event(event: Mapping[str, JsonValue]) -> EncodedEvent:
    """Check and encode an event. Raises NotSerializableError, ValueTooLargeError."""
    return EncodedEvent(
        encode_value(
            event,
            name="event frame.event",
            bytes_max=FRAME_BYTES_MAX,
            depth_max=DEPTH_MAX - 1,  # Its frame is one more.
        )
    )


_EVENT_HEAD: Final = '{"k":"event","event":'


def event_element(event_text: str) -> str:
    """Return the stored form of the frame of an event that is JSON already."""
    return f"{_EVENT_HEAD}{event_text}}}"


def event_elements(event_texts: Iterable[str]) -> str:
    """Return the stored form of events that follow each other, as one text."""
    return event_element(_NEXT_EVENT.join(event_texts))


def usage(
    *,
    model: str | None = None,
    tokens_in: int | None = None,
    tokens_out: int | None = None,
    tokens_cached: int | None = None,
    tokens_reasoning: int | None = None,
    request_id: str | None = None,
    provider: str | None = None,
    tokens_cache_written: int | None = None,
) -> Frame:
    """Return what a model call used, as far as the provider said; None is unknown.

    `tokens_cached` were read from the provider's cache, `tokens_cache_written` written there; both
    are part of `tokens_in`, and `tokens_reasoning` of `tokens_out`.
    """
    known = {
        "model": model,
        "in": tokens_in,
        "out": tokens_out,
        "cached": tokens_cached,
        "cache_written": tokens_cache_written,
        "reasoning": tokens_reasoning,
        "request": request_id,
        "provider": provider,
    }
    return Frame(0, 0, "usage", {key: value for key, value in known.items() if value is not None})


def upstream_begin(handle: JsonValue) -> Frame:
    """Return the mark that a provider has begun an answer that can be joined by `handle`.

    It is for the turn, which keeps the handle; it is never stored or shown as a frame.
    """
    return Frame(0, 0, "upstream_begin", {"handle": handle})


def upstream_end(finish: str, *, replay: JsonValue = None) -> Frame:
    """Return the mark that the model's answer is whole; `finish` is the provider's reason.

    `replay` is what the provider wants back with the results of tools. It is for whoever asks
    again; it is never stored or shown with the frame.
    """
    told = {"finish": finish}
    return Frame(0, 0, "upstream_end", told if replay is None else {**told, "replay": replay})


def piece_count(frame: Frame) -> int:
    """Return into how many frames the journal cuts `frame`."""
    if frame.kind not in DELTA_KINDS:
        return 1
    return -(-len(frame.data["delta"]) // DELTA_CHARS_MAX)


def is_waited_for(frame: Frame) -> bool:
    """Return whether a reader waits for this frame, so that it is flushed without lingering."""
    if frame.kind == "upstream_end":
        # That of a step is written along with its result.
        return "step" not in frame.data
    if frame.kind == "event":
        return is_waited_event(frame.data["event"])
    return frame.kind in URGENT_KINDS


def is_waited_event(event: Mapping[str, JsonValue]) -> bool:
    """Return whether a reader waits for this event, which may be a token like any other."""
    told: object = event.get("data")
    return not (isinstance(told, dict) and "delta" in told)


def part_element(frame: Frame) -> dict[str, JsonValue]:
    """Return `frame` as one stored element, a delta as a single string."""
    if frame.kind in DELTA_KINDS:
        return {"k": frame.kind, "part": frame.data["part"], "d": frame.data["delta"]}
    return {"k": frame.kind, **frame.data}


def part_frame(element: Mapping[str, JsonValue], *, seq: int = 0, epoch: int = 0) -> Frame:
    """Return the single frame that `element` stands for, its deltas joined."""
    kind = element["k"]
    if kind in DELTA_KINDS:
        pieces = element["d"]
        delta = pieces if isinstance(pieces, str) else "".join(pieces)
        return Frame(seq, epoch, kind, {"part": element["part"], "delta": delta})
    return Frame(seq, epoch, kind, {key: value for key, value in element.items() if key != "k"})


_NEXT_EVENT: Final = f"}},{_EVENT_HEAD}"
_EVENT_BYTES: Final = len(_NEXT_EVENT)


class RowBuilder:
    """Collects frames that follow each other without a gap, and writes them as one row.

    Each value is encoded once, and `size_bytes` is exactly what `body` has.
    """

    def __init__(self, first_seq: int) -> None:
        self.first_seq = first_seq
        self.count = 0
        self.size_bytes = 2
        self._elements: list[str] = []
        self._kind: str = ""
        self._part: str = ""
        """What the open elements are: deltas of one part, or events; no kind if there are none."""
        self._head = ""
        self._pieces: list[str] = []

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.count - 1

    def add_delta(self, kind: str, part: str, delta: str) -> None:
        """Add a delta; neighbours of one part become one element."""
        if part != self._part or kind != self._kind:
            self._close()
            self._kind, self._part = kind, part
            self._head = f'{{"k":{_quote(kind)},"part":{_quote(part)},"d":['
            self.size_bytes += len(self._head) + (2 if self._elements else 1)
        piece = _quote(delta)
        self._pieces.append(piece)
        self.size_bytes += len(piece) + 1
        self.count += 1

    def add_event(self, event_text: str) -> None:
        """Add the frame of an event, encoded."""
        if self._kind != "event":
            self._close()
            self._kind = "event"
        self._pieces.append(event_text)
        self.size_bytes += len(event_text) + (_EVENT_BYTES if self.count else _EVENT_BYTES - 1)
        self.count += 1

    def add_element(self, element_text: str) -> None:
        """Add a frame of another kind, encoded."""
        if self._pieces:
            self._close()
        self.size_bytes += len(element_text) + (1 if self._elements else 0)
        self._elements.append(element_text)
        self.count += 1

    def body(self) -> str:
        """Return the row; more may be added afterwards."""
        self._close()
        return f"[{','.join(self._elements)}]"

    def _close(self) -> None:
        if not self._pieces:
            return
        if self._kind == "event":
            self._elements.append(event_elements(self._pieces))
        else:
            self._elements.append(f"{self._head}{','.join(self._pieces)}]}}")
        self._kind, self._pieces = "", []


def encode_row(frames: Sequence[Frame]) -> str:
    """Return the body of a row that holds `frames`, which follow each other without a gap."""
    row = RowBuilder(frames[0].seq if frames else 1)
    for frame in frames:
        if frame.kind in DELTA_KINDS:
            row.add_delta(frame.kind, frame.data["part"], frame.data["delta"])
        else:
            row.add_element(_dumps({"k": frame.kind, **frame.data}))
    return row.body()


def decode_row(first_seq: int, epoch: int, body: str) -> list[Frame]:
    """Return the frames of a stored row."""
    frames: list[Frame] = []
    seq = first_seq
    try:
        for element in json.loads(body):
            pieces = element.get("d")
            if isinstance(pieces, list):
                kind, part = element["k"], element["part"]
                for piece in cast("list[str]", pieces):
                    frames.append(Frame(seq, epoch, kind, {"part": part, "delta": piece}))
                    seq += 1
            elif element["k"] == SEALED_KIND:
                seq = element["to"]
                frames.append(part_frame(element, seq=seq, epoch=epoch))
                seq += 1
            else:
                frames.append(part_frame(element, seq=seq, epoch=epoch))
                seq += 1
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreCorruptError(f"the frames from seq {first_seq} cannot be read") from error
    return frames


def fold_parts(frames: Iterable[Frame]) -> list[dict[str, JsonValue]]:
    """Return what a reader keeps of `frames`: elements by first appearance, deltas joined."""
    parts: list[dict[str, JsonValue]] = []
    pieces: dict[tuple[str, str], list[str]] = {}
    for frame in frames:
        kind = frame.kind
        if kind == "restarted":
            parts, pieces = [], {}
        elif kind in DELTA_KINDS:
            key = (kind, frame.data["part"])
            known = pieces.get(key)
            if known is None:
                pieces[key] = known = []
                parts.append({"k": kind, "part": key[1], "d": known})
            known.append(frame.data["delta"])
        elif kind in KEPT_KINDS:
            parts.append({"k": kind, **frame.data})
    for part in parts:
        if part["k"] in DELTA_KINDS:
            part["d"] = "".join(part["d"])
    return parts


def text_of(parts: Iterable[Mapping[str, JsonValue]]) -> str:
    """Return the text of folded parts, in order."""
    return "".join(part["d"] for part in parts if part["k"] == "text")


def cursor_mark(stored_id: str) -> str:
    """Return the constant last part of every cursor of a run."""
    return hashlib.sha256(stored_id.encode("utf-8", "surrogatepass")).hexdigest()[:6]


def format_cursor(epoch: int, seq: int, mark: str) -> str:
    """Return the opaque text that a reader keeps after the frame `seq` of attempt `epoch`."""
    return f"{epoch:04d}_{seq:010d}_{mark}"


def parse_cursor(cursor: str, mark: str) -> tuple[int, int]:
    """Return epoch and seq of the frame that `cursor` stands behind.

    Raises CursorError if it is malformed or of another run.
    """
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise CursorError(f"the cursor {cursor[:40]!r} is malformed")
    if match[3] != mark:
        raise CursorError(f"the cursor {cursor!r} belongs to another turn")
    return int(match[1]), int(match[2])
