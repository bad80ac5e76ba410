"""Turns as a TypeScript worker leaves them: rows of version 1, which knows no sessions."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from perdure.core.effects import iso_time
from perdure.core.identity import canonical_hash, manifest_hash
from perdure.testing.clock import ManualClock
from perdure.turn.identity import ChatTurnIdentity, chat_manifest, intent_of, run_id_of

HOLDER = "web-7f9c:4711:k3j9x2ab:1"
LEASE_MS = 60_000


class TypeScriptWorker:
    """Writes to a database what the reference's engine writes, statement by statement."""

    def __init__(self, path: Path, clock: ManualClock) -> None:
        self._path = path
        self._clock = clock

    def begin(self, turn: ChatTurnIdentity, message: str = "Hi") -> None:
        """Claim a turn and begin its step."""
        manifest = chat_manifest(turn, message, project_id="perdure", domain="chat", model=None)
        now, run_id = self._now(), run_id_of(turn)
        self._run(
            "INSERT INTO durable_runs (run_id, manifest_hash, project_id, scenario_id, status, "
            "created_at, updated_at, lease_holder_id, lease_expires_at, step_count) "
            "VALUES (?, ?, ?, ?, 'running', ?, ?, ?, ?, 0)",
            *(run_id, manifest_hash(manifest), "perdure", turn.session_id),
            *(now, now, HOLDER, self._now(LEASE_MS)),
        )
        self._run(
            "INSERT INTO durable_steps (run_id, step_index, intent, kind, input_hash, status, "
            "attempts, started_at) VALUES (?, 0, ?, 'llm', ?, 'running', 1, ?)",
            *(run_id, intent_of(turn.turn_index), canonical_hash(manifest.input), now),
        )
        self._run("UPDATE durable_runs SET step_count = 1 WHERE run_id = ?", run_id)

    def complete(self, turn: ChatTurnIdentity, answer: str) -> None:
        """Record the answer, and end the turn."""
        run_id, now = run_id_of(turn), self._now()
        outcome = {"notes": intent_of(turn.turn_index), "metadata": {"chars": len(answer)}}
        self._run(
            "UPDATE durable_steps SET status = 'completed', result_json = ?, completed_at = ?, "
            "error_json = NULL WHERE run_id = ? AND step_index = 0",
            *(_json({"finalText": answer}), now, run_id),
        )
        self._end(run_id, "completed", _json(outcome))

    def fail(self, turn: ChatTurnIdentity) -> None:
        """Record a failure, and end the turn."""
        self._run(
            "UPDATE durable_steps SET status = 'failed', error_json = ?, completed_at = ? "
            "WHERE run_id = ? AND step_index = 0",
            *(_json({"message": "It broke"}), self._now(), run_id_of(turn)),
        )
        self._end(run_id_of(turn), "failed", None)

    def answer(self, turn: ChatTurnIdentity, answer: str, message: str = "Hi") -> None:
        """Do a whole turn."""
        self.begin(turn, message)
        self.complete(turn, answer)

    def _end(self, run_id: str, status: str, outcome: str | None) -> None:
        now = self._now()
        self._run(
            "UPDATE durable_runs SET status = ?, outcome_json = ?, completed_at = ?, "
            "updated_at = ?, lease_holder_id = NULL, lease_expires_at = NULL WHERE run_id = ?",
            *(status, outcome, now, now, run_id),
        )

    def rows(self) -> list[tuple[object, ...]]:
        """Return all of the runs, every column."""
        with closing(sqlite3.connect(self._path)) as connection:
            return connection.execute("SELECT * FROM durable_runs ORDER BY run_id").fetchall()

    def _run(self, sql: str, *values: object) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            connection.execute(sql, values)

    def _now(self, later_ms: int = 0) -> str:
        return iso_time(self._clock() + later_ms)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
