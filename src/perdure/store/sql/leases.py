"""Renewing leases in an SQL database: all of them at once, and alone those that were locked."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence

from perdure.core.effects import shuffled
from perdure.core.records import Lease
from perdure.errors import StoreBusyError
from perdure.store.entry import check_lease
from perdure.store.sql.database import Connection, Database, Row, Statement

Renewal = Generator[Statement, list[Row], dict[Lease, bool]]
"""Asks for one transaction after another, and comes to the answer of `RunStore.renew`."""


class SqlRenewer:
    """`RunStore.renew` for a heartbeat thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        renewal = _renewal(leases, lease_ms)
        try:
            statement = next(renewal)
            while True:
                try:
                    (rows,) = self._connection.run([statement])
                except StoreBusyError as error:
                    statement = renewal.throw(error)
                else:
                    statement = renewal.send(rows)
        except StopIteration as over:
            return _answer(over)

    def close(self) -> None:
        self._connection.close()


async def renew(database: Database, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
    """Renew the leases as `RunStore.renew` says."""
    check_lease(lease_ms)
    renewal = _renewal(leases, lease_ms)
    try:
        statement = next(renewal)
        while True:
            try:
                (rows,) = await database.run([statement])
            except StoreBusyError as error:
                statement = renewal.throw(error)
            else:
                statement = renewal.send(rows)
    except StopIteration as over:
        return _answer(over)


def _answer(over: StopIteration) -> Mapping[Lease, bool]:
    answer: dict[Lease, bool] = over.value
    return answer


def _renewal(leases: Sequence[Lease], lease_ms: int) -> Renewal:
    if not leases:
        return {}
    held = _held(leases, (yield _beat("beat", leases, lease_ms)))
    missing = [lease for lease in leases if lease not in held]
    if not missing:
        return held
    standing = _held(missing, (yield Statement("standing_leases", (json.dumps(missing),))))
    for lease in shuffled(standing):
        try:
            moved = _held([lease], (yield _beat("beat_locked", [lease], lease_ms)))
        except StoreBusyError:
            # Whoever keeps the row locked keeps everybody from claiming it too.
            break
        if lease in moved:
            standing.update(moved)
        else:
            del standing[lease]
    return held | standing


def _beat(name: str, leases: Sequence[Lease], lease_ms: int) -> Statement:
    return Statement(name, (json.dumps(leases), lease_ms))


def _held(leases: Sequence[Lease], rows: Sequence[Row]) -> dict[Lease, bool]:
    """Return which of the leases have a row: of one run at most one."""
    found = {tuple(lease): stop_requested_at is not None for *lease, stop_requested_at in rows}
    return {lease: found[lease] for lease in leases if lease in found}
