"""One figure that stands by itself, and what a commit promises where it was taken."""

from __future__ import annotations

from typing import Final, NamedTuple

_PROMISES: Final = {
    "sqlite": {"full": "WAL, synchronous=FULL", "normal": "WAL, synchronous=NORMAL"},
    "postgres": {"full": "synchronous_commit=on", "normal": "synchronous_commit=off"},
    "file": {"full": "fdatasync", "normal": "no flush"},
    "d1": {"full": "workerd's own (SQLite in a folder)"},
    "memory": {"full": "nothing is kept"},
}
_OF_PEERS: Final = {
    ("restate", "sqlite"): "the log of its server, fsync",
}
"""Where a peer keeps what it does elsewhere than the other sides."""


class Alone(NamedTuple):
    """One figure; `durability` is the promise of a commit behind it, if there is one."""

    name: str
    value: float
    unit: str
    how: str
    durability: str = ""


def promise(store: str, durability: str = "full") -> str:
    """Return what a commit promises in a store, in the words of that database."""
    known = _PROMISES["postgres" if store == "postgresql" else store]
    return known.get(durability, known["full"])


def promises(store: str, durability: str, sides: tuple[str, ...]) -> str:
    """Return the same for a comparison, with the sides that differ."""
    others = [f"{side}: {_OF_PEERS[side, store]}" for side in sides if (side, store) in _OF_PEERS]
    return "; ".join([promise(store, durability), *others])
