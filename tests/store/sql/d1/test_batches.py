"""Lists as batches: what is sent can be run and read by D1, and is refused inside the database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from perdure.errors import UsageError
from perdure.store.sql.d1.batches import d1_statements, refused_index, render, rows_of_list
from perdure.store.sql.d1.binding import rows_of
from perdure.store.sql.d1.schema import migration_sql
from perdure.store.sql.database import Refused, Statement
from perdure.store.sql.schema import own_migrations

PARAMETERS_MAX = 100
NOW = "2026-01-31T09:05:07.042Z"


@pytest.fixture(scope="module")
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    for statement in migration_sql(own_migrations(), NOW):
        connection.execute(statement)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    yield connection
    connection.close()


@pytest.mark.parametrize("own_clock", [True, False])
@pytest.mark.parametrize("name", sorted(d1_statements(own_clock=True)))
def test_every_statement_can_be_sent(
    name: str, own_clock: bool, connection: sqlite3.Connection
) -> None:
    text = d1_statements(own_clock=own_clock)[name]
    assert len(text.places) <= PARAMETERS_MAX
    cursor = connection.execute(text.sql, ["1"] * len(text.places))
    # Rows come as objects by column: one of two with the same name would be lost, and one whose
    # name is a number would come first.
    columns = [column[0] for column in cursor.description or ()]
    assert len(set(columns)) == len(columns)
    assert not any(column.isdecimal() for column in columns)


def test_numbers_are_bound_as_text_and_only_what_is_named() -> None:
    texts = d1_statements(own_clock=True)
    lease = ("r", 7, "token", "worker")
    batch = render(texts, [Statement("release_run", lease)], NOW)
    assert batch.places == [0]
    ((_, values),) = batch.sent
    assert values == ("r", "7", "token", "worker", NOW)


def test_a_required_statement_is_followed_by_what_fails_without_its_row(
    connection: sqlite3.Connection,
) -> None:
    texts = d1_statements(own_clock=False)
    required = [
        Statement("free_run", ("nobody",), required=True),
        Statement("lock_run", ("nobody",), required=True),
    ]
    batch = render(texts, required, None)
    assert batch.places == [0, 2]
    for index, place in enumerate(batch.places):
        connection.execute(*batch.sent[place])
        with pytest.raises(sqlite3.Error) as caught:
            connection.execute(*batch.sent[place + 1])
        assert refused_index(caught.value) == index
    assert refused_index(ValueError("something else")) is None


def test_a_required_statement_without_a_row_is_refused_where_a_batch_did_not_fail() -> None:
    texts = d1_statements(own_clock=False)
    statements = [Statement("lock_run", ("nobody",), required=True)]
    batch = render(texts, statements, None)
    with pytest.raises(Refused):
        rows_of_list(statements, batch, [{"results": []}, {"results": [{"held": None}]}])


def test_a_lone_surrogate_is_refused_since_it_would_come_back_as_something_else() -> None:
    with pytest.raises(UsageError, match="surrogate"):
        render(d1_statements(own_clock=False), [Statement("read_run", ("\ud800",))], None)


def test_rows_come_from_items_and_attributes_with_whole_numbers() -> None:
    class Result:
        results = ({"a": 2.0, "b": "x"}, {"a": 0.5, "b": None})

    assert rows_of(Result()) == [(2, "x"), (0.5, None)]
    assert rows_of({"results": [{"a": 3}]}) == [(3,)]
    assert isinstance(rows_of(Result())[0][0], int)
    assert rows_of({"results": None}) == []
