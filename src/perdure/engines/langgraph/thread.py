"""A LangGraph thread: its log, what that comes to, and LangGraph's values in it."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final, TypeVar, cast

from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from perdure.engines.langgraph.index import Base, ChannelPath, Held, Place, ThreadIndex
from perdure.engines.log_runs import LogKind
from perdure.engines.row_log import Entry, Row, RowLog
from perdure.store.protocol import RunStore

T = TypeVar("T")

THREADS: Final = LogKind(
    "langgraph", "langgraph-threads", "Keep the checkpoints of a LangGraph thread"
)

Check = Callable[[ThreadIndex], bool]
"""Says whether a row is still to be written, as the thread stands now."""

ROWS_ONE_BY_ONE: Final = 32
"""If more rows than that are asked for, the whole log is read at once."""


class Codec:
    """Between LangGraph's values and entries of a log, by a LangGraph serializer."""

    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde

    def checkpoint_entry(
        self,
        ns: str,
        parent: str | None,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Entry:
        """Return a checkpoint with the values that are new in it."""
        bare = dict(checkpoint)
        values = cast("dict[str, Any]", bare.pop("channel_values", {}))
        versions = bare.pop("channel_versions")
        return {
            "ns": ns,
            "id": checkpoint["id"],
            "parent": parent,
            "versions": versions,
            "checkpoint": self._dump(bare),
            "metadata": self._dump(metadata),
            "values": {
                name: [version, *self._dump(values[name])]
                for name, version in new_versions.items()
                if name in values
            },
        }

    def writes_entry(
        self, ns: str, checkpoint_id: str, writes: Sequence[tuple[str, Any]], task: str, path: str
    ) -> Entry:
        return {
            "ns": ns,
            "id": checkpoint_id,
            "task": task,
            "path": path,
            "writes": [
                [WRITES_IDX_MAP.get(channel, index), channel, *self._dump(value)]
                for index, (channel, value) in enumerate(writes)
            ],
        }

    def checkpoint(self, entry: Entry, values: Mapping[str, Any]) -> Checkpoint:
        """Return a checkpoint with these values."""
        whole = {
            **self._load(*entry["checkpoint"]),
            "channel_versions": dict(entry["versions"]),
            "channel_values": dict(values),
        }
        return cast("Checkpoint", whole)

    def metadata(self, entry: Entry) -> CheckpointMetadata:
        return cast("CheckpointMetadata", self._load(*entry["metadata"]))

    def value(self, entry: Entry, channel: str) -> Any:
        """Return the value that an entry of a checkpoint brought for a channel."""
        return self._load(*entry["values"][channel][1:])

    def pending_writes(
        self, entries: Sequence[Entry], *, channels: Sequence[str] | None = None
    ) -> list[PendingWrite]:
        """Return the writes of these entries in the order in which they are applied.

        The first write of a task under an index stays, but for errors and the like, whose last
        one counts.
        """
        held: dict[tuple[str, str, int], tuple[str, str, str]] = {}
        for entry in entries:
            for index, channel, kind, data in entry["writes"]:
                key = writes_sort_key(entry["path"], entry["task"], index)
                if index < 0 or key not in held:
                    held[key] = (channel, kind, data)
        return [
            (task, channel, self._load(kind, data))
            for (_, task, _), (channel, kind, data) in sorted(held.items())
            if channels is None or channel in channels
        ]

    def _dump(self, value: Any) -> list[str]:
        kind, data = self._serde.dumps_typed(value)
        return [kind, b64encode(data).decode()]

    def _load(self, kind: str, data: str) -> Any:
        return self._serde.loads_typed((kind, b64decode(data)))


@dataclass(frozen=True, slots=True)
class Assembled:
    """Rows of a thread by number, and what reads them."""

    thread_id: str
    index: ThreadIndex
    rows: Mapping[int, Row]
    codec: Codec
    last: int
    """The number of the last row of the log."""

    def entry(self, place: Place) -> Entry:
        return self.rows[place.number][place.at]

    def tuple_of(
        self, ns: str, id: str, held: Held, *, upto: int | None = None, extra: Mapping[str, Any]
    ) -> CheckpointTuple:
        """Return a checkpoint; its config says `extra` too."""
        entry = self.entry(held.place)
        places = self.index.values_of(ns, held.versions)
        values = {name: self.codec.value(self.entry(at), name) for name, at in places.items()}
        writes = [self.entry(at) for at in self.index.writes_to(ns, id, upto=upto)]
        parent = None if held.parent is None else self._config(ns, held.parent)
        return CheckpointTuple(
            config=self._config(ns, id, **extra),
            checkpoint=self.codec.checkpoint(entry, values),
            metadata=self.codec.metadata(entry),
            parent_config=parent,
            pending_writes=self.codec.pending_writes(writes),
        )

    def history(self, channel: str, path: ChannelPath) -> DeltaChannelHistory:
        """Return what a channel got, oldest first, as LangGraph defines it."""
        writes = [
            write
            for places in reversed(path.writes)
            for write in self.codec.pending_writes(
                [self.entry(place) for place in places], channels=[channel]
            )
        ]
        if path.seed is None:
            return {"writes": writes}
        return {"writes": writes, "seed": self.codec.value(self.entry(path.seed), channel)}

    def matches(self, held: Held, wanted: Mapping[str, Any]) -> bool:
        """Return whether the metadata of a checkpoint has all these values."""
        metadata = cast("Mapping[str, Any]", self.codec.metadata(self.entry(held.place)))
        return all(name in metadata and metadata[name] == each for name, each in wanted.items())

    # What is kept when the log is written anew.

    def everything(self) -> list[Entry]:
        return [*self._kept(self.index.newest_first(None))]

    def newest(self) -> list[Entry]:
        """Return the newest checkpoint of each namespace, and what its delta channels need."""
        kept: set[tuple[str, str]] = set()
        for ns in self.index.namespaces:
            found = self.index.find(ns, None)
            assert found is not None
            id, held = found
            kept.add((ns, id))
            metadata = self.codec.metadata(self.entry(held.place))
            for channel in metadata.get("counters_since_delta_snapshot", {}):
                path = self.index.path_of(ns, id, channel)
                kept |= {
                    (ns, each) for each in islice(self.index.ancestors(ns, id), len(path.writes))
                }
        return [*self._kept(kept)]

    def without(self, run_ids: Collection[str]) -> list[Entry]:
        """Return all but the checkpoints of these runs, and the writes to them."""
        kept: list[tuple[str, str]] = []
        for ns, id in self.index.newest_first(None):
            found = self.index.find(ns, id)
            assert found is not None
            if self.codec.metadata(self.entry(found[1].place)).get("run_id") not in run_ids:
                kept.append((ns, id))
        return [*self._kept(kept)]

    def _kept(self, wanted: Collection[tuple[str, str]]) -> Iterator[Entry]:
        """Yield the entries of these checkpoints, in their order, with all their values."""
        places: dict[Place, Held | None] = {}
        for ns, id in wanted:
            found = self.index.find(ns, id)
            assert found is not None
            places[found[1].place] = found[1]
            places.update(dict.fromkeys(self.index.writes_to(ns, id)))
        brought: set[tuple[str, str, Any]] = set()
        for place in sorted(places):
            entry, held = self.entry(place), places[place]
            if held is None:
                yield {**entry, "was": place.first_number}
                continue
            values: dict[str, Any] = {}
            for name, at in self.index.values_of(entry["ns"], held.versions).items():
                value = self.entry(at)["values"][name]
                if (entry["ns"], name, value[0]) not in brought:
                    brought.add((entry["ns"], name, value[0]))
                    values[name] = value
            yield {**entry, "values": values, "was": place.first_number}

    def _config(self, ns: str, checkpoint_id: str, **extra: Any) -> Any:
        return {
            "configurable": {
                "thread_id": self.thread_id,
                "checkpoint_ns": ns,
                "checkpoint_id": checkpoint_id,
                **extra,
            }
        }


@dataclass(slots=True)
class _Waiting:
    """A row that is to be written."""

    row: Row
    check: Check | None
    done: asyncio.Future[None]

    def is_wanted(self, index: ThreadIndex) -> bool:
        """Return whether it is to be written, as the thread stands now."""
        if self.done.done():
            return False
        try:
            return self.check is None or self.check(index)
        except Exception as error:
            self.fail(error)
            return False

    def fail(self, error: BaseException) -> None:
        if self.done.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self.done.cancel()
        else:
            self.done.set_exception(error)

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Thread:
    """A thread: its log, and the index that follows it."""

    def __init__(self, store: RunStore, thread_id: str, *, owner_id: str | None) -> None:
        self.thread_id = thread_id
        self._index = ThreadIndex()
        self._waiting: list[_Waiting] = []
        self._flushing: asyncio.Task[None] | None = None
        self._log = RowLog(
            store,
            THREADS,
            thread_id,
            owner_id=owner_id,
            fold=self._index.fold,
            forget=self._index.clear,
        )

    async def look(
        self,
        codec: Codec,
        places: Callable[[ThreadIndex], Iterable[Place]],
        build: Callable[[Assembled], T],
    ) -> T:
        """Return what is built of the rows at these places, as the thread stands now."""
        async with self._log.lock:
            while True:
                rows = dict(await self._log.catch_up())
                missing = {place.number for place in places(self._index)} - rows.keys()
                if len(missing) > ROWS_ONE_BY_ONE:
                    self._log.drop()
                    continue
                found = await asyncio.gather(*map(self._log.row, missing))
                if any(row is None for row in found):
                    continue  # It was written anew, or deleted, meanwhile.
                rows.update(zip(missing, cast("list[Row]", found), strict=True))
                return build(self._assembled(rows, codec))

    async def look_at_all(self, codec: Codec, build: Callable[[Assembled], T]) -> T:
        """Return what is built of all rows."""
        async with self._log.lock:
            self._log.drop()
            return build(self._assembled(await self._log.catch_up(), codec))

    async def append(self, row: Row, check: Check | None = None) -> None:
        """Write a row unless `check` says no; it may refuse what the row would come behind.

        What waits while one is written goes into one row: a graph that need not wait for its
        checkpoints has about one commit for each superstep.
        """
        waiting = _Waiting(row, check, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        await waiting.done

    async def _flush(self) -> None:
        async with self._log.lock:
            while self._waiting:
                batch = self._next_batch()
                try:
                    await self._log.append(partial(self._row_of, batch))
                except BaseException as error:
                    for each in batch:
                        each.fail(error)
                    if isinstance(error, asyncio.CancelledError):
                        raise
                for each in batch:
                    each.end()

    def _next_batch(self) -> list[_Waiting]:
        """Return who goes next: only one of them with a check, which sees what is written."""
        batch: list[_Waiting] = []
        for each in self._waiting:
            if each.check is not None and any(other.check is not None for other in batch):
                break
            batch.append(each)
        self._waiting = self._waiting[len(batch) :]
        return batch

    def _row_of(self, batch: Sequence[_Waiting]) -> Row | None:
        return [
            entry for each in batch if each.is_wanted(self._index) for entry in each.row
        ] or None

    async def base_of(self, turn_index: int) -> Base:
        """Return where a turn begins."""
        async with self._log.lock:
            await self._log.catch_up()
            return self._index.base_of(turn_index, last=self._log.next - 1)

    async def note_use(self) -> None:
        async with self._log.lock:
            await self._log.note_use()

    async def keep(self, codec: Codec, kept: Callable[[Assembled], list[Entry]]) -> None:
        """Keep only what is returned of the thread, unless that is all of it."""
        async with self._log.lock:
            self._log.drop()
            known = self._assembled(await self._log.catch_up(), codec)
            if len(kept(known)) == len(known.everything()):
                return
            await self._log.rewrite(lambda rows: kept(self._assembled(rows, codec)))

    async def delete(self) -> None:
        async with self._log.lock:
            await self._log.delete()

    def _assembled(self, rows: Mapping[int, Row], codec: Codec) -> Assembled:
        return Assembled(self.thread_id, self._index, rows, codec, self._log.next - 1)
