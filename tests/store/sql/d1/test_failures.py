"""What D1's errors mean, by their text: they have nothing else."""

from __future__ import annotations

import pytest

from perdure.errors import (
    PerdureError,
    SchemaError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    ValueTooLargeError,
)
from perdure.store.sql.d1.failures import D1Failure, is_busy, is_lost, translated

LOST = [
    "D1_ERROR: Network connection lost.",
    "Internal error while starting up D1 DB storage caused object to be reset.",
    "D1 DB storage operation exceeded timeout which caused object to be reset.",
    "D1 DB reset because its code was updated.",
    "Cannot resolve D1 DB due to transient issue on remote node.",
]
BUSY = [
    "D1_ERROR: D1 DB is overloaded. Requests queued for too long.",
    "D1 DB is overloaded. Too many requests queued.",
    "D1_ERROR: database is locked: SQLITE_BUSY",
]


@pytest.mark.parametrize("text", LOST)
def test_what_may_have_happened_is_told_from_the_rest(text: str) -> None:
    assert is_lost(RuntimeError(text))
    assert not is_busy(RuntimeError(text))
    assert type(translated(RuntimeError(text), "D1")) is StoreUnavailableError


@pytest.mark.parametrize("text", BUSY)
def test_an_overloaded_database_has_done_nothing(text: str) -> None:
    assert is_busy(RuntimeError(text))
    assert not is_lost(RuntimeError(text))
    assert type(translated(RuntimeError(text), "D1")) is StoreBusyError


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("D1_ERROR: Exceeded maximum DB size.", StoreFullError),
        ("D1_ERROR: database or disk is full: SQLITE_FULL", StoreFullError),
        ("D1_ERROR: string or blob too big: SQLITE_TOOBIG", ValueTooLargeError),
        ("D1_ERROR: statement too long: SQLITE_TOOBIG", ValueTooLargeError),
        ("D1_ERROR: no such table: durable_runs: SQLITE_ERROR", SchemaError),
        ("D1_ERROR: database disk image is malformed: SQLITE_CORRUPT", StoreCorruptError),
        ("D1_ERROR: not authorized: SQLITE_AUTH", StoreUnavailableError),
        ("D1_ERROR: malformed JSON: SQLITE_ERROR", StoreError),
        ("D1_TYPE_ERROR: Type 'undefined' not supported", StoreError),
    ],
)
def test_other_errors_are_told_by_their_text(text: str, kind: type[PerdureError]) -> None:
    error = RuntimeError(text)
    assert not is_lost(error)
    assert not is_busy(error)
    told = translated(error, "D1 of the team")
    assert type(told) is kind
    assert told.__cause__ is error
    assert "D1 of the team" in str(told)


@pytest.mark.parametrize(
    ("status", "text", "lost", "kind"),
    [
        (0, "ReadTimeout", True, StoreUnavailableError),
        (502, "status 502: <html>", True, StoreUnavailableError),
        (500, "no such table: x: SQLITE_ERROR", False, SchemaError),
        (500, "UNIQUE constraint failed: SQLITE_CONSTRAINT", False, StoreError),
        (400, "near FROM: syntax error", False, StoreError),
        (401, "Authentication error (code 10000)", False, StoreUnavailableError),
        (404, "The database x could not be found (code 7404)", False, StoreUnavailableError),
        (429, "Rate limited", False, StoreBusyError),
    ],
)
def test_over_http_the_status_counts_too(
    status: int, text: str, lost: bool, kind: type[PerdureError]
) -> None:
    error = D1Failure(text, status=status)
    assert is_lost(error) is lost
    assert type(translated(error, "D1")) is kind


def test_an_error_of_ours_stays_what_it_is() -> None:
    error = SchemaError("it lacks something")
    assert translated(error, "D1") is error


def test_a_long_text_is_cut_and_a_missing_one_is_named() -> None:
    assert len(str(translated(RuntimeError("x" * 9_000), "D1"))) < 400
    assert "KeyError" in str(translated(KeyError(), "D1"))
