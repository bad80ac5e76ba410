"""A scripted model server of another project in its own process, which counts its calls."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from tests.node_packages import NODE_TESTS

FIXTURES = Path(__file__).with_name("aimock_fixtures.json")


class Aimock(NamedTuple):
    """A running server; its journal begins empty for each test."""

    origin: str

    @property
    def base_url(self) -> str:
        return f"{self.origin}/v1"

    def journal(self) -> Sequence[Mapping[str, Any]]:
        """Return one entry for each call that arrived, refused ones included."""
        entries: list[Mapping[str, Any]] = httpx2.get(f"{self.origin}/__aimock/journal").json()
        return entries

    def forget(self) -> None:
        httpx2.post(f"{self.origin}/__aimock/reset/journal").raise_for_status()


@contextmanager
def running_aimock() -> Iterator[Aimock]:
    """Start the server on a free port, and end it."""
    program = str(NODE_TESTS / "node_modules" / ".bin" / "llmock")
    options = ["--host", "127.0.0.1", "--port", "0", "--fixtures", str(FIXTURES), "--strict"]
    command = [program, *options, "--chunk-size", "8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            listening = next(line for line in process.stdout if "listening on" in line)
            yield Aimock(listening.split()[-1])
        finally:
            process.kill()
