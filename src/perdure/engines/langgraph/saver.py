"""PerdureSaver: a LangGraph checkpointer that keeps its threads in any RunStore."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Final

from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from perdure.core.effects import random_float
from perdure.engines.langgraph.calling import Door, WaitingStore
from perdure.engines.langgraph.index import ChannelPath, Place, ThreadIndex
from perdure.engines.langgraph.log import in_rows, thread_ids
from perdure.engines.langgraph.thread import Assembled, Codec, Thread
from perdure.errors import SessionBusyError, UsageError
from perdure.store.protocol import RunStore

THREADS_KNOWN: Final = 256
"""So many threads a checkpointer remembers, so that it need not read their logs again."""
SEEN: Final = "__perdure_seen"
"""Where a config says up to which row of the log its reader has seen the thread.

LangGraph hands it on from what it reads to what it writes, and keeps it out of metadata.
"""
FIRST_STEP: Final = -1
"""The step of a thread's first checkpoint, to LangGraph."""

Config = Any


class PerdureSaver(BaseCheckpointSaver[str]):
    """A checkpointer on a Perdure store: memory, files, SQLite, PostgreSQL or D1.

    A thread is a session of the store, `langgraph:<thread id>`: it has the store's durability,
    tenant and protection, `erase_session` and `erase_user` (by `owner_id`) delete it, and
    `collect_garbage` does once it was not used for as long as runs are kept. A checkpoint is one
    write, with the values that are new in it; so are the writes of a task.

    Two who go on from the same checkpoint at once: the first one wins, the other's `put` raises
    SessionBusyError, and so does its graph. Going back in time is no such race, since a graph
    reads the thread, with what has followed, before it goes on.

    `store` is one that `perdure.open_store` returned, for graphs that are awaited (also in other
    threads, then), or one of `perdure.sync.open_store`, for those that are not. `serde` is a
    LangGraph serializer. The first look at a thread reads its whole log; `prune` makes it short.
    """

    def __init__(
        self,
        store: RunStore | WaitingStore,
        *,
        owner_id: str | None = None,
        serde: SerializerProtocol | None = None,
    ) -> None:
        super().__init__(serde=serde)
        self._door = Door(store)
        self._owner_id = owner_id
        self._threads: OrderedDict[str, Thread] = OrderedDict()

    @property
    def store(self) -> RunStore:
        return self._door.store

    def thread(self, thread_id: str) -> Thread:
        """Return the thread, as far as this process knows it."""
        known = self._threads.pop(thread_id, None)
        if known is None:
            known = Thread(self.store, thread_id, owner_id=self._owner_id)
        self._threads[thread_id] = known
        if len(self._threads) > THREADS_KNOWN:
            self._threads.popitem(last=False)
        return known

    def get_next_version(self, current: str | int | float | None, channel: None) -> str:
        # Random at its end: two branches of a thread have different values of the same age.
        age = 0 if current is None else int(str(current).partition(".")[0])
        return f"{age + 1:032}.{random_float():.16f}"

    # Reading.

    async def aget_tuple(self, config: Config) -> CheckpointTuple | None:
        return await self._door.awaited(self._get(config))

    def get_tuple(self, config: Config) -> CheckpointTuple | None:
        return self._door.waited(self._get(config))

    async def alist(
        self,
        config: Config | None,
        *,
        filter: dict[str, Any] | None = None,
        before: Config | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Yield checkpoints, newest first; without a config those of all threads of the tenant."""
        for found in await self._door.awaited(self._list(config, filter, before, limit)):
            yield found

    def list(
        self,
        config: Config | None,
        *,
        filter: dict[str, Any] | None = None,
        before: Config | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        yield from self._door.waited(self._list(config, filter, before, limit))

    async def aget_delta_channel_history(
        self, *, config: Config, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return await self._door.awaited(self._history(config, channels))

    def get_delta_channel_history(
        self, *, config: Config, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return self._door.waited(self._history(config, channels))

    # Writing.

    async def aput(
        self,
        config: Config,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Config:
        return await self._door.awaited(self._put(config, checkpoint, metadata, new_versions))

    def put(
        self,
        config: Config,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Config:
        return self._door.waited(self._put(config, checkpoint, metadata, new_versions))

    async def aput_writes(
        self,
        config: Config,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        await self._door.awaited(self._put_writes(config, writes, task_id, task_path))

    def put_writes(
        self,
        config: Config,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        self._door.waited(self._put_writes(config, writes, task_id, task_path))

    # Deleting.

    async def adelete_thread(self, thread_id: str) -> None:
        await self._door.awaited(self.thread(thread_id).delete())

    def delete_thread(self, thread_id: str) -> None:
        self._door.waited(self.thread(thread_id).delete())

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete what these runs left, in any thread of the tenant: it looks through all."""
        await self._door.awaited(self._delete_for_runs(run_ids))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        self._door.waited(self._delete_for_runs(run_ids))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all of a thread; a copy that was cut off is completed by another one."""
        await self._door.awaited(self._copy(source_thread_id, target_thread_id))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self._door.waited(self._copy(source_thread_id, target_thread_id))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Keep of these threads only the newest checkpoint of each namespace, or nothing.

        Also kept is what a delta channel of the newest one needs of those before it. What goes is
        deleted from the store; nobody sees a thread that is half pruned.
        """
        await self._door.awaited(self._prune(thread_ids, strategy))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        self._door.waited(self._prune(thread_ids, strategy))

    # What both doors lead to; it runs on the store's event loop.

    async def _get(self, config: Config, *, upto: int | None = None) -> CheckpointTuple | None:
        thread_id, ns = _thread_of(config)
        wanted = get_checkpoint_id(config)

        def places(index: ThreadIndex) -> list[Place]:
            found = index.find(ns, wanted, upto=upto)
            return [] if found is None else index.places_of(ns, *found, upto=upto)

        def build(known: Assembled) -> CheckpointTuple | None:
            found = known.index.find(ns, wanted, upto=upto)
            if found is None:
                return None
            return known.tuple_of(ns, *found, upto=upto, extra={SEEN: known.last})

        return await self.thread(thread_id).look(self._codec, places, build)

    async def _list(
        self,
        config: Config | None,
        filter: dict[str, Any] | None,
        before: Config | None,
        limit: int | None,
    ) -> Sequence[CheckpointTuple]:
        if config is not None:
            thread_id, _ = _thread_of(config)
            return await self._list_thread(thread_id, config, filter, before, limit)
        found: Sequence[CheckpointTuple] = []
        for thread_id in await thread_ids(self.store):
            found = [*found, *await self._list_thread(thread_id, None, filter, before, limit)]
        newest = sorted(found, key=lambda each: each.checkpoint["id"], reverse=True)
        return newest[:limit]

    async def _list_thread(
        self,
        thread_id: str,
        config: Config | None,
        filter: dict[str, Any] | None,
        before: Config | None,
        limit: int | None,
    ) -> Sequence[CheckpointTuple]:
        wanted = None if config is None else get_checkpoint_id(config)
        before_id = None if before is None else get_checkpoint_id(before)
        ns = None if config is None else config["configurable"].get("checkpoint_ns")

        def chosen(index: ThreadIndex) -> Sequence[tuple[str, str]]:
            pairs = [
                (each_ns, id)
                for each_ns, id in index.newest_first(ns)
                if (wanted is None or id == wanted) and (before_id is None or id < before_id)
            ]
            return pairs if filter else pairs[:limit]

        def places(index: ThreadIndex) -> Sequence[Place]:
            found = [(each_ns, index.find(each_ns, id)) for each_ns, id in chosen(index)]
            return [
                place
                for each_ns, each in found
                if each is not None
                for place in index.places_of(each_ns, *each)
            ]

        def build(known: Assembled) -> Sequence[CheckpointTuple]:
            tuples: Sequence[CheckpointTuple] = []
            for each_ns, id in chosen(known.index):
                found = known.index.find(each_ns, id)
                assert found is not None
                if not filter or known.matches(found[1], filter):
                    tuples = [*tuples, known.tuple_of(each_ns, *found, extra={SEEN: known.last})]
                if limit is not None and len(tuples) >= limit:
                    break
            return tuples

        return await self.thread(thread_id).look(self._codec, places, build)

    async def _history(
        self, config: Config, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        thread_id, ns = _thread_of(config)
        wanted = get_checkpoint_id(config)

        def paths(index: ThreadIndex) -> dict[str, ChannelPath]:
            found = index.find(ns, wanted)
            if found is None:
                return {channel: ChannelPath([], None) for channel in channels}
            return {channel: index.path_of(ns, found[0], channel) for channel in channels}

        def places(index: ThreadIndex) -> Sequence[Place]:
            return [place for path in paths(index).values() for place in path.places]

        def build(known: Assembled) -> Mapping[str, DeltaChannelHistory]:
            return {name: known.history(name, path) for name, path in paths(known.index).items()}

        return await self.thread(thread_id).look(self._codec, places, build)

    async def _put(
        self,
        config: Config,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Config:
        thread_id, ns = _thread_of(config)
        parent, id = get_checkpoint_id(config), checkpoint["id"]
        full = get_checkpoint_metadata(config, metadata)
        entry = self._codec.checkpoint_entry(ns, parent, checkpoint, full, new_versions)
        thread = self.thread(thread_id)
        seen = config["configurable"].get(SEEN)
        begins = ns == "" and parent is None and full.get("source") == "input"

        def check(index: ThreadIndex) -> None:
            other: str | None = None
            if parent is not None and seen is not None:
                other = index.child_since(ns, parent, seen, but=id)
            elif begins and full.get("step") == FIRST_STEP:
                found = index.find(ns, None)
                other = None if found is None or found[0] == id else found[0]
            if other is not None:
                raise SessionBusyError(
                    f"somebody else has gone on with the thread {thread_id!r:.60} meanwhile: "
                    f"{other} came behind the checkpoint {parent or 'at its beginning'}. Invoke "
                    "the graph again, to go on from there"
                )

        if full.get("source") == "input":
            await thread.note_use()
        await thread.append([entry], check)
        return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": id}}

    async def _put_writes(
        self, config: Config, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> None:
        thread_id, ns = _thread_of(config)
        checkpoint_id = get_checkpoint_id(config)
        if checkpoint_id is None:
            raise UsageError("writes belong to a checkpoint, but the config names none")
        entry = self._codec.writes_entry(ns, checkpoint_id, writes, task_id, task_path)
        await self.thread(thread_id).append([entry])

    async def _delete_for_runs(self, run_ids: Sequence[str]) -> None:
        if not run_ids:
            return
        gone = frozenset(run_ids)
        for thread_id in await thread_ids(self.store):
            await self.thread(thread_id).keep(self._codec, lambda known: known.without(gone))

    async def _copy(self, source_thread_id: str, target_thread_id: str) -> None:
        entries = await self.thread(source_thread_id).look_at_all(self._codec, Assembled.everything)
        target = self.thread(target_thread_id)
        for row in in_rows(entries):
            await target.append(row)

    async def _prune(self, thread_ids: Sequence[str], strategy: str) -> None:
        if strategy not in ("keep_latest", "delete"):
            raise UsageError(f"a thread is pruned by keep_latest or delete, not {strategy!r:.40}")
        for thread_id in thread_ids:
            thread = self.thread(thread_id)
            if strategy == "delete":
                await thread.delete()
            else:
                await thread.keep(self._codec, Assembled.newest)

    @property
    def _codec(self) -> Codec:
        # Made anew, since `with_allowlist` clones a saver with another serializer.
        return Codec(self.serde)


def _thread_of(config: Config) -> tuple[str, str]:
    """Return thread and namespace that a config names. Raises UsageError without a thread."""
    configurable = config.get("configurable", {})
    if "thread_id" not in configurable:
        raise UsageError("the config names no thread: {'configurable': {'thread_id': ...}}")
    return str(configurable["thread_id"]), configurable.get("checkpoint_ns", "")
