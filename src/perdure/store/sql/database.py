"""What carries the SQL store's statements to one database, and how their text is made for it."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from perdure.store.liveness import Liveness

Value = str | int | float | None
Row = tuple[Any, ...]


class Statement(NamedTuple):
    """One statement of a list: a block of `statements.sql` and its parameters.

    `required`: without a row in answer nothing of the whole list happens. `shortcut` names a
    cheaper block for the common case, with the same parameters unless it has `shortcut_values`: a
    driver may try it first, and where it writes a row, all of that row is known but the store's
    time, which is the answer.
    """

    name: str
    values: tuple[Value, ...]
    required: bool = False
    shortcut: str | None = None
    shortcut_values: tuple[Value, ...] | None = None


class Refused(Exception):
    """A required statement, at `index` of its list, returned no row: nothing was written.

    `repeated`: the list was sent before, without an answer, so its own effect may have met it.
    """

    def __init__(self, index: int, *, repeated: bool = False) -> None:
        super().__init__(index)
        self.index = index
        self.repeated = repeated


class Connection(Protocol):
    """`Database.run` without a loop."""

    def run(self, statements: Sequence[Statement]) -> list[list[Row]]: ...
    def close(self) -> None: ...


class Database(Protocol):
    """Runs lists of statements. It knows its dialect, and nothing of runs.

    It belongs to the event loop of its first call. Errors of the database are raised as a
    `StoreError`.
    """

    @property
    def liveness(self) -> Liveness:
        """How a dead holder of a lease is told from a slow one."""
        ...

    @property
    def writes_wait(self) -> bool:
        """Whether a write waits for every other one, so that whoever may only have to read looks.

        Elsewhere a run that is new is found to be so by creating it.
        """
        ...

    async def open(self) -> None:
        """Connect, and check the schema or bring it up to date; idempotent.

        Every other call does it first where nobody did. Raises StoreError, UsageError.
        """
        ...

    def run(self, statements: Sequence[Statement]) -> Awaitable[list[list[Row]]]:
        """Run the list as one durable transaction; return the rows of each statement.

        Accepted at once: a caller that is cancelled cannot withdraw it. Raises Refused.
        """
        ...

    def read(self, statements: Sequence[Statement]) -> Awaitable[list[list[Row]]]:
        """Run statements that write nothing on one snapshot, which holds all that was written."""
        ...

    def watch(self, changed: Callable[[], None], *, interval_ms: int | None) -> None:
        """Call `changed` on the loop after another handle has written, until told otherwise.

        It is noticed within `interval_ms`; None: nobody wants to know. What was written since the
        last look, even while nobody watched, counts.
        """
        ...

    def connect(self) -> Connection:
        """Return a connection of its own, for one thread that is not the loop's."""
        ...

    async def scrub(self, *, whole: bool) -> None:
        """Overwrite what is left of deleted rows in files of our own; a server does so by itself.

        `whole`: write all of them anew. As far as that can be done now: who reads an old snapshot
        keeps what it shows.
        """
        ...

    async def close(self) -> None:
        """Finish what was accepted, then let go; idempotent."""
        ...


class Text(NamedTuple):
    """A statement in one dialect. `wants_now`: the store's time is its last parameter."""

    sql: str
    wants_now: bool


class Dialect(NamedTuple):
    """How one database writes what databases write differently.

    `now` is given the number of the parameter behind the last; `later` that expression and the
    parameter of the milliseconds; `rows` a parameter and its columns as (name, type).
    `skip_locked` ends a SELECT of runs that locks what it finds.
    """

    now: Callable[[int], str]
    later: Callable[[str, str], str]
    rows: Callable[[str, Sequence[tuple[str, str]]], str]
    skip_locked: str = ""


RUN_COLUMNS: Final = (
    "run_id, manifest_hash, project_id, status, state, created_at, updated_at, scenario_id, "
    "completed_at, lease_holder_id, lease_expires_at, outcome_json, step_count, tenant, epoch, "
    "strikes, reason, handler, manifest_json, wake_at, wake_key, stop_requested_at, session_id, "
    "turn_index, revision, parent_run_id, live_from, frames_expired_at, upstream_json, token"
)
STEP_COLUMNS: Final = (
    "step_index, intent, kind, status, attempts, input_hash, result_json, error_json, "
    "started_at, completed_at, epoch, effect, frames_to"
)
DELIVERY_COLUMNS: Final = (
    "run_id, position, topic, handler, key, payload_json, state, tries, token, due_at, "
    "last_error, created_at, delivered_at"
)
SCHEDULE_COLUMNS: Final = (
    "name, task, manifest_json, cron, every_ms, timezone, catch_up, overlap, next_due_at, tenant, "
    "paused_at, last_due_at, last_run_id, created_at, updated_at"
)
DUE_COLUMNS: Final = (
    "run_id, manifest_hash, tenant, session_id, turn_index, (SELECT s.owner_id "
    "FROM perdure_sessions s WHERE s.tenant = durable_runs.tenant "
    "AND s.session_id = durable_runs.session_id)"
)

# The status is hidden from the indexes of those that are not over, here and wherever one run is
# meant: a planner that knew them while they were few would look through all of them for ever.
_FENCE = (
    "{0}run_id = ?1 AND {0}epoch = CAST(?2 AS INTEGER) AND {0}token = ?3 "
    "AND {0}lease_holder_id = ?4 AND coalesce({0}status, '') = 'running'"
)
# A refinement counts only beside the status that it belongs to: see `transitions.state_of`.
_STATE = (
    "CASE status WHEN 'pending' THEN 'queued' "
    "WHEN 'suspended' THEN CASE WHEN state IN ('sleeping', 'parked') THEN state "
    "ELSE 'waiting' END "
    "WHEN 'completed' THEN CASE WHEN state = 'stopped' THEN state ELSE status END "
    "ELSE status END"
)
# The newest revision of the highest earlier turn that has an answer.
_PARENT = (
    "(SELECT p.run_id FROM durable_runs p WHERE p.tenant = ?5 AND p.session_id = ?8 "
    "AND p.turn_index < CAST(?9 AS INTEGER) AND p.status = 'completed' "
    "ORDER BY p.turn_index DESC, p.revision DESC LIMIT 1)"
)
# No moment is behind '9'. ?1 tenant, ?2 state, ?3 session, ?4 handler, ?5 since; behind ?6.
_WANTED = (
    f"(?1 IS NULL OR tenant = ?1) AND (?2 IS NULL OR {_STATE} = ?2) "
    "AND (?3 IS NULL OR session_id = ?3) AND (?4 IS NULL OR handler = ?4) "
    "AND {0} >= coalesce(?5, '') AND ({0}, run_id) < ("
    "coalesce((SELECT a.created_at FROM durable_runs a WHERE a.run_id = ?6), '9'), "
    "coalesce(?6, ''))"
)
_BEHIND = (
    "(created_at, run_id) < ("
    "coalesce((SELECT a.created_at FROM durable_runs a WHERE a.run_id = ?1), '9'), "
    "coalesce(?1, ''))"
)
# Over and done with by ?1: nothing waits to follow, and the whole session is at rest.
_OVER = (
    "status IN ('completed', 'failed') AND completed_at <= ?1 "
    "AND NOT EXISTS (SELECT 1 FROM perdure_outbox o "
    "WHERE o.run_id = durable_runs.run_id AND o.state = 'waiting') "
    "AND NOT EXISTS (SELECT 1 FROM durable_runs t WHERE t.tenant = durable_runs.tenant "
    "AND t.session_id = durable_runs.session_id "
    "AND (t.status NOT IN ('completed', 'failed') OR coalesce(t.completed_at, '9') > ?1))"
)
# What a TypeScript worker has written: a turn of it has its place in its id only. The tenant is
# hidden from the index that begins with it, here and below, for the sake of a smaller one.
_FOREIGN = (
    "durable_runs.manifest_json IS NULL AND durable_runs.session_id IS NULL "
    "AND coalesce(durable_runs.tenant, '') = ''"
)
_HEAD = "rtrim(durable_runs.run_id, '0123456789')"
_OWNER = (
    "(SELECT s.owner_id FROM perdure_sessions s WHERE s.tenant = durable_runs.tenant "
    f"AND s.session_id = CASE WHEN {_FOREIGN} AND durable_runs.run_id LIKE 'chat:_%:_%' "
    f"THEN substr({_HEAD}, 6, length({_HEAD}) - 6) ELSE durable_runs.session_id END)"
)
# The answer of a turn, where it is asked for by ?5.
_ANSWER = (
    "CASE WHEN CAST(?5 AS INTEGER) = 1 THEN (SELECT a.result_json FROM durable_steps a "
    "WHERE a.run_id = durable_runs.run_id AND a.step_index = 0 AND a.status = 'completed') END"
)
# Nobody will settle what an attempt that is over has left open.
_USAGE_STATE = (
    "CASE WHEN state = 'intended' AND EXISTS ("
    "SELECT 1 FROM perdure_attempts a WHERE a.run_id = perdure_usage.run_id "
    "AND a.epoch = perdure_usage.epoch AND a.ended_at IS NOT NULL) "
    "THEN 'unknown' ELSE state END"
)
USAGE_COLUMNS: Final = (
    f"epoch, call, {_USAGE_STATE} AS state, step_index, provider, model, request_id, tokens_in, "
    "tokens_out, tokens_cached, tokens_reasoning, cost_nanos, currency, price_version, "
    "intended_at, settled_at, tokens_cache_written"
)
# The figures of a sum, in the order of a UsageSum.
_SUMS = (
    "count(*) AS calls, count(CASE WHEN state = 'settled' THEN 1 END) AS settled, "
    "count(CASE WHEN state = 'unknown' THEN 1 END) AS unknown, "
    "count(CASE WHEN state = 'intended' THEN 1 END) AS running, "
    "CAST(sum(tokens_in) AS BIGINT) AS tokens_in, CAST(sum(tokens_out) AS BIGINT) AS tokens_out, "
    "CAST(sum(tokens_cached) AS BIGINT) AS tokens_cached, "
    "CAST(sum(tokens_reasoning) AS BIGINT) AS tokens_reasoning, "
    "CAST(sum(tokens_cache_written) AS BIGINT) AS tokens_cache_written, "
    "count(CASE WHEN tokens_in IS NULL OR tokens_out IS NULL THEN 1 END) AS uncounted, "
    "CAST(sum(cost_nanos) AS BIGINT) AS cost_nanos, "
    "count(CASE WHEN cost_nanos IS NULL THEN 1 END) AS unpriced, "
    "min(intended_at) AS first_at, max(intended_at) AS last_at"
)
# No moment is behind '9'. ?3 since, ?4 until.
_CALLED = "{0} >= coalesce(?3, '') AND {0} < coalesce(?4, '9')"
# By the runs of the session ?2, of the tenant ?1, and not by the moment.
_CALLED_THERE = (
    "run_id IN (SELECT r.run_id FROM durable_runs r WHERE r.tenant = ?1 AND r.session_id = ?2) "
    "AND " + _CALLED.format("coalesce(intended_at, '')")
)
_PIECES: Final[Mapping[str, str]] = {
    "fence": f"EXISTS (SELECT 1 FROM durable_runs f WHERE {_FENCE.format('f.')})",
    "fence_self": _FENCE.format("durable_runs."),
    "state": _STATE,
    "parent": _PARENT,
    "wanted": _WANTED.format("created_at"),
    # Not by the index of this column.
    "wanted_there": _WANTED.format("coalesce(created_at, '')"),
    "behind": _BEHIND,
    "over": _OVER,
    "foreign": _FOREIGN,
    "owner": _OWNER,
    "answer": _ANSWER,
    "usage_columns": USAGE_COLUMNS,
    "sums": _SUMS,
    "called": _CALLED.format("intended_at"),
    "called_there": _CALLED_THERE,
    "run_columns": RUN_COLUMNS,
    "step_columns": STEP_COLUMNS,
    "delivery_columns": DELIVERY_COLUMNS,
    "schedule_columns": SCHEDULE_COLUMNS,
    "due_columns": DUE_COLUMNS,
}

_BLOCK = re.compile(r"^-- (\w+) --\n", re.MULTILINE)
_COMMENT = re.compile(r"^--.*\n?", re.MULTILINE)
_PARAMETER = re.compile(r"\?(\d+)")
_PIECE = re.compile(r"\{(\w+)\}")
_MARK = re.compile(r"\{(now|rows)(?:\+(\?\d+)|\s+(\?\d+):\s*([^}]*))?\}")


def package_text(name: str) -> str:
    """Return a text file that lies beside this module."""
    data = pkgutil.get_data("perdure.store.sql", name)
    if data is None:
        raise FileNotFoundError(name)
    return data.decode("utf-8")


def read_blocks() -> dict[str, str]:
    """Return every block of `statements.sql` by name, without its comments, for any database."""
    pieces = _BLOCK.split(package_text("statements.sql"))
    blocks = zip(pieces[1::2], pieces[2::2], strict=True)
    return {name: _COMMENT.sub("", block).strip() for name, block in blocks}


def load_statements(dialect: Dialect, blocks: Mapping[str, str] | None = None) -> dict[str, Text]:
    """Return every block, or those of `blocks`, written for one database."""
    blocks = read_blocks() if blocks is None else blocks
    return {name: _expand(block, dialect) for name, block in blocks.items()}


def _expand(block: str, dialect: Dialect) -> Text:
    pieces = {**_PIECES, "skip_locked": dialect.skip_locked}
    block = _PIECE.sub(lambda mark: pieces.get(mark[1], mark[0]), block)
    last = max((int(number) for number in _PARAMETER.findall(block)), default=0)
    now = dialect.now(last + 1)

    def replace(mark: re.Match[str]) -> str:
        name, length, source, columns = mark.groups()
        if name == "now":
            return dialect.later(now, length) if length else now
        pairs = [column.split() for column in columns.split(",")]
        return dialect.rows(source, [(column, kind) for column, kind in pairs])

    return Text(_MARK.sub(replace, block), wants_now="{now" in block)
