"""Joining an answer that went on upstream: what readers have of it is skipped, and compared."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

from perdure.core.frames import DELTA_KINDS, KEPT_KINDS, Frame, part_element
from perdure.core.records import JsonValue


async def join(
    frames: AsyncIterator[Frame], seen: Sequence[Mapping[str, JsonValue]]
) -> AsyncGenerator[Frame, None] | None:
    """Return what follows in `frames` behind `seen`; None where they are not the same answer.

    `seen` are the parts that readers have, as `fold_parts` makes them. Takes from `frames` its
    `upstream_begin`, and as much as readers have, which must be there already. What is returned is
    closed by its reader; where it is None, or this raises, `frames` is closed.
    """
    expected = _Expected(seen)
    behind: list[Frame] = []
    is_joined = False
    try:
        if (first := await anext(frames, None)) is None or first.kind != "upstream_begin":
            return None
        while not expected.is_met:
            frame = await anext(frames, None)
            if frame is None or not expected.take(frame, behind):
                return None
        is_joined = True
    finally:
        if not is_joined:
            await _close(frames)
    return _rest(behind, frames)


async def _rest(behind: Sequence[Frame], frames: AsyncIterator[Frame]) -> AsyncGenerator[Frame]:
    try:
        for frame in behind:
            yield frame
        async for frame in frames:
            if frame.kind != "upstream_begin":
                yield frame
    finally:
        await _close(frames)


async def _close(frames: AsyncIterator[Frame]) -> None:
    close = getattr(frames, "aclose", None)
    if close is not None:
        await close()


class _Expected:
    """What readers have of an answer and has not been met again."""

    def __init__(self, seen: Sequence[Mapping[str, JsonValue]]) -> None:
        self._texts: dict[str, str] = {}
        self._elements: list[Mapping[str, JsonValue]] = []
        for part in seen:
            kind = part["k"]
            if kind in DELTA_KINDS:
                self._texts[kind] = self._texts.get(kind, "") + part["d"]
            else:
                self._elements.append(part)
        self._elements.reverse()

    @property
    def is_met(self) -> bool:
        return not self._elements and not any(self._texts.values())

    def take(self, frame: Frame, behind: list[Frame]) -> bool:
        """Meet a frame, and add to `behind` what of it is new; False if it is another answer's."""
        if frame.kind in DELTA_KINDS:
            return self._take_delta(frame, behind)
        if frame.kind in KEPT_KINDS:
            if self._elements:
                return self._elements.pop() == part_element(frame)
        elif frame.kind == "upstream_begin":
            return True
        behind.append(frame)
        return True

    def _take_delta(self, frame: Frame, behind: list[Frame]) -> bool:
        known, delta = self._texts.get(frame.kind, ""), frame.data["delta"]
        length = min(len(known), len(delta))
        if known[:length] != delta[:length]:
            return False
        self._texts[frame.kind] = known[length:]
        if length < len(delta):
            rest = {**frame.data, "delta": delta[length:]}
            behind.append(frame._replace(data=rest))
        return True
