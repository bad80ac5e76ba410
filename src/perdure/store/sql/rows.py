"""Records from the rows that the statements return."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.core.identity import logical_id, turn_place
from perdure.core.jsonvalue import decode_value, decode_values
from perdure.core.recordjson import manifest_from_json, outcome_from_json, step_error_from_json
from perdure.core.records import (
    AttemptRecord,
    DeliveryRecord,
    EventRecord,
    JsonValue,
    RunRecord,
    StepError,
    StepRecord,
    UsageRecord,
)
from perdure.core.transitions import state_of
from perdure.store.sql.database import Row


def decoded(text: str | None) -> JsonValue:
    """Return the value of stored JSON; a column that was left empty is null."""
    return None if text is None else decode_value(text)


def logical_run_id(stored_id: str) -> str:
    """Return the id by which callers know a run."""
    return logical_id(stored_id)[1] if stored_id[0] == "@" else stored_id


def run_record(row: Row, *, owner_id: str | None = None, answer: str | None = None) -> RunRecord:
    """Return the run of a row that begins with RUN_COLUMNS."""
    status, manifest, outcome, parent = row[3], row[18], row[11], row[25]
    run = RunRecord._make(
        (
            logical_run_id(row[0]),
            *row[1:4],
            state_of(status, row[4]),
            *row[5:11],
            None if outcome is None else outcome_from_json(decode_value(outcome)),
            *row[12:18],
            None if manifest is None else manifest_from_json(decode_value(manifest)),
            *row[19:25],
            logical_run_id(parent) if parent else None,
            *row[26:28],
            decoded(row[28]),
            owner_id,
            decoded(answer),
        )
    )
    return _in_its_place(run) if manifest is None and run.session_id is None else run


def _in_its_place(run: RunRecord) -> RunRecord:
    """Return a run of a TypeScript worker with its place in a session, which its id tells."""
    place = None if run.tenant else turn_place(run.run_id)
    if place is None or place[2]:
        return run
    return run._replace(session_id=place[0], turn_index=place[1])


def manifest_text_of(row: Row) -> str | None:
    """Return the stored manifest of a row that begins with RUN_COLUMNS."""
    text: str | None = row[18]
    return text


def token_of(row: Row) -> str | None:
    """Return the lease token of a row that begins with RUN_COLUMNS."""
    token: str | None = row[29]
    return token


def owner_of(row: Row) -> str | None:
    """Return the owner of the run's session of a row of `read_run`."""
    owner_id: str | None = row[30]
    return owner_id


def now_of(row: Row) -> str:
    """Return the store's time of a row of `read_run`."""
    return str(row[31])


def step_record(run_id: str, row: Row) -> StepRecord:
    """Return the step of a row of STEP_COLUMNS; `run_id` is logical."""
    result, error = row[6], row[7]
    return StepRecord._make(
        (
            run_id,
            *row[:6],
            None if result is None else decode_value(result),
            None if error is None else error_record(error),
            *row[8:],
        )
    )


def step_records(run_id: str, rows: Sequence[Row]) -> list[StepRecord]:
    """Return the steps of rows of STEP_COLUMNS; `run_id` is logical."""
    results = decode_values([row[6] for row in rows])
    # Spelt out, since slices of each row take as long as its record.
    make = StepRecord._make
    return [
        make((run_id, a, b, c, d, e, f, result, error and error_record(error), g, h, i, j, k))
        for (a, b, c, d, e, f, _, error, g, h, i, j, k), result in zip(rows, results, strict=True)
    ]


def error_record(text: str | None) -> StepError | None:
    return None if text is None else step_error_from_json(decode_value(text))


def event_record(run_id: str, row: Row) -> EventRecord:
    return EventRecord(run_id, row[0], decoded(row[1]), row[2])


def attempt_record(row: Row) -> AttemptRecord:
    return AttemptRecord._make((*row[:7], error_record(row[7])))


def usage_record(row: Row) -> UsageRecord:
    return UsageRecord._make(row)


def delivery_record(row: Row) -> DeliveryRecord:
    tenant, _ = logical_id(row[0])
    return DeliveryRecord._make((row[0], tenant, *row[1:5], decode_value(row[5]), *row[6:]))
