"""Power cuts: a recorded process, and what a disk may hold when the power fails in it.

What the process wrote is recorded by strace. A disk keeps what was flushed before the cut. Of
what was written to a file since its last flush it keeps any part, in any order, torn at a sector;
of what was done to the names in a folder since the folder's last flush, any beginning.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SECTOR = 512
CALLS = (
    "openat,pwrite64,write,fsync,fdatasync,ftruncate,rename,unlink,mkdir,rmdir,"
    # None of these is expected: a recording that has one is refused.
    "pwritev,writev,truncate,renameat,renameat2,unlinkat,link,linkat,fallocate,sync_file_range"
)
_STRANGE = frozenset(CALLS.split(",")[10:])
_LINE = re.compile(r"(?P<pid>\d+) +(?P<text>.*)")
_DONE = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)(?:<.*>)?(?: .*)?$")
_HEX = re.compile(r"(?:\\x[0-9a-f]{2})+")


class Event(NamedTuple):
    """One thing that happened to the disk: `name` is the system call.

    `since` is, for a flush, the number of events before it began: what came later it may not have.
    """

    name: str
    path: str
    data: bytes = b""
    at: int = 0
    to: str = ""
    since: int = 0


def record(module: str, *arguments: str, folder: Path) -> list[Event]:
    """Run `python -m module arguments…`, and return what it did in `folder`, and its output.

    Lines of its output are events "said".
    """
    trace = folder.with_name(f"{folder.name}.trace")
    command = ["strace", "-f", "-qq", "-y", "-xx", "-s", "2000000", "--seccomp-bpf"]
    command += ["-e", f"trace={CALLS}", "-o", str(trace)]
    command += [sys.executable, "-m", module, *arguments]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=120)
    try:
        return list(_events(trace.read_text(), str(folder)))
    finally:
        trace.unlink()


def _events(trace: str, folder: str) -> Iterator[Event]:
    begun: dict[str, tuple[str, int]] = {}
    count = 0
    for line in trace.splitlines():
        matched = _LINE.match(line)
        assert matched is not None, line[:200]
        pid, text = matched["pid"], matched["text"]
        since = count
        if text.endswith("<unfinished ...>"):
            begun[pid] = (text.removesuffix("<unfinished ...>").rstrip(), count)
            continue
        if text.startswith("<... "):
            start, since = begun.pop(pid)
            text = start + text.partition("resumed>")[2]
        for event in _event(text, folder):
            count += 1
            yield event._replace(since=since)


def _event(text: str, folder: str) -> Iterator[Event]:
    matched = _DONE.match(text)
    if matched is None or int(matched["result"]) < 0:
        return  # It failed, or is no call.
    name = matched["name"]
    if name == "write":
        if text.startswith("write(1<"):
            yield Event("said", "", _strings(matched["arguments"])[-1])
        return
    texts = [each.decode() for each in _strings(matched["arguments"]) if name != "pwrite64"]
    path = _path_of(matched["arguments"], texts)
    if not f"{path}/".startswith(f"{folder}/"):
        return
    assert name not in _STRANGE, f"{name} is not understood"
    numbers = re.findall(r", (\d+)(?=,|$)", matched["arguments"])
    if name == "openat":
        if "O_CREAT" in text:
            yield Event("create", path)
        if "O_TRUNC" in text:
            yield Event("ftruncate", path)
    elif name == "pwrite64":
        yield Event(name, path, _strings(matched["arguments"])[-1], int(numbers[-1]))
    elif name == "ftruncate":
        yield Event(name, path, at=int(numbers[-1]))
    elif name == "rename":
        yield Event(name, path, to=texts[-1])
    else:
        yield Event("fsync" if name == "fdatasync" else name, path)


def _strings(arguments: str) -> list[bytes]:
    """Return the strings among arguments; without them what an open file is called."""
    outside = re.sub(r"<(?:\\x[0-9a-f]{2})*>", "", arguments)
    found = re.findall(r'"((?:\\x[0-9a-f]{2})*)"', outside)
    return [bytes.fromhex(each.replace("\\x", "")) for each in found]


def _path_of(arguments: str, texts: Sequence[str]) -> str:
    if texts:
        return texts[0]
    name = re.match(r"\d+<((?:\\x[0-9a-f]{2})*)>", arguments)
    return bytes.fromhex(name[1].replace("\\x", "")).decode() if name else ""


class File:
    """What a file holds: on the disk, and what was written since without being flushed."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self._waiting: list[tuple[int, Event]] = []

    def change(self, number: int, event: Event) -> None:
        self._waiting.append((number, event))

    def flush(self, since: int) -> None:
        """Bring to the disk what was written before a flush began."""
        for number, event in self._waiting:
            if number < since:
                _apply(self.data, event)
        self._waiting = [(number, event) for number, event in self._waiting if number >= since]

    def after_the_cut(self, dice: random.Random) -> bytes:
        """Return what the disk may hold."""
        data = bytearray(self.data)
        for _, event in self._waiting:
            luck = dice.random()
            if luck < 0.4:
                _apply(data, event)
            elif luck < 0.7 and len(event.data) > SECTOR:
                kept = SECTOR * dice.randrange(1, len(event.data) // SECTOR + 1)
                _apply(data, event._replace(data=event.data[:kept]))
        return bytes(data)


def _apply(data: bytearray, event: Event) -> None:
    if event.name == "ftruncate":
        data[event.at :] = bytes(max(0, event.at - len(data)))
        return
    data.extend(bytes(max(0, event.at - len(data))))
    data[event.at : event.at + len(event.data)] = event.data


class Disk:
    """A folder as a process sees it, and what would be left of it."""

    def __init__(self, folder: Path) -> None:
        self._kept: dict[str, File | None] = {str(folder): None}
        for path in folder.rglob("*"):
            self._kept[str(path)] = None if path.is_dir() else File(path.read_bytes())
        self._seen = dict(self._kept)
        self._waiting: list[tuple[int, Event, File | None]] = []

    def move(self, old: str, new: str) -> None:
        """Give the folder another name, before anything happened in it."""
        self._kept = {f"{new}{path.removeprefix(old)}": file for path, file in self._kept.items()}
        self._seen = dict(self._kept)

    def take(self, number: int, event: Event) -> None:
        """Let an event happen."""
        file = self._seen.get(event.path)
        if event.name in ("pwrite64", "ftruncate"):
            assert file is not None, event.path
            file.change(number, event)
        elif event.name == "fsync":
            if file is not None:
                file.flush(event.since)
            else:
                self._flush_folder(event.path, event.since)
        elif event.name != "create" or file is None:
            changed = File() if event.name == "create" else file
            self._waiting.append((number, event, changed))
            _rename(self._seen, event, changed)

    def _flush_folder(self, folder: str, since: int) -> None:
        left = []
        for number, event, file in self._waiting:
            if os.path.dirname(event.path) == folder and number < since:
                _rename(self._kept, event, file)
            else:
                left.append((number, event, file))
        self._waiting = left

    def after_the_cut(self, dice: random.Random, folder: Path, to: Path) -> None:
        """Write what a disk may hold of `folder` as the new folder `to`."""
        names = dict(self._kept)
        for _, event, file in self._waiting[: dice.randint(0, len(self._waiting))]:
            _rename(names, event, file)
        for path, file in sorted(names.items()):
            place = to / Path(path).relative_to(folder)
            if not place.parent.is_dir() and place != to:
                continue  # Its folder is gone.
            if file is None:
                place.mkdir()
            else:
                place.write_bytes(file.after_the_cut(dice))


def _rename(names: dict[str, File | None], event: Event, file: File | None) -> None:
    """Change the names in a folder as `event` does."""
    if event.name in ("create", "mkdir"):
        names[event.path] = file
    elif event.name == "rename":
        names.pop(event.path, None)
        names[event.to] = file
    else:
        names.pop(event.path, None)
