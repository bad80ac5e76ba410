"""Looking into the folder of a FileStore, damaging it, and starting other processes on it."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
_DROP_FROM_BOUNDING_SET = 24
_MAY_WRITE_ANYWHERE = 1


def start(name: str, *arguments: object) -> subprocess.Popen[str]:
    return _start(name, arguments, None)


def start_without_privilege(name: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that has to keep to the permissions of files, whoever runs the tests."""
    return _start(name, arguments, drop_privilege)


def drop_privilege() -> None:
    ctypes.CDLL(None).prctl(_DROP_FROM_BOUNDING_SET, _MAY_WRITE_ANYWHERE, 0, 0, 0)


def _start(
    name: str, arguments: tuple[object, ...], before: Callable[[], None] | None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.store.file_children", name, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )


def log_of(folder: Path, stored_id: str = "run") -> Path:
    """Return the log of a run."""
    return folder / "runs" / hashlib.sha256(stored_id.encode()).hexdigest() / "log"


def files_of(folder: Path) -> list[str]:
    """Return every file below the folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def bytes_of(folder: Path) -> bytes:
    """Return all that is stored below the folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def exists(path: Path) -> bool:
    return path.exists()


@contextmanager
def read_only(folder: Path) -> Generator[None]:
    """Take away every right to write below a folder."""
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


def flip(path: Path, position: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 0x04
    path.write_bytes(data)
