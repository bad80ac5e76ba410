"""A folder with one locked file for each living handle, by which others see when it has died.

The system lets go of a lock when the last process that has it open is gone, however it ended; a
stopped process keeps it. That holds among the processes of one running kernel, in whatever
containers they are, and only there; so a name says of which kernel it is, and a file system that
does not keep to it is found out when the lock is taken.

A file that is missing says nothing: it may have been tidied away under a living process. So does
a handle that is closed: it deletes its file, and leases that it never gave back have to lapse.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import logging
import os
import re
import threading
import weakref
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from typing import Final

from perdure.core.effects import new_token, system_clock

logger = logging.getLogger("perdure.store")

KEPT_MS: Final = 3_600_000
"""A lock that was found dead is deleted so much later: by then its leases have lapsed."""
_TRIES: Final = 16
_NAME: Final = re.compile(r"[0-9a-f]{12}-[0-9a-f]{32}")
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_MARK: Final = b"dead\n"

_held: Final[dict[str, int]] = {}
"""The locks of this process, and the files by which it holds them."""


class LockFolder:
    """The liveness lock of one handle, taken when it is first asked for; from any thread.

    The folder is made where there is none. It is let go when this is released, dropped, or when
    the process ends; a fork has no part in it.
    """

    def __init__(self, path: str) -> None:
        self.name: str | None = None
        self.is_settled = False
        """Whether it is decided that there is a lock, and which."""
        self._path = path
        self._guard = threading.Lock()
        self._release: weakref.finalize[[str, str], LockFolder] | None = None

    def take(self) -> str | None:
        """Return the name of the lock, which is held from now on; None if there can be none."""
        with self._guard:
            if not self.is_settled:
                try:
                    self.name = self._lock_new_file()
                except OSError as error:
                    logger.info("no liveness lock, leases have to lapse: %s", error)
                self.is_settled = True
                if self.name is not None:
                    self._release = weakref.finalize(self, _let_go, self._path, self.name)
                    # At the end of the process the system lets go, and the file stays to tell.
                    self._release.atexit = False
                    self._reap()
            return self.name

    def dead(self, names: Collection[str]) -> frozenset[str]:
        """Return those of `names` whose lock is there and free: nobody lives who held it."""
        return frozenset(name for name in names if self._is_dead(name))

    def release(self) -> None:
        """Let go of the lock, and take no other."""
        with self._guard:
            self.is_settled, self.name = True, None
            if self._release is not None:
                self._release()

    def _lock_new_file(self) -> str | None:
        for _ in range(_TRIES):
            name = f"{_kernel()}-{new_token()}"
            path = os.path.join(self._path, name)
            with suppress(FileExistsError):
                os.mkdir(self._path)
            try:
                file = os.open(path, _FLAGS | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            except FileNotFoundError:
                continue  # Whoever closed last has just removed the folder.
            _held[name] = file
            try:
                # Before it was locked, somebody may have taken it for one that was left behind.
                if _lock(file, fcntl.LOCK_EX) and os.fstat(file).st_size == 0:
                    _check_exclusive(path)
                    return name
            except BaseException:
                _let_go(self._path, name)
                raise
            _let_go(self._path, name)
        return None

    def _is_dead(self, name: str) -> bool:
        if name in _held or not _NAME.fullmatch(name) or not name.startswith(_kernel()):
            return False
        with suppress(OSError), _if_free(os.path.join(self._path, name), os.O_RDONLY) as file:
            return file is not None
        return False

    def _reap(self) -> None:
        """Mark what the dead have left, and delete what was marked long ago."""
        with suppress(OSError):
            for name in os.listdir(self._path):
                if name not in _held and _NAME.fullmatch(name):
                    _reap(os.path.join(self._path, name))


_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW


def _lock(file: int, kind: int) -> bool:
    """Return whether the lock was free, and nobody had deleted the file meanwhile."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(file).st_nlink > 0


def _check_exclusive(path: str) -> None:
    """Raise OSError unless the lock that we hold is refused to us, as it should be to others."""
    with _if_free(path, os.O_RDONLY) as file:
        if file is not None:
            raise OSError(errno.ENOLCK, "the file system does not keep locks", path)


@contextmanager
def _if_free(path: str, mode: int) -> Generator[int | None]:
    """Open a lock whose holder is gone; None if he lives, or has closed it himself.

    Shared, so that two who look at once do not take each other for the holder.
    """
    file = os.open(path, _FLAGS | mode)
    try:
        is_free = _lock(file, fcntl.LOCK_SH)
        yield file if is_free else None
    finally:
        # A fork may have taken the file along: closing alone would leave its lock.
        fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)


def _reap(path: str) -> None:
    with suppress(OSError), _if_free(path, os.O_RDWR) as file:
        if file is None:
            return
        status = os.fstat(file)
        if status.st_size == 0:
            os.write(file, _MARK)
        elif status.st_mtime_ns // 1_000_000 + KEPT_MS < system_clock():
            os.unlink(path)


def _let_go(folder: str, name: str) -> None:
    """Delete a lock of this process, and then free it: who looks meanwhile learns nothing."""
    file = _held.pop(name, None)
    if file is None:
        return  # It is the lock of the process that this one is a fork of.
    with suppress(OSError):
        os.unlink(os.path.join(folder, name))
    os.close(file)
    with suppress(OSError):
        os.rmdir(folder)


@functools.cache
def _kernel() -> str:
    """Return what tells this running kernel from others that may see the same files."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            identity = file.read()
    except OSError:
        identity = os.uname().nodename
    return hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _leave_to_parent() -> None:
    """A fork that lives on must not make its dead parent look alive."""
    for file in _held.values():
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
