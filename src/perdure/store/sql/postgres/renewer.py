"""A connection for a thread that is not the loop's: leases are renewed through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from perdure.store.sql.database import Refused, Row, Statement
from perdure.store.sql.postgres.dialect import is_lost, refused_index, translated
from perdure.store.sql.postgres.texts import Renderer

Connection = psycopg.Connection[tuple[Any, ...]]


class PostgresConnection:
    """Runs lists one by one, each as one transaction; reconnects after a loss."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        renderer: Renderer,
        *,
        begin: Sequence[str],
        prepare: bool,
        target: str,
    ) -> None:
        self._connect = connect
        self._renderer = renderer
        self._begin = begin
        self._prepare = prepare
        self._target = target
        self._connection: Connection | None = None

    def run(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Run one list as one transaction. Raises Refused, StoreError."""
        try:
            return self._transaction(statements)
        except Exception as error:
            if is_lost(error):
                self.close()
            index = refused_index(error)
            if index is not None:
                raise Refused(index) from None
            meaning = translated(error, self._target)
            raise meaning from meaning.__cause__

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _transaction(self, statements: Sequence[Statement]) -> list[list[Row]]:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        connection = self._connection
        found: list[list[Row]] = []
        try:
            for text in self._begin:
                connection.execute(text.encode())
            for _, sql, values, _ in self._renderer.render(statements, is_fused=False):
                cursor = connection.cursor()
                texts = [None if value is None else value.decode() for value in values]
                cursor.execute(sql, texts, prepare=self._prepare)
                found.append(cursor.fetchall() if cursor.description else [])
            connection.execute(b"COMMIT")
        except Exception as error:
            if not is_lost(error) and not connection.closed:
                connection.rollback()
            raise
        return found
