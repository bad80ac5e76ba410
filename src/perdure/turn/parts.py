"""What a turn amounts to while it streams: its parts, its text and what it used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from perdure.core import frames
from perdure.core.changes import SettleUsage
from perdure.core.frames import DELTA_KINDS, KEPT_KINDS, Frame
from perdure.core.records import JsonValue
from perdure.errors import UsageError

_DELTA_EVENT = {"type", "data"}
_DELTA_DATA = {"delta", "part"}
_DELTA_PART = {"id", "type"}


def frame_of(item: object) -> Frame:
    """Return the frame that a producer's item stands for.

    A reference producer yields events `{type, data}`. One that is nothing but a delta of a known
    part is kept as text, which merges; any other travels verbatim. Raises UsageError.
    """
    if isinstance(item, Frame):
        return item
    if not isinstance(item, dict) or not isinstance(item.get("type"), str):
        raise UsageError(
            "a producer yields frames (perdure.frames) or events {type, data}, "
            f"not {type(item).__name__}"
        )
    event = cast("dict[str, JsonValue]", item)
    return _delta_of(event) or frames.event(event)


def _delta_of(event: Mapping[str, JsonValue]) -> Frame | None:
    data = event.get("data")
    if event["type"] != "message.part.updated" or event.keys() != _DELTA_EVENT:
        return None
    if not isinstance(data, dict) or data.keys() != _DELTA_DATA:
        return None
    delta, part = data["delta"], data["part"]
    if not isinstance(part, dict) or part.keys() != _DELTA_PART or not isinstance(delta, str):
        return None
    kind, part_id = part["type"], part["id"]
    if kind not in DELTA_KINDS or not isinstance(part_id, str) or not delta:
        return None
    return Frame(0, 0, kind, {"part": part_id, "delta": delta})


def text_after(event: Mapping[str, JsonValue], text: str) -> str:
    """Return the running text after a reference event (its rules)."""
    data = event.get("data")
    if not isinstance(data, dict):
        return text
    if event.get("type") == "message.part.updated":
        delta, part = data.get("delta"), data.get("part")
        if isinstance(delta, str) and delta:
            return text + delta
        whole = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        return whole if isinstance(whole, str) else text
    if event.get("type") == "result" and isinstance(data.get("finalText"), str):
        return str(data["finalText"])
    return text


class Content:
    """Parts and text of a turn, gathered frame by frame."""

    def __init__(self) -> None:
        self.frames = 0
        """How many frames of content there were in this attempt."""
        self._parts: list[dict[str, JsonValue]] = []
        self._pieces: dict[tuple[str, str], list[str]] = {}
        self._text: list[str] = []
        self._usage: list[Frame] = []

    def add(self, frame: Frame) -> None:
        """Take in one numbered frame."""
        kind, data = frame.kind, frame.data
        if kind in DELTA_KINDS:
            self.frames += 1
            key = (kind, data["part"])
            pieces = self._pieces.get(key)
            if pieces is None:
                pieces = self._pieces[key] = []
                self._parts.append({"k": kind, "part": key[1], "d": pieces})
            pieces.append(data["delta"])
            if kind == "text":
                self._text.append(data["delta"])
        elif kind in KEPT_KINDS:
            self.frames += 1
            self._parts.append({"k": kind, **data})
            if kind == "event":
                self._text = [text_after(data["event"], "".join(self._text))]
        elif kind == "usage":
            self._usage.append(frame)

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def parts(self) -> list[dict[str, JsonValue]]:
        return [
            {**part, "d": "".join(part["d"])} if part["k"] in DELTA_KINDS else part
            for part in self._parts
        ]

    def usage(self, call: int) -> SettleUsage | None:
        """Return the sum of what the usage frames said; None if there was none."""
        if not self._usage:
            return None
        last = self._usage[-1].data

        def total(name: str) -> int | None:
            known = [frame.data[name] for frame in self._usage if name in frame.data]
            return sum(known) if known else None

        return SettleUsage(
            call,
            model=last.get("model"),
            request_id=last.get("request"),
            tokens_in=total("in"),
            tokens_out=total("out"),
            tokens_cached=total("cached"),
            tokens_reasoning=total("reasoning"),
        )
