"""What of a response has been told, and what of the whole one has not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from perdure.backends.fields import object_of, objects_of, string_of
from perdure.core.frames import Frame
from perdure.core.records import JsonValue

Item = Mapping[str, JsonValue]


class LeftOutError(Exception):
    """What was told is not the beginning of the whole: something is missing within it."""


class ToldResponse:
    """What readers have of a response; `items` is its output as far as that is whole."""

    def __init__(self) -> None:
        self.items: list[dict[str, JsonValue]] = []
        self._texts: dict[str, list[str]] = {"text": [], "reasoning": []}
        self._sources = 0

    def note(self, frames: Iterable[Frame]) -> None:
        """Note that these frames have been told."""
        for frame in frames:
            if frame.kind in self._texts:
                self._texts[frame.kind].append(frame.data["delta"])
            elif frame.kind == "source":
                self._sources += 1

    def rest(self, output: JsonValue) -> Iterator[tuple[str, Item]]:
        """Yield, as events of a stream, what stands in a whole output and has not been told.

        Raises LeftOutError where it cannot be told any more, and ValueError for what is none.
        """
        known = {kind: "".join(pieces) for kind, pieces in self._texts.items()}
        items = {_key(item) for item in self.items}
        sources = self._sources
        for item in objects_of(output):
            for kind, event, written in _texts_in(item):
                if more := _behind(known, kind, written):
                    yield event, {"delta": more}
            for annotation in _annotations_in(item):
                sources -= 1
                if sources < 0:
                    yield "response.output_text.annotation.added", {"annotation": annotation}
            if _key(item) not in items:
                yield "response.output_item.done", {"item": item}


def _behind(known: dict[str, str], kind: str, written: str) -> str:
    """Return what of a text is not known, and take the rest out of what is."""
    length = min(len(known[kind]), len(written))
    if known[kind][:length] != written[:length]:
        if kind == "text":
            raise LeftOutError
        # Thoughts are told in several forms: the more so they are no reason to fail.
        return ""
    known[kind] = known[kind][length:]
    return written[length:]


def _key(item: Item) -> tuple[str, str, str]:
    return (
        string_of(item.get("type")),
        string_of(item.get("id")),
        string_of(item.get("call_id")),
    )


def _texts_in(item: Item) -> Iterator[tuple[str, str, str]]:
    """Yield what an item says and thinks: the kind of frame, the event of it, and the text."""
    parts = objects_of(item.get("content"))
    if item.get("type") == "message":
        for part in parts:
            written = string_of(part.get("text")) or string_of(part.get("refusal"))
            yield "text", "response.output_text.delta", written
    elif item.get("type") == "reasoning":
        for part in parts:
            yield "reasoning", "response.reasoning_text.delta", string_of(part.get("text"))
        for index, part in enumerate(objects_of(item.get("summary"))):
            between = "\n\n" if index else ""
            thought = between + string_of(part.get("text"))
            yield "reasoning", "response.reasoning_summary_text.delta", thought


def _annotations_in(item: Item) -> Iterator[Item]:
    """Yield the citations of a message."""
    if item.get("type") != "message":
        return
    for part in objects_of(item.get("content")):
        for annotation in objects_of(part.get("annotations")):
            if annotation.get("type") == "url_citation" and string_of(annotation.get("url")):
                yield object_of(annotation)
