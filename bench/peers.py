"""The virtual environments of the peers, each with a library that others would choose."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

HOME: Final = Path(__file__).parent.parent / ".venv-bench"

PEERS: Final = {
    "dbos": ("dbos>=3.4,<4",),
    "langgraph": (
        "langgraph>=1.2,<2",
        "langgraph-checkpoint-sqlite>=3.1,<4",
        "langgraph-checkpoint-postgres>=3.2,<4",
        "psycopg[binary,pool]>=3.2,<4",
    ),
    "restate": ("restate-sdk>=1.3,<1.4", "hypercorn>=0.18,<0.19", "httpx>=0.28,<0.29"),
    "absurd": ("absurd-sdk>=0.5,<0.6", "absurdctl>=0.5,<0.6", "psycopg[binary]>=3.2,<4"),
}


class Peer(NamedTuple):
    """A peer's interpreter, and the version of the library in it."""

    python: Path
    version: str


def peer(name: str) -> Peer:
    """Return the peer, installed if it is not there yet. Raises CalledProcessError."""
    folder = HOME / name
    python = folder / "bin" / "python"
    if not (folder / ".complete").exists():
        print(f"Installing {name} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        _pip(python, "install", "--quiet", *PEERS[name])
        (folder / ".complete").touch()
    return Peer(python, _version(python, PEERS[name][0]))


def _pip(python: Path, *arguments: str) -> None:
    command: Sequence[str] = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


def _version(python: Path, requirement: str) -> str:
    library = requirement.split(">=")[0].split("[")[0]
    asked = f"from importlib.metadata import version; print(version({library!r}))"
    found = subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True)
    return found.stdout.strip()
