"""Stores with runs in them, and the command run in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from perdure.cli.main import main
from perdure.core.effects import Clock, system_clock
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from tests.cli.commands import Ended

T = TypeVar("T")


class Desk:
    """One store, and the command beside it. Every call of either is over when it returns."""

    def __init__(self, url: str, told: pytest.CaptureFixture[str]) -> None:
        self.url = url
        self._told = told

    def work(self, work: Callable[[RunStore], Awaitable[T]], *, clock: Clock = system_clock) -> T:
        """Open the store, have `work` done with it, and close it."""

        async def whole() -> T:
            store = await open_store(self.url, durability="normal", clock=clock)
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(whole())

    def run(self, *arguments: str, store: bool = True) -> Ended:
        """Run the command on the store."""
        self._told.readouterr()
        try:
            code = main([*arguments, *(("--store", self.url) if store else ())])
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Ended(code, *self._told.readouterr())

    def json(self, *arguments: str) -> list[Any]:
        """Run the command with `--json`, which must be well, and return what it printed."""
        ended = self.run(*arguments, "--json")
        assert ended.code == 0, ended
        return [json.loads(line) for line in ended.out.splitlines()]


def url_in(folder: Path, kind: str) -> str:
    return f"{kind}:{folder / 'runs'}"
