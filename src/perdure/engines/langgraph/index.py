"""Where everything of a LangGraph thread stands in its log: checkpoints, writes and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from perdure.engines.row_log import Row

Versions = dict[str, str | int | float]
"""The version of each channel."""


class Place(NamedTuple):
    """Where an entry is: its row, which one of it, and the number of the row it was first in."""

    number: int
    at: int
    first_number: int


class Held(NamedTuple):
    """A checkpoint that the log holds; `turn` is the number of the turn that it came with."""

    place: Place
    parent: str | None
    versions: Versions
    turn: int | None


class Base(NamedTuple):
    """Where a turn begins: its checkpoint, the row up to which it looks, the last row there was."""

    checkpoint_id: str | None
    row: int
    seen: int


class ChannelPath(NamedTuple):
    """What a channel got on the way to a checkpoint: writes by ancestor, the nearest first.

    `seed` is where its value stands in the last of them.
    """

    writes: list[list[Place]]
    seed: Place | None

    @property
    def places(self) -> list[Place]:
        found = [place for places in self.writes for place in places]
        return found if self.seed is None else [*found, self.seed]


class ThreadIndex:
    """Where everything of a thread is; its values stay in the store.

    `upto` in what it answers hides the rows behind that number, as they were numbered at first.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._checkpoints: dict[str, dict[str, Held]] = {}
        self._writes: dict[tuple[str, str], list[Place]] = {}
        self._values: dict[tuple[str, str, Any], Place] = {}
        self.saved_turns: set[str] = set()
        """The runs of the turns whose end is in the log."""

    def fold(self, number: int, row: Row) -> None:
        """Take in the next row."""
        for index, entry in enumerate(row):
            place = Place(number, index, entry.get("was", number))
            turn, run_id = entry.get("turn", (None, None))
            if run_id is not None:
                self.saved_turns.add(run_id)
            if "writes" in entry:
                self._writes.setdefault((entry["ns"], entry["id"]), []).append(place)
            elif "checkpoint" in entry:
                held = Held(place, entry["parent"], entry["versions"], turn)
                self._checkpoints.setdefault(entry["ns"], {})[entry["id"]] = held
                for channel, (version, *_) in entry["values"].items():
                    self._values[entry["ns"], channel, version] = place

    @property
    def namespaces(self) -> list[str]:
        return [*self._checkpoints]

    def find(
        self, ns: str, checkpoint_id: str | None, *, upto: int | None = None
    ) -> tuple[str, Held] | None:
        """Return a checkpoint by its id, or the newest of the namespace."""
        held = self._checkpoints.get(ns, {})
        ids = held.keys() if checkpoint_id is None else held.keys() & {checkpoint_id}
        found = max((id for id in ids if _is_seen(held[id].place, upto)), default=None)
        return None if found is None else (found, held[found])

    def base_of(self, turn_index: int, *, last: int) -> Base:
        """Return where a turn begins: behind the turns before it, for it may be answered again."""
        held = self._checkpoints.get("", {})
        if not any(each.turn is not None and each.turn >= turn_index for each in held.values()):
            found = self.find("", None)
            return Base(None if found is None else found[0], last, last)
        earlier = [
            (each.place.first_number, id)
            for id, each in held.items()
            if each.turn is not None and each.turn < turn_index
        ]
        row, id = max(earlier, default=(0, None))
        return Base(id, row, last)

    def newest_first(self, ns: str | None) -> list[tuple[str, str]]:
        """Return namespace and id of every checkpoint (of one namespace), newest first."""
        wanted = self._checkpoints if ns is None else [ns]
        found = [(each, id) for each in wanted for id in self._checkpoints.get(each, {})]
        return sorted(found, key=lambda pair: pair[1], reverse=True)

    def writes_to(self, ns: str, checkpoint_id: str, *, upto: int | None = None) -> list[Place]:
        """Return where the writes to a checkpoint are, in the order in which they came."""
        places = self._writes.get((ns, checkpoint_id), [])
        return [place for place in places if _is_seen(place, upto)]

    def values_of(self, ns: str, versions: Versions) -> dict[str, Place]:
        """Return where the values of these channels are, but for those that are empty."""
        found = {name: self._values.get((ns, name, each)) for name, each in versions.items()}
        return {name: place for name, place in found.items() if place is not None}

    def child_since(
        self, ns: str, parent: str | None, number: int, *, but: str | None = None
    ) -> str | None:
        """Return a checkpoint, other than `but`, that came behind a row and goes on from parent."""
        for id, held in self._checkpoints.get(ns, {}).items():
            if held.parent == parent and held.place.first_number > number and id != but:
                return id
        return None

    def places_of(self, ns: str, id: str, held: Held, *, upto: int | None = None) -> list[Place]:
        """Return where everything is that makes up a checkpoint."""
        values = self.values_of(ns, held.versions).values()
        return [held.place, *values, *self.writes_to(ns, id, upto=upto)]

    def path_of(self, ns: str, checkpoint_id: str, channel: str) -> ChannelPath:
        """Return how a channel came to be what it is at a checkpoint."""
        writes: list[list[Place]] = []
        for id in self.ancestors(ns, checkpoint_id):
            writes.append(self.writes_to(ns, id))
            seed = self.values_of(ns, self._checkpoints[ns][id].versions).get(channel)
            if seed is not None:
                return ChannelPath(writes, seed)
        return ChannelPath(writes, None)

    def ancestors(self, ns: str, checkpoint_id: str) -> Iterator[str]:
        """Yield the parent of a checkpoint, the parent of that, and so on."""
        held = self._checkpoints.get(ns, {})
        known = held.get(checkpoint_id)
        while known is not None and known.parent is not None and known.parent in held:
            yield known.parent
            known = held[known.parent]


def _is_seen(place: Place, upto: int | None) -> bool:
    return upto is None or place.first_number <= upto
