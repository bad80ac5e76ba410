"""One append-only log: numbered lines with checksums, a torn tail, and the lock of who writes."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from perdure.core.effects import jittered, monotonic_ms, new_token
from perdure.errors import (
    SchemaError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)

_FORMAT: Final = b"perdure-log "
_MARK: Final = _FORMAT + b"1 "
_NAME_BYTES: Final = 32
HEADER_BYTES: Final = len(_MARK) + _NAME_BYTES + 10
_READ_BYTES: Final = 1024 * 1024
_PAUSE_MS: Final = 0.2
_PAUSE_MAX_MS: Final = 4.0
_NO_ROOM: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_NO_RIGHT: Final = frozenset((errno.EROFS, errno.EACCES, errno.EPERM))
_never = threading.Event()


class FlushFailed(Exception):
    """The system could not flush: nobody knows what of the file is on the disk."""


class Tail(NamedTuple):
    """What a log holds behind what was read of it before.

    `anew`: it is another log than the one that was read, and `texts` are all of its lines.
    """

    anew: bool
    texts: Sequence[str]


class FileLog:
    """What one handle has read of one log: which log it was, and how far.

    A log begins with a name drawn at random, since another file may come to stand under its path,
    and be as long. A line has its number, and behind a `~` how many lines before it may not have
    been flushed when it was written: a power cut may leave it, and take some of those.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.name: bytes = b""
        self.size = 0
        self.lines = 0
        self._unflushed = 0

    def forget(self) -> None:
        """Read the log from its start when it is read next."""
        self.name, self.size, self.lines = b"", 0, 0

    def catch_up(self, file: int | None) -> Tail:
        """Return the whole lines behind what was read; `file` None: there is no file.

        What a writer left unfinished at the end is no line, nor is what a power cut has left of
        lines that were not flushed. Raises StoreCorruptError for a damaged line that was.
        """
        header = b"" if file is None else os.pread(file, HEADER_BYTES, 0)
        if file is None or len(header) < HEADER_BYTES or not any(header):
            known = bool(self.name)
            self.forget()
            return Tail(known, ())
        name, size = header[len(_MARK) :][:_NAME_BYTES], os.fstat(file).st_size
        if header != _header(name):
            raise _unknown_header(self.path, header)
        anew = name != self.name or size < self.size
        if not anew and size == self.size:
            return Tail(False, ())
        if anew:
            self.name, self.size, self.lines = name, HEADER_BYTES, 0
        try:
            return Tail(anew, self._read_lines(file))
        except BaseException:
            self.forget()
            raise

    def is_current(self, file: int | None) -> bool:
        """Return whether there is nothing that was not read yet."""
        if file is None or os.fstat(file).st_size != self.size:
            return False
        return os.pread(file, HEADER_BYTES, 0) == _header(self.name)

    def append(self, file: int, texts: Sequence[str]) -> None:
        """Write lines behind the last whole one; all or none of them.

        The caller holds the lock, and has caught up. Raises StoreFullError and
        StoreUnavailableError; what was there is then as it was.
        """
        name, header = self.name, b""
        if not name:
            name = new_token().encode()
            header = _header(name)
        data = header + b"".join(
            _line(name, self.lines + number, self._unflushed, text)
            for number, text in enumerate(texts, 1)
        )
        if os.fstat(file).st_size != self.size:
            os.ftruncate(file, self.size)
        try:
            write_all(file, data, self.size)
        except BaseException:
            os.ftruncate(file, self.size)
            raise
        self.name, self.size, self.lines = name, self.size + len(data), self.lines + len(texts)
        self._unflushed += len(texts)

    def settle(self) -> None:
        """Note that all that was read and written is on the disk: it was flushed."""
        self._unflushed = 0

    def replace(self, texts: Sequence[str]) -> None:
        """Put a new log with these lines in the place of this one. The caller holds the lock."""
        path = new_path(self.path)
        try:
            with opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as file:
                fresh = FileLog(path)
                fresh.append(file, texts)
                flush(file)
            os.replace(path, self.path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(path)
            raise
        flush_folder(os.path.dirname(self.path))
        self.forget()

    def _read_lines(self, file: int) -> list[str]:
        data = _read_all(file, self.size)
        *whole, _torn = data.split(b"\n")
        texts: list[str] = []
        for number, line in enumerate(whole):
            text = _text(self.name, line)
            if text is None:
                self._check_torn(whole[number + 1 :])
                break
            count, unflushed, body = _parts(text)
            if count != self.lines + 1:
                raise StoreCorruptError(
                    f"{self.path!r} lacks its line {self.lines + 1}: {count} stands there"
                )
            texts.append(body)
            # Whoever wrote it may have died before he flushed it.
            self._unflushed = unflushed + 1
            self.lines += 1
            self.size += len(line) + 1
        return texts

    def _check_torn(self, later: Sequence[bytes]) -> None:
        """A damaged line is a write that was cut off unless a later one knows it to be flushed."""
        damaged = self.lines + 1
        for line in later:
            text = _text(self.name, line)
            if text is None:
                continue
            number, unflushed, _ = _parts(text)
            if damaged < number - unflushed:
                raise StoreCorruptError(f"{self.path!r} is damaged in its line {damaged}")


def _header(name: bytes) -> bytes:
    return _checked(_MARK + name)


def _checked(start: bytes) -> bytes:
    return b"%b %08x\n" % (start, zlib.crc32(start))


def _unknown_header(path: str, header: bytes) -> StoreError:
    is_whole = header == _checked(header[: -len(b" 01234567\n")])
    version = header.removeprefix(_FORMAT).split(b" ")[0]
    if is_whole and header.startswith(_FORMAT) and version.isdigit():
        return SchemaError(f"{path!r} has the format {int(version)}: this version knows format 1")
    return StoreCorruptError(f"{path!r} does not begin as a log of this package")


def new_path(path: str) -> str:
    """Return where the log that will stand at `path` is made."""
    return f"{path}.new"


def _line(name: bytes, number: int, unflushed: int, text: str) -> bytes:
    count = b"%d~%d" % (number, unflushed) if unflushed else b"%d" % number
    body = b"%b %b" % (count, text.encode("ascii"))
    return b"%08x %b\n" % (zlib.crc32(body, zlib.crc32(name)), body)


def _text(name: bytes, line: bytes) -> str | None:
    """Return what stands behind the checksum of a line; None if the checksum is another."""
    body = line[9:]
    if line[:9] != b"%08x " % zlib.crc32(body, zlib.crc32(name)):
        return None
    return body.decode("ascii")


def _parts(text: str) -> tuple[int, int, str]:
    """Return a line's number, how many before it may not have been flushed, and what it says."""
    count, _, body = text.partition(" ")
    number, _, unflushed = count.partition("~")
    return int(number), int(unflushed or 0), body


def _read_all(file: int, start: int) -> bytes:
    pieces: list[bytes] = []
    while piece := os.pread(file, _READ_BYTES, start):
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


def write_all(file: int, data: bytes, start: int) -> None:
    """Write at `start`, all of it: where there is little room, the system writes only a part."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, start)
        view, start = view[written:], start + written


@contextmanager
def opened(path: str, flags: int) -> Generator[int]:
    """Open a file and close it again."""
    file = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def open_for_reading(path: str) -> Generator[int | None]:
    """Open a log that may not be there."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def locked(path: str, *, create: bool, patience_ms: float) -> Generator[int | None]:
    """Open a log and hold its lock; None if there is none and `create` is False.

    Raises StoreBusyError if another process holds the lock for too long.
    """
    file = _open_locked(path, create=create, patience_ms=patience_ms)
    if file is None:
        yield None
        return
    try:
        yield file
    finally:
        # A fork may have taken the file along: closing alone would leave its lock.
        fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)


def _open_locked(path: str, *, create: bool, patience_ms: float) -> int | None:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    while True:
        try:
            file = os.open(path, flags, 0o666)
        except FileNotFoundError:
            if not create:
                return None
            with suppress(FileExistsError):
                os.mkdir(os.path.dirname(path))
            continue
        try:
            _lock(file, path, patience_ms)
            if _stands_at(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        # It was deleted or replaced while we waited.
        os.close(file)


def _stands_at(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(file: int, path: str, patience_ms: float) -> None:
    pause_ms, deadline_ms = _PAUSE_MS, 0.0
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            now_ms = monotonic_ms()
            deadline_ms = deadline_ms or now_ms + patience_ms
            if now_ms >= deadline_ms:
                raise StoreBusyError(
                    f"another process has held the lock of {path!r} for {patience_ms:,.0f} ms"
                ) from error
        _never.wait(jittered(pause_ms, 0.9) / 1_000)
        pause_ms = min(pause_ms * 1.5, _PAUSE_MAX_MS)


def flush(file: int) -> None:
    """Return once the file's content is on the disk. Raises FlushFailed."""
    try:
        full = getattr(fcntl, "F_FULLFSYNC", None)
        if full is not None:
            fcntl.fcntl(file, full)
        else:
            os.fdatasync(file)
    except OSError as error:
        raise FlushFailed(str(error)) from error


def flush_folder(path: str) -> None:
    """Return once the names in a folder are on the disk. Raises FlushFailed."""
    with opened(path, os.O_RDONLY) as file:
        try:
            os.fsync(file)
        except OSError as error:
            raise FlushFailed(str(error)) from error


def translated(error: OSError, path: str) -> StoreError:
    """Return the error of this package that says what `error` means for the caller."""
    where = f"{error.strerror or error} ({error.filename or path!r})"
    if error.errno in _NO_ROOM:
        return StoreFullError(f"there is no room left for the store: {where}")
    if error.errno in _NO_RIGHT:
        return StoreUnavailableError(f"the store's folder may not be read or written: {where}")
    return StoreUnavailableError(f"reading or writing the store's folder failed: {where}")
