"""Telling whoever watches a model call what its backend knows: whom it asks, when, how it ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from perdure.core import observing
from perdure.core.frames import Frame
from perdure.core.observing import Told


def telling(
    frames: AsyncGenerator[Frame, None], *, provider: str, model: str | None
) -> AsyncGenerator[Frame, None]:
    """Return the frames of a call, of which is told as they come if anybody watches."""
    return frames if observing.observer is None else _told(frames, provider, model)


async def _told(
    frames: AsyncGenerator[Frame, None], provider: str, model: str | None
) -> AsyncGenerator[Frame, None]:
    observing.tell(Told(provider=provider, model=model))
    has_begun = False
    async with aclosing(frames):
        async for frame in frames:
            if frame.kind == "upstream_end":
                observing.tell(Told(finish=frame.data["finish"]))
            elif not has_begun and frame.kind not in ("upstream_begin", "usage"):
                has_begun = True
                observing.tell(Told(has_begun=True))
            yield frame
