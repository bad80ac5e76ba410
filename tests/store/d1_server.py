"""Cloudflare's own D1 in a process of its own: over HTTP, and as the binding of a Worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from perdure.core.effects import Clock
from perdure.store.sql.d1.api import D1Api
from perdure.store.sql.d1.binding import D1Binding
from perdure.store.sql.d1.driver import D1
from perdure.store.sql.d1.schema import migration_sql
from perdure.store.sql.schema import own_migrations
from perdure.store.sql.store import SqlStore
from tests.node_packages import NODE_TESTS

TOKEN = "secret-of-the-tests"
ACCOUNT = "0123456789abcdef"
DATABASES = ("one", "two", "three")
POLL_MS = 20
NOW = "2026-01-01T00:00:00.000Z"
Fault = str | Mapping[str, Any] | None


class D1Server:
    """A running D1 with a few databases, each empty until it is prepared."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self._client = httpx2.Client(verify=False)
        self._bridged: list[BridgedBinding] = []
        self._swept: dict[str, list[str]] = {}

    def close(self) -> None:
        self._client.close()

    @property
    def base_url(self) -> str:
        return f"{self.origin}/client/v4"

    def api(self, database: str = DATABASES[0], *, token: str = TOKEN) -> D1Api:
        return D1Api(ACCOUNT, database, token, base_url=self.base_url)

    def url(self, database: str) -> str:
        """Return the address of a store; the token is one of the environment."""
        return f"d1:{ACCOUNT}/{database}?base_url={self.base_url}"

    def binding(self, database: str = DATABASES[0]) -> BridgedBinding:
        bridged = BridgedBinding(f"{self.origin}/binding/{database}")
        self._bridged.append(bridged)
        return bridged

    async def let_go(self) -> None:
        """Close the bridges to all bindings that were handed out."""
        while self._bridged:
            await self._bridged.pop().let_go()

    def store(
        self, binding: D1Binding, clock: Clock | None = None, code_version: str | None = None
    ) -> SqlStore:
        return SqlStore(D1(binding, clock=clock, poll_ms=POLL_MS), code_version=code_version)

    def fail(self, *faults: Fault) -> int:
        """Let the batches to come fail like this, one after another; return how many there were."""
        answer = self._client.post(f"{self.origin}/faults", json=faults).raise_for_status()
        return int(answer.json()["batches"])

    def run(self, *texts: str, database: str = DATABASES[0]) -> list[list[dict[str, Any]]]:
        """Run statements as one batch; return the rows of each by column."""
        statements = [{"sql": text, "params": []} for text in texts]
        asked = {"call": "batch", "statements": statements}
        answer = self._client.post(f"{self.origin}/binding/{database}", json=asked)
        if answer.is_error:
            raise RuntimeError(answer.text)
        return [result["results"] for result in answer.json()]

    def clean(self, database: str = DATABASES[0]) -> str:
        """Return the name of a database that has all tables, and no rows in them."""
        if database in self._swept:
            self.run(*self._swept[database], database=database)
            return database
        self.drop(database)
        self.run(*migration_sql(own_migrations(), NOW), database=database)
        kept = ("perdure_schema", "durable_schema_info")
        tables = [name for name in self._tables(database) if name not in kept]
        self._swept[database] = [f'DELETE FROM "{name}"' for name in tables]
        return database

    def drop(self, database: str = DATABASES[0]) -> str:
        """Return the name of a database without any table."""
        self._swept.pop(database, None)
        tables = self._tables(database)
        if tables:
            self.run(*(f'DROP TABLE "{name}"' for name in tables), database=database)
        return database

    def _tables(self, database: str) -> list[str]:
        sql = (
            "SELECT name FROM sqlite_master WHERE type = 'table' "
            "AND name NOT LIKE 'sqlite_%' AND name NOT LIKE '_cf_%'"
        )
        (rows,) = self.run(sql, database=database)
        return [row["name"] for row in rows]


class BridgedBinding:
    """The surface of a Worker's binding; each call goes to a real one in another process."""

    target = "D1 of the tests"

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx2.AsyncClient(timeout=30, verify=False)

    def prepare(self, sql: str) -> BridgedStatement:
        return BridgedStatement(self, sql)

    async def batch(self, statements: Sequence[BridgedStatement]) -> Any:
        return await self.call("batch", statements)

    async def let_go(self) -> None:
        """Close the connections of the bridge, which no user of a binding does."""
        await self._client.aclose()

    async def call(self, name: str, statements: Sequence[BridgedStatement]) -> Any:
        asked = [{"sql": each.sql, "params": list(each.values)} for each in statements]
        answer = await self._client.post(self._url, json={"call": name, "statements": asked})
        if answer.is_error:
            raise BridgedError(answer.json()["message"])
        return answer.json()


class BridgedStatement(NamedTuple):
    binding: BridgedBinding
    sql: str
    values: tuple[Any, ...] = ()

    def bind(self, *values: Any) -> BridgedStatement:
        return self._replace(values=values)

    async def first(self) -> Any:
        return await self.binding.call("first", [self])

    async def all(self) -> Any:
        return await self.binding.call("all", [self])

    async def run(self) -> Any:
        return await self.binding.call("run", [self])


class BridgedError(Exception):
    """What the binding raised."""


@contextmanager
def running_d1(folder: Path | None = None) -> Iterator[D1Server]:
    """Run D1 for the block; with a folder its data stays there."""
    environment = {**os.environ, "D1_TOKEN": TOKEN}
    if folder is not None:
        environment["D1_FOLDER"] = str(folder)
    with subprocess.Popen(
        ["node", "d1.mjs"],
        cwd=NODE_TESTS,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            port = json.loads(process.stdout.readline())["port"]
            with closing(D1Server(f"http://127.0.0.1:{port}")) as server:
                yield server
        finally:
            # Its database runs in a child of its own.
            os.killpg(process.pid, signal.SIGKILL)
