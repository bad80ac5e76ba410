"""Tombstones: which sessions are being erased, so that whoever comes after a crash ends that."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from perdure.errors import StoreCorruptError
from perdure.store.filelog import flush, flush_folder, opened, write_all

FOLDER: Final = "erasing"
"""Where they stand in the folder of a store; it is there from the first erasure on."""
_NEW: Final = ".new"


class Tombstone(NamedTuple):
    """A session that goes, with these of its turns (stored ids)."""

    key: tuple[str, str]
    turns: Sequence[str]


class Tombstones:
    """The tombstones of a folder, each written and removed under the lock of its session."""

    def __init__(self, path: str, *, durable: bool) -> None:
        self._path = os.path.join(path, FOLDER)
        self._durable = durable

    def put(self, tombstone: Tombstone) -> None:
        """Write it, whole or not at all: from then on the session is erased."""
        with suppress(FileExistsError):
            os.mkdir(self._path)
        path = self._path_of(tombstone.key)
        try:
            with opened(path + _NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
                write_all(file, json.dumps(tombstone).encode("ascii"), 0)
                # Whatever is promised: an empty one behind a power cut would be damage, not loss.
                flush(file)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(path + _NEW)
            raise
        os.rename(path + _NEW, path)
        self._flush(self._path, os.path.dirname(self._path))

    def of(self, key: tuple[str, str]) -> Tombstone | None:
        """Return that of a session, if it is being erased."""
        return self._read(self._path_of(key))

    def all(self) -> list[Tombstone]:
        """Return all of them, those that a crash has left and those of work in progress."""
        try:
            names = os.listdir(self._path)
        except FileNotFoundError:
            return []
        paths = [os.path.join(self._path, name) for name in names if not name.endswith(_NEW)]
        return [found for path in paths if (found := self._read(path)) is not None]

    def remove(self, key: tuple[str, str]) -> None:
        """Forget it, once nothing of the turns can come back after a power cut.

        Nor may it come back itself: it would take the session that began meanwhile.
        """
        self._flush(os.path.join(os.path.dirname(self._path), "runs"))
        os.unlink(self._path_of(key))
        self._flush(self._path)

    def _flush(self, *folders: str) -> None:
        if self._durable:
            for folder in folders:
                flush_folder(folder)

    def _path_of(self, key: tuple[str, str]) -> str:
        text = json.dumps(key).encode("ascii")
        return os.path.join(self._path, hashlib.sha256(text).hexdigest())

    @staticmethod
    def _read(path: str) -> Tombstone | None:
        try:
            with opened(path, os.O_RDONLY) as file:
                content = os.read(file, os.fstat(file).st_size)
        except FileNotFoundError:
            return None
        try:
            key, turns = json.loads(content)
            tenant, session_id = key
            known: Any = turns
            return Tombstone((tenant, session_id), list(known))
        except (TypeError, ValueError) as error:
            raise StoreCorruptError(f"{path!r} is no tombstone of a session") from error
