"""Hearing that a process is told to stop before its server does, which would wait for streams."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def hearing_signals(
    first: Callable[[], None], again: Callable[[], None]
) -> Generator[None, None, None]:
    """Within the block, a signal to stop calls `first` on the running loop, a later one `again`.

    Whoever handled the signals before still does, afterwards. Outside the main thread nothing
    is heard, for only that one may handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {}
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(again if heard else first)
        heard.append(number)
        handler = before[number]
        if callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:
            signal.signal(number, handler)
            os.kill(os.getpid(), number)

    for number in SIGNALS:
        # One that was not set from Python can be neither called nor put back.
        if signal.getsignal(number) is not None:
            before[number] = signal.signal(number, hear)
    try:
        yield
    finally:
        for each, handler in before.items():
            # Whoever took the signal over in the meantime keeps it.
            if signal.getsignal(each) is hear:
                signal.signal(each, handler)
