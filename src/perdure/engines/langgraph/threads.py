"""The LangGraph threads of a store: what a checkpointer does, on the store's event loop."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_checkpoint_id,
    get_checkpoint_metadata,
)

from perdure.engines.langgraph.configs import FIRST_STEP, SEEN, Config, overtaken, thread_of
from perdure.engines.langgraph.index import Base, ChannelPath, Place, ThreadIndex
from perdure.engines.langgraph.thread import THREADS, Assembled, Codec, Thread
from perdure.engines.log_runs import names_of
from perdure.engines.row_log import Row, in_rows
from perdure.errors import UsageError
from perdure.store.protocol import RunStore

THREADS_KNOWN: Final = 256
"""So many threads a process remembers, so that it need not read their logs again."""


class Threads:
    """The threads of a store's tenant; `codec` is of the checkpointer that asks."""

    def __init__(self, store: RunStore, *, owner_id: str | None) -> None:
        self.store = store
        self._owner_id = owner_id
        self._known: OrderedDict[tuple[str, str], Thread] = OrderedDict()

    def view(self, tenant: str, owner_id: str) -> Threads:
        """Return the threads of a tenant; those that begin there belong to the owner."""
        store = self.store.for_tenant(tenant) if tenant else self.store
        view = Threads(store, owner_id=self._owner_id or owner_id or None)
        view._known = self._known
        return view

    def thread(self, thread_id: str) -> Thread:
        """Return the thread, as far as this process knows it."""
        key = (self.store.tenant, thread_id)
        known = self._known.pop(key, None)
        if known is None:
            known = Thread(self.store, thread_id, owner_id=self._owner_id)
        self._known[key] = known
        if len(self._known) > THREADS_KNOWN:
            self._known.popitem(last=False)
        return known

    async def get(
        self, codec: Codec, config: Config, *, upto: int | None = None
    ) -> CheckpointTuple | None:
        thread_id, ns = thread_of(config)
        wanted = get_checkpoint_id(config)

        def places(index: ThreadIndex) -> list[Place]:
            found = index.find(ns, wanted, upto=upto)
            return [] if found is None else index.places_of(ns, *found, upto=upto)

        def build(known: Assembled) -> CheckpointTuple | None:
            found = known.index.find(ns, wanted, upto=upto)
            if found is None:
                return None
            return known.tuple_of(ns, *found, upto=upto, extra={SEEN: known.last})

        return await self.thread(thread_id).look(codec, places, build)

    async def list(
        self,
        codec: Codec,
        config: Config | None,
        filter: dict[str, Any] | None,
        before: Config | None,
        limit: int | None,
    ) -> Sequence[CheckpointTuple]:
        if config is not None:
            thread_id, _ = thread_of(config)
            return await self._list_thread(codec, thread_id, config, filter, before, limit)
        found: Sequence[CheckpointTuple] = []
        for thread_id in await names_of(self.store, THREADS):
            found = [
                *found,
                *await self._list_thread(codec, thread_id, None, filter, before, limit),
            ]
        newest = sorted(found, key=lambda each: each.checkpoint["id"], reverse=True)
        return newest[:limit]

    async def _list_thread(
        self,
        codec: Codec,
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

        return await self.thread(thread_id).look(codec, places, build)

    async def history(
        self, codec: Codec, config: Config, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        thread_id, ns = thread_of(config)
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

        return await self.thread(thread_id).look(codec, places, build)

    async def put(
        self,
        codec: Codec,
        config: Config,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Config:
        thread_id, ns = thread_of(config)
        parent, id = get_checkpoint_id(config), checkpoint["id"]
        full = get_checkpoint_metadata(config, metadata)
        entry = codec.checkpoint_entry(ns, parent, checkpoint, full, new_versions)
        thread = self.thread(thread_id)
        seen = config["configurable"].get(SEEN)
        begins = ns == "" and parent is None and full.get("source") == "input"

        def check(index: ThreadIndex) -> bool:
            other: str | None = None
            if parent is not None and seen is not None:
                other = index.child_since(ns, parent, seen, but=id)
            elif begins and full.get("step") == FIRST_STEP:
                found = index.find(ns, None)
                other = None if found is None or found[0] == id else found[0]
            if other is not None:
                raise overtaken(thread_id, other)
            return True

        if full.get("source") == "input":
            await thread.note_use()
        await thread.append([entry], check)
        return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": id}}

    async def put_writes(
        self,
        codec: Codec,
        config: Config,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str,
    ) -> None:
        thread_id, ns = thread_of(config)
        checkpoint_id = get_checkpoint_id(config)
        if checkpoint_id is None:
            raise UsageError("writes belong to a checkpoint, but the config names none")
        entry = codec.writes_entry(ns, checkpoint_id, writes, task_id, task_path)
        await self.thread(thread_id).append([entry])

    async def delete_for_runs(self, codec: Codec, run_ids: Sequence[str]) -> None:
        if not run_ids:
            return
        gone = frozenset(run_ids)
        for thread_id in await names_of(self.store, THREADS):
            await self.thread(thread_id).keep(codec, lambda known: known.without(gone))

    async def copy(self, codec: Codec, source_thread_id: str, target_thread_id: str) -> None:
        entries = await self.thread(source_thread_id).look_at_all(codec, Assembled.everything)
        target = self.thread(target_thread_id)
        for row in in_rows(entries):
            await target.append(row)

    async def prune(self, codec: Codec, thread_ids: Sequence[str], strategy: str) -> None:
        if strategy not in ("keep_latest", "delete"):
            raise UsageError(f"a thread is pruned by keep_latest or delete, not {strategy!r:.40}")
        for thread_id in thread_ids:
            thread = self.thread(thread_id)
            if strategy == "delete":
                await thread.delete()
            else:
                await thread.keep(codec, Assembled.newest)

    # Turns: see `GraphTurns`.

    async def base_of(self, thread_id: str, turn_index: int) -> Base:
        """Return where a turn begins."""
        return await self.thread(thread_id).base_of(turn_index)

    async def get_as_of(self, codec: Codec, config: Config, base: Base) -> CheckpointTuple | None:
        """Return a checkpoint as a turn sees it that begins there."""
        if get_checkpoint_id(config) is None and not config["configurable"].get("checkpoint_ns"):
            if base.checkpoint_id is None:
                return None
            named = {**config["configurable"], "checkpoint_id": base.checkpoint_id}
            config = {**config, "configurable": named}
        return await self.get(codec, config, upto=base.row)

    async def save_turn(self, thread_id: str, row: Row, base: Base) -> None:
        """Write all that a turn has come to, once. Raises SessionBusyError if somebody else won."""
        turn_run = row[0]["turn"][1]

        def check(index: ThreadIndex) -> bool:
            if turn_run in index.saved_turns:
                return False
            other = index.child_since("", base.checkpoint_id, base.seen)
            if other is not None:
                raise overtaken(thread_id, other)
            return True

        thread = self.thread(thread_id)
        await thread.note_use()
        await thread.append(row, check)
