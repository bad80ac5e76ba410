"""Stopping a process where it holds no lock of its store, which would hold up everybody else."""

from __future__ import annotations

import fcntl
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from perdure.store.opening import path_of

STOPS_S = 0.02
"""So soon a process has stopped once it was told to."""


def freeze(pid: int, url: str) -> None:
    """Stop a process outside of a commit to the store at `url`."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(STOPS_S)
        if is_free(url):
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(STOPS_S / 5)


def is_free(url: str) -> bool:
    """Return whether nobody holds a lock in it; a server looks after its own."""
    name = path_of(url)
    if name is None:
        return True
    path = Path(name)
    if path.is_dir():
        return all(map(_is_unlocked, [path / "index", *path.glob("*/*/log")]))
    return _is_writable(path)


def _is_writable(database: Path) -> bool:
    with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return False
        return True


def _is_unlocked(log: Path) -> bool:
    with log.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
