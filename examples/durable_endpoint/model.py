"""A model that takes its time, and writes down what it was asked: every question costs money."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

ANSWER = "An answer that you have paid for should not be lost because somebody closed a tab ."


async def ask_model(message: str) -> AsyncIterator[str]:
    """Yield the words of an answer, one by one."""
    note("asked", message)
    for word in ANSWER.split():
        await asyncio.sleep(0.05)
        yield f"{word} "
    note("answered", message)


def note(what: str, message: str) -> None:
    with Path("model.log").open("a", encoding="utf-8") as log:
        log.write(f"{what}: {message}\n")
