"""A checkpointer that sees a thread as it was when a turn began, and saves once, at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.memory import InMemorySaver

from perdure.engines.langgraph.configs import Config, thread_of
from perdure.engines.langgraph.index import Base
from perdure.engines.langgraph.saver import PerdureSaver
from perdure.engines.langgraph.thread import Codec
from perdure.engines.langgraph.threads import Threads
from perdure.engines.row_log import Entry


class PinnedSaver(BaseCheckpointSaver[str]):
    """What a graph within a turn has as its checkpointer; only for graphs that are awaited.

    It reads the thread as of `base`, whatever came behind it: an attempt begins where the first
    one did. What the graph writes stays in memory, and is in `entries`, to be saved at once
    when the turn has run: after a crash the turn's own steps give it all again.
    """

    def __init__(self, saver: PerdureSaver, threads: Threads, base: Base) -> None:
        super().__init__(serde=saver.serde)
        self.entries: list[Entry] = []
        self._saver = saver
        self._threads = threads
        self._base = base
        self._codec = Codec(saver.serde)
        self._own = InMemorySaver(serde=saver.serde)

    def get_next_version(self, current: str | int | float | None, channel: None) -> str:
        return self._saver.get_next_version(current, channel)

    async def aget_tuple(self, config: Config) -> CheckpointTuple | None:
        own = self._own.get_tuple(config)
        return own or await self._threads.get_as_of(self._codec, config, self._base)

    async def alist(
        self,
        config: Config | None,
        *,
        filter: dict[str, Any] | None = None,
        before: Config | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        for found in await self._threads.list(self._codec, config, filter, before, limit):
            yield found

    async def aput(
        self,
        config: Config,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Config:
        _, ns = thread_of(config)
        full = get_checkpoint_metadata(config, metadata)
        parent = get_checkpoint_id(config)
        self.entries.append(
            self._codec.checkpoint_entry(ns, parent, checkpoint, full, new_versions)
        )
        # All its values: this is not where those that are old have been stored.
        return self._own.put(config, checkpoint, metadata, checkpoint["channel_versions"])

    async def aput_writes(
        self,
        config: Config,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        _, ns = thread_of(config)
        checkpoint_id = get_checkpoint_id(config)
        assert checkpoint_id is not None
        self.entries.append(self._codec.writes_entry(ns, checkpoint_id, writes, task_id, task_path))
        if self._own.get_tuple(config) is not None:
            self._own.put_writes(config, writes, task_id, task_path)
