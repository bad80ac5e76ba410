"""Events of a stream as they may leave, its deltas masked as the one text that they are.

A model says a credential in as many deltas as its tokens are. Seen one by one they look like
nothing, so a delta waits here until what it may belong to is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, cast

from perdure.core.records import JsonValue
from perdure.core.secret import REDACTED
from perdure.core.wire import to_wire
from perdure.observe.credentials import credentials_in
from perdure.observe.rules import cut, is_on
from perdure.observe.sanitize import DELTAS_WITH, sanitize_event
from perdure.observe.telemetry import RuntimeTelemetryOptions

HELD_CHARACTERS_MAX: Final = 1_024
"""So much waits at most: a longer text leaves with what can be masked of it."""

_KINDS: Final = ("text_delta", "reasoning_delta")
_CONTEXT_CHARACTERS: Final = 64
"""So much of what has left is looked at again, for what it begins."""
_WORDS_OF_A_LEAD: Final = 4
_LEADS: Final = re.compile(
    r"(?i:pass(?:word|phrase|code|wd)|pwd|secret|credential|token|[_ -]?key\b|authorization|cookie"
    r"|bearer|basic|(?<![\w-])-[a-z]{0,3}u\b|--(?:proxy-)?user|-----begin)"
)
"""What may lead to a secret that has not been said yet."""

Event = dict[str, JsonValue]
Spans = Sequence[tuple[int, int]]


class _Held(NamedTuple):
    kept: Event
    text: str


class SanitizedStream:
    """Takes the events of one stream in order, and returns those that may leave, as they may.

    No event is lost, split or overtaken, and each keeps its place: a delta whose last word is not
    over, or which names a secret that may follow, waits for the next one. Whatever is no delta of
    the same kind lets go what waits. So does `rest`, at the end.

    What is masked is what `mask_text` finds in the whole text, except where that is longer than
    HELD_CHARACTERS_MAX, and where somebody reads from the middle of a stream on.
    """

    def __init__(self, options: RuntimeTelemetryOptions) -> None:
        self._options = options
        self._shows_words = is_on(options, *DELTAS_WITH)
        self._held: list[_Held] = []
        self._context = ""
        self._is_inside = False
        """Whether what has left ends within a credential, in whose place the mark stands."""

    def take(self, event: object, kept: Event | None = None) -> list[Event]:
        """Return what may leave now; `kept`: the event, if it is sanitised already.

        Raises what `sanitize_event` does.
        """
        if kept is None:
            kept = sanitize_event(event, self._options)
        if kept["type"] not in _KINDS or "text" not in kept or not self._shows_words:
            return [*self.rest(), kept]
        before = self._held[-1].kept["type"] if self._held else kept["type"]
        left = self.rest() if before != kept["type"] else []
        self._held.append(_Held(kept, delta_of(event)))
        return [*left, *self._release()]

    def rest(self) -> list[Event]:
        """Return all that waits."""
        left = self.waiting
        self._held.clear()
        self._context, self._is_inside = "", False
        return left

    @property
    def waiting(self) -> list[Event]:
        """What waits, as it would leave if nothing followed."""
        if not self._held:
            return []
        whole, spans = self._read()
        return self._shown(whole, spans, until=len(whole))

    def _read(self) -> tuple[str, Spans]:
        whole = self._context + "".join(each.text for each in self._held)
        return whole, list(credentials_in(whole))

    def _release(self) -> list[Event]:
        whole, spans = self._read()
        left = self._shown(whole, spans, until=_known_until(whole, spans))
        if not left:
            return []
        gone = self._held[: len(left)]
        del self._held[: len(left)]
        end = len(self._context) + sum(len(each.text) for each in gone)
        within = next(
            (first for first, last in spans if first < end < last or end == last == len(whole)),
            None,
        )
        # Of a credential that goes on, what leads to it and its beginning is what it is known by.
        about = end if within is None else within
        at = max(0, about - _CONTEXT_CHARACTERS)
        self._context = whole[at : min(end, about + _CONTEXT_CHARACTERS)]
        self._is_inside = within is not None
        return left

    def _shown(self, whole: str, spans: Spans, *, until: int) -> list[Event]:
        """Return the events that are over before `until`, masked."""
        shown: list[Event] = []
        begin = len(self._context)
        for kept, text in self._held:
            end = begin + len(text)
            if end > until:
                break
            masked = self._masked(whole, begin, end, spans)
            shown.append({**kept, "text": cut(masked, self._options)})
            begin = end
        return shown

    def _masked(self, whole: str, begin: int, end: int, spans: Spans) -> str:
        """Return a piece of the whole; the mark stands where a credential begins, once."""
        pieces: list[str] = []
        at, seen = begin, len(self._context)
        for first, last in spans:
            if last <= begin or first >= end:
                continue
            pieces.append(whole[at : max(at, first)])
            if first >= begin or (begin == seen and not self._is_inside):
                pieces.append(REDACTED)
            at = min(last, end)
        return "".join((*pieces, whole[at:end]))


def delta_of(event: object) -> str:
    """Return the text of a delta, given as a record or in wire form."""
    wire = to_wire(event)
    found = cast("Mapping[str, JsonValue]", wire).get("text") if isinstance(wire, dict) else None
    return found if isinstance(found, str) else ""


def _known_until(text: str, spans: Spans) -> int:
    """Return how much of a text that goes on is certainly not the beginning of a credential."""
    until = _before_last_word(text)
    lead = _LEADS.search(text, _words_back(text, _WORDS_OF_A_LEAD))
    if lead is not None:
        until = min(until, lead.start())
    for begin, end in spans:
        if begin < until < end or end == len(text):
            until = min(until, begin)
    return len(text) if len(text) - until > HELD_CHARACTERS_MAX else until


def _before_last_word(text: str) -> int:
    """Return where the word begins that is not over; credentials are words in ASCII."""
    at = len(text)
    while at and "!" <= text[at - 1] <= "~" and len(text) - at <= HELD_CHARACTERS_MAX:
        at -= 1
    return at


def _words_back(text: str, count: int) -> int:
    at = len(text)
    for _ in range(count + 1):
        at = max(0, text.rfind(" ", 0, at))
    return at
