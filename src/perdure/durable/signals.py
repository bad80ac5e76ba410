"""Hearing that a process is told to stop before its server does, which would wait for streams."""

from __future__ import annotations

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
    first: Callable[[], object], again: Callable[[], object]
) -> Generator[None, None, None]:
    """Within the block, a signal to stop calls `first`, and every later one `again`.

    They are called in a signal handler, so they may do little more than `call_soon_threadsafe`.
    Whoever handled the signals before still does, afterwards. Outside the main thread nothing
    is heard, for only that one may handle signals; a block that is left there is not left.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        (again if heard else first)()
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
        is_main = threading.current_thread() is threading.main_thread()
        for each, handler in before.items():
            # Whoever took the signal over in the meantime keeps it.
            if is_main and signal.getsignal(each) is hear:
                signal.signal(each, handler)
