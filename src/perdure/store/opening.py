"""Opening a store by its address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from perdure.core.effects import Clock, system_clock
from perdure.errors import UsageError
from perdure.store.protocol import RunStore

if TYPE_CHECKING:
    from perdure.store.sql.database import Database

_FORMS: Final = {
    "sqlite": "sqlite:///PATH for a relative path, sqlite:////PATH for an absolute one",
    "file": "file:PATH for a relative path, file:///PATH for an absolute one",
}


async def open_store(
    url: str,
    *,
    migrate: bool | None = None,
    durability: Literal["full", "normal"] = "full",
    code_version: str | None = None,
    clock: Clock | None = None,
) -> RunStore:
    """Open the store at `url` and return it ready for use.

    `memory:` forgets everything with the process. `sqlite:PATH` and `sqlite:///PATH` are a file
    on a local disk, `sqlite:////PATH` one from the root; it is made where there is none.
    `file:PATH` and, from the root, `file:///PATH` are a folder of logs on a local disk (POSIX).
    `postgresql://USER@HOST/DATABASE?schema=perdure` is a schema for any number of workers
    (`perdure[postgres]`); with `pooled=1` behind a pooler in transaction mode.
    `d1:ACCOUNT_ID/DATABASE_ID` is a D1 database over Cloudflare's HTTP API (`perdure[d1]`), with
    the token of `CLOUDFLARE_API_TOKEN`; a Worker uses its binding, `SqlStore(D1(env.DB))`.
    `migrate` None brings the schema up to date where that is safe while other processes run, as
    it is for SQLite, and not for PostgreSQL and D1; False refuses a database that lacks something.
    `durability="normal"` leaves flushing to the system: a power cut may undo acknowledged writes.
    `code_version` is stored with every attempt. `clock` gives the store's time, in milliseconds
    since the epoch, in place of the machine's or the database's.

    Raises UsageError for an address that is not understood, SchemaError, StoreError.
    """
    scheme, colon, rest = url.partition(":")
    settings = _Settings(migrate, durability, code_version, clock)
    if scheme == "memory" and colon and not rest.strip("/"):
        from perdure.store.memory import MemoryStore

        return MemoryStore(clock=clock or system_clock, code_version=code_version)
    if scheme == "sqlite" and colon:
        return await _open_sqlite(_path(scheme, rest), settings)
    if scheme == "file" and colon:
        return await _open_files(_path(scheme, rest), settings)
    if scheme in ("postgresql", "postgres") and rest.startswith("//"):
        return await _open_postgres(url, settings)
    if scheme == "d1" and colon:
        return await _open_d1(url, settings)
    raise UsageError(
        f"{_shown(url)!r} is not the address of a store; known are memory:, sqlite:PATH (also "
        "sqlite:///PATH), file:PATH, postgresql://HOST/DATABASE and d1:ACCOUNT_ID/DATABASE_ID"
    )


class _Settings(NamedTuple):
    """What `open_store` was asked for beside the address."""

    migrate: bool | None
    durability: Literal["full", "normal"]
    code_version: str | None
    clock: Clock | None


async def _open_sqlite(path: str, settings: _Settings) -> RunStore:
    from perdure.store.sql.sqlite import Sqlite

    database = Sqlite(
        path,
        durability=settings.durability,
        migrate=settings.migrate is not False,
        clock=settings.clock or system_clock,
    )
    return await _opened(database, settings)


async def _open_postgres(url: str, settings: _Settings) -> RunStore:
    from perdure.store.sql.postgres.driver import Postgres

    # A fleet is migrated by a command, not by whichever worker comes first.
    database = Postgres(
        url,
        durability=settings.durability,
        migrate=bool(settings.migrate),
        clock=settings.clock,
    )
    return await _opened(database, settings)


async def _open_d1(url: str, settings: _Settings) -> RunStore:
    from perdure.store.sql.d1.address import read_address

    address = read_address(url)
    from perdure.store.sql.d1.api import BASE_URL, D1Api
    from perdure.store.sql.d1.driver import API_POLL_MS, D1

    account_id, database_id, token, base_url = address
    database = D1(
        D1Api(account_id, database_id, token, base_url=base_url or BASE_URL),
        migrate=bool(settings.migrate),
        clock=settings.clock,
        # The API allows an account a few requests a second.
        poll_ms=API_POLL_MS,
    )
    return await _opened(database, settings)


async def _opened(database: Database, settings: _Settings) -> RunStore:
    from perdure.store.sql.store import SqlStore

    try:
        await database.open()
    except BaseException:
        await database.close()
        raise
    return SqlStore(database, code_version=settings.code_version)


async def _open_files(path: str, settings: _Settings) -> RunStore:
    from perdure.store.files import FileStore

    store = FileStore(
        path,
        durability=settings.durability,
        clock=settings.clock or system_clock,
        code_version=settings.code_version,
    )
    try:
        await store.open()
    except BaseException:
        await store.close()
        raise
    return store


def path_of(url: str) -> str | None:
    """Return the path of the file or folder that `url` is the address of; None if of none.

    Raises UsageError for an address that is not understood.
    """
    scheme, colon, rest = url.partition(":")
    return _path(scheme, rest) if scheme in _FORMS and colon else None


def _shown(url: str) -> str:
    """Return an address for an error: without user, password and query, which may be secrets."""
    place = url.partition("?")[0]
    scheme, slashes, rest = place.partition("//")
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}"[:80]


def _path(scheme: str, rest: str) -> str:
    """Return the path of what stands behind the scheme."""
    if "?" in rest:
        raise UsageError(
            f"{_shown(f'{scheme}:{rest}')!r} has a query, which is not understood: settings are "
            "arguments of open_store"
        )
    if not rest.startswith("//"):
        return rest
    host, slash, path = rest[2:].partition("/")
    if host or not slash:
        raise UsageError(
            f"{_shown(f'{scheme}:{rest}')!r} names the host {host.rpartition('@')[2]!r}: "
            f"write {_FORMS[scheme]}"
        )
    # The two schemes differ here by custom: of `file:`, all that follows the host is the path.
    return f"/{path}" if scheme == "file" else path
