"""Telling who watches or counts a model call what its backend knows of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from perdure.core import billing, observing
from perdure.core.billing import Asked
from perdure.core.frames import Frame
from perdure.core.observing import Told


def telling(
    frames: AsyncGenerator[Frame, None], *, provider: str, model: str | None
) -> AsyncGenerator[Frame, None]:
    """Return the frames of a call, of which is told as they come if anybody watches or counts."""
    asked = billing.counted(provider, model)
    if observing.observer is None and asked is None:
        return frames
    return _told(frames, provider, model, asked)


async def _told(
    frames: AsyncGenerator[Frame, None], provider: str, model: str | None, asked: Asked | None
) -> AsyncGenerator[Frame, None]:
    count = None if asked is None else asked()
    observing.tell(Told(provider=provider, model=model))
    has_begun = False
    async with aclosing(frames):
        async for frame in frames:
            if frame.kind == "usage" and count is not None:
                # Not every server says which model has answered.
                count(frame.data if "model" in frame.data else {**frame.data, "model": model})
            if frame.kind == "upstream_end":
                observing.tell(Told(finish=frame.data["finish"]))
            elif not has_begun and frame.kind not in ("upstream_begin", "usage"):
                has_begun = True
                observing.tell(Told(has_begun=True))
            yield frame
