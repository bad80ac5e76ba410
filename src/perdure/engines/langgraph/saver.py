"""PerdureSaver: a LangGraph checkpointer that keeps its threads in any RunStore."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from perdure.core.effects import random_float
from perdure.engines.langgraph.calling import Door, WaitingStore
from perdure.engines.langgraph.configs import Config
from perdure.engines.langgraph.thread import Codec
from perdure.engines.langgraph.threads import Threads
from perdure.store.protocol import RunStore


class PerdureSaver(BaseCheckpointSaver[str]):
    """A checkpointer on a Perdure store: memory, files, SQLite, PostgreSQL or D1.

    A thread is a session of the store, `langgraph:<thread id>`: it has the store's durability,
    tenant and protection, `erase_session` and `erase_user` (by `owner_id`) delete it, and
    `collect_garbage` does once it was not used for as long as runs are kept. A checkpoint is one
    write, with the values that are new in it; so are the writes of a task. With
    `owner_id`, one that belongs to somebody else raises RunNotFoundError.

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
        self.threads = Threads(self._door.store, owner_id=owner_id)

    def get_next_version(self, current: str | int | float | None, channel: None) -> str:
        # Random at its end: two branches of a thread have different values of the same age.
        age = 0 if current is None else int(str(current).partition(".")[0])
        return f"{age + 1:032}.{random_float():.16f}"

    # Reading.

    async def aget_tuple(self, config: Config) -> CheckpointTuple | None:
        return await self._door.awaited(self.threads.get(self._codec, config))

    def get_tuple(self, config: Config) -> CheckpointTuple | None:
        return self._door.waited(self.threads.get(self._codec, config))

    async def alist(
        self,
        config: Config | None,
        *,
        filter: dict[str, Any] | None = None,
        before: Config | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Yield checkpoints, newest first; without a config those of all threads of the tenant."""
        for found in await self._door.awaited(
            self.threads.list(self._codec, config, filter, before, limit)
        ):
            yield found

    def list(
        self,
        config: Config | None,
        *,
        filter: dict[str, Any] | None = None,
        before: Config | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        yield from self._door.waited(self.threads.list(self._codec, config, filter, before, limit))

    async def aget_delta_channel_history(
        self, *, config: Config, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return await self._door.awaited(self.threads.history(self._codec, config, channels))

    def get_delta_channel_history(
        self, *, config: Config, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return self._door.waited(self.threads.history(self._codec, config, channels))

    # Writing.

    async def aput(
        self,
        config: Config,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Config:
        return await self._door.awaited(
            self.threads.put(self._codec, config, checkpoint, metadata, new_versions)
        )

    def put(
        self,
        config: Config,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Config:
        return self._door.waited(
            self.threads.put(self._codec, config, checkpoint, metadata, new_versions)
        )

    async def aput_writes(
        self,
        config: Config,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        await self._door.awaited(
            self.threads.put_writes(self._codec, config, writes, task_id, task_path)
        )

    def put_writes(
        self,
        config: Config,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        self._door.waited(self.threads.put_writes(self._codec, config, writes, task_id, task_path))

    # Deleting.

    async def adelete_thread(self, thread_id: str) -> None:
        await self._door.awaited(self.threads.thread(thread_id).delete())

    def delete_thread(self, thread_id: str) -> None:
        self._door.waited(self.threads.thread(thread_id).delete())

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete what these runs left, in any thread of the tenant: it looks through all."""
        await self._door.awaited(self.threads.delete_for_runs(self._codec, run_ids))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        self._door.waited(self.threads.delete_for_runs(self._codec, run_ids))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all of a thread; a copy that was cut off is completed by another one."""
        await self._door.awaited(self.threads.copy(self._codec, source_thread_id, target_thread_id))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self._door.waited(self.threads.copy(self._codec, source_thread_id, target_thread_id))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Keep of these threads only the newest checkpoint of each namespace, or nothing.

        Also kept is what a delta channel of the newest one needs of those before it. What goes is
        deleted from the store; nobody sees a thread that is half pruned.
        """
        await self._door.awaited(self.threads.prune(self._codec, thread_ids, strategy))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        self._door.waited(self.threads.prune(self._codec, thread_ids, strategy))

    @property
    def _codec(self) -> Codec:
        # Made anew, since `with_allowlist` clones a saver with another serializer.
        return Codec(self.serde)
