"""The inside of a FileStore: its folder, its thread, and who may use it."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from perdure.core.records import Lease
from perdure.errors import StoreClosedError, UsageError
from perdure.store.closing import CLOSED
from perdure.store.fileclaims import FileClaims
from perdure.store.filedata import FileData
from perdure.store.fileerasing import FileErasing
from perdure.store.filereads import FileReads
from perdure.store.fileruns import FolderOptions
from perdure.store.filescheduling import FileScheduling
from perdure.store.filetending import FileTending
from perdure.store.filethread import FileThread, Watch
from perdure.store.filework import FileWork
from perdure.store.mounts import MOUNTS, network_mount
from perdure.store.waiting import Waiting

T = TypeVar("T")


def check_folder(path: str | os.PathLike[str], *, mounts: str = MOUNTS) -> str:
    """Return the absolute path of a folder of runs, or raise UsageError."""
    name = os.fspath(path)
    if not name:
        raise UsageError("'' is no folder: give the path of a folder")
    if "\0" in name:
        raise UsageError(f"the path {name!r} holds a zero byte")
    full = os.path.realpath(name)
    if os.path.exists(full) and not os.path.isdir(full):
        raise UsageError(f"{name!r} is not a folder: give the path of a folder")
    parent = os.path.dirname(full)
    if not os.path.isdir(parent):
        raise UsageError(f"the folder {parent!r} of the store does not exist")
    kind = network_mount(full if os.path.isdir(full) else parent, mounts)
    if kind is not None:
        raise UsageError(
            f"{name!r} is on a network mount ({kind}), where locks and flushes cannot be relied "
            "on: put the folder on a local disk"
        )
    return full


class FileHandle:
    """What a FileStore shares with its views."""

    def __init__(self, options: FolderOptions) -> None:
        data = FileData(options)
        self.claims = FileClaims(data)
        self.work = FileWork(data)
        self.reads = FileReads(data)
        self.tending = FileTending(data, self.work)
        self.erasing = FileErasing(data)
        self.scheduling = FileScheduling(data, self.claims)
        self.waiting = Waiting(self)
        self._data = data
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: FileThread | None = None
        self._release: weakref.finalize[[], FileHandle] | None = None
        self._closed = False
        self._forked = False
        _handles.add(self)

    def check(self) -> FileThread:
        """Start with the first call; raise if this handle may not be used here and now."""
        if self._closed:
            raise StoreClosedError(CLOSED)
        if self._forked:
            raise UsageError("a store does not survive a fork: open another handle in the child")
        loop = asyncio.get_running_loop()
        if self._thread is None:
            self._loop = loop
            self._thread = FileThread(self._data, loop)
            # A handle that is dropped without `close` must not leave its thread behind.
            self._release = weakref.finalize(self, self._thread.close)
        elif self._loop is not loop:
            raise UsageError("a store belongs to one event loop: open another handle for this one")
        return self._thread

    def run(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Have `call` made in the thread; it must not hold this handle."""
        return self.check().run(call)

    def renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        """Renew from any thread but the loop's."""
        if self._closed or self._forked or self._thread is None:
            raise StoreClosedError(CLOSED)
        return self._thread.run_and_wait(partial(self.work.renew, leases, lease_ms))

    def watch(self, changed: Callable[[], None], *, interval_ms: int | None) -> None:
        thread = self.check() if not self._closed else self._thread
        if thread is None:
            return
        before = thread.watch
        if interval_ms is None:
            thread.watch = None
            return
        thread.watch = Watch(interval_ms, lambda: self.waiting.waited_for, changed)
        if before is None or before.interval_ms > interval_ms:
            thread.wake()

    async def close(self) -> None:
        if self._forked:
            return
        self._closed = True
        if self._thread is not None:
            self._thread.close()
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def disown(self) -> None:
        """Make every later call an error: this process is a fork of the handle's."""
        self._forked = True
        if self._release is not None:
            self._release.detach()


_handles: weakref.WeakSet[FileHandle] = weakref.WeakSet()


def _disown_handles() -> None:
    """Threads do not survive a fork."""
    for handle in list(_handles):
        handle.disown()


os.register_at_fork(after_in_child=_disown_handles)
