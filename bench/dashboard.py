"""How long the dashboard's pages take over a database with very many runs.

    python -m bench.dashboard [--runs 1000000] [--rounds 200] [--database FOLDER]

The runs are written by SQL, spread over a month: chats and reports of a hundred tenants, most of
them completed. Pages are asked for one after another over HTTP from `perdure serve` on SQLite, as a
person would go through them; the figures are milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

from perdure.store.opening import open_store

RUNS_SQL = """
WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :runs),
drawn AS (
  SELECT n, abs((n * 2654435761) % 1000003) % 10000 AS luck,
    CASE WHEN n % 2 THEN 't' || (n / 10 % 100) ELSE '' END AS tenant,
    strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ((:runs - n) * 2592000 / :runs) || ' seconds')
      AS at
  FROM numbers),
named AS (
  SELECT *, CASE WHEN tenant = '' THEN '' ELSE '@' || tenant || '/' END AS prefix,
    CASE WHEN luck < 9600 THEN 'completed' WHEN luck < 9700 THEN 'stopped'
      WHEN luck < 9850 THEN 'failed' WHEN luck < 9950 THEN 'parked' WHEN luck < 9970 THEN 'waiting'
      WHEN luck < 9990 THEN 'sleeping' ELSE 'queued' END AS state
  FROM drawn)
INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, state, created_at, updated_at,
  completed_at, outcome_json, step_count, tenant, epoch, handler, session_id, turn_index,
  manifest_json)
SELECT
  CASE WHEN n % 10 < 7 THEN prefix || 'chat:s' || (n / 20) || '-' || (n % 2) || ':' || (n / 2 % 10)
    ELSE prefix || 'report-' || n END,
  'hash', 'bench',
  CASE state WHEN 'completed' THEN state WHEN 'stopped' THEN 'completed' WHEN 'failed' THEN state
    WHEN 'queued' THEN 'pending' ELSE 'suspended' END,
  state, at, at,
  CASE WHEN state IN ('completed', 'stopped', 'failed') THEN at END,
  CASE WHEN state = 'completed' THEN '{"pass":true}' END, 3, tenant,
  state <> 'queued',
  CASE WHEN n % 10 < 7 THEN 'chat' WHEN n < 40 THEN 'rare' ELSE 'report' END,
  CASE WHEN n % 10 < 7 THEN 's' || (n / 20) || '-' || (n % 2) END,
  CASE WHEN n % 10 < 7 THEN n / 2 % 10 END,
  '{"projectId":"bench","task":{"id":"t","intent":"Run a chat turn"},"input":{"userMessage":"'
    || hex(randomblob(150)) || '"}}'
FROM named
"""
BUSY_RUN = "busy"
BUSY_SQL = (
    """INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at,
      completed_at, step_count, epoch, handler)
    VALUES ('busy', 'hash', 'bench', 'completed', '2020-01-01T00:00:00.000Z',
      '2020-01-01T01:00:00.000Z', '2020-01-01T01:00:00.000Z', 200, 3, 'report')""",
    """WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 199)
    INSERT INTO durable_steps (run_id, step_index, intent, kind, status, attempts, result_json,
      started_at, completed_at, epoch)
    SELECT 'busy', n, 'step-' || n, 'logic', 'completed', 1, '"' || hex(randomblob(500)) || '"',
      '2020-01-01T00:0' || (n % 10) || ':00.000Z', '2020-01-01T00:0' || (n % 10) || ':01.000Z', 1
    FROM numbers""",
)
PAGES = {
    "the newest": "",
    "completed": "?state=completed",
    "failed": "?state=failed",
    "stopped": "?state=stopped",
    "of a handler": "?handler=report",
    "of a rare handler": "?handler=rare",
    "failed, of a rare handler": "?handler=rare&state=failed",
    "of a tenant": "?tenant=t7",
    "of a tenant and a rare handler": "?tenant=t7&handler=rare",
    "of a session": "?session=s7-0&tenant=@",
    "of a session, in all tenants": "?session=s7-0",
    "of the last hour": "?since=1h",
    "of nobody": "?tenant=nobody&handler=none",
}
WALKED = {
    "older and older": "",
    "older and older, of a handler": "?handler=report",
    "further and further, for a rare handler": "?handler=rare",
}


def fill(path: Path, runs: int) -> None:
    """Make the database, unless it is there."""
    if path.exists():
        return

    async def migrate() -> None:
        await (await open_store(f"sqlite:{path}")).close()

    asyncio.run(migrate())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        with connection:
            connection.execute(RUNS_SQL, {"runs": runs})
            for statement in BUSY_SQL:
                connection.execute(statement)


@contextmanager
def service(path: Path) -> Iterator[str]:
    """Serve the database, and yield host and port."""
    command = [sys.executable, "-m", "perdure", "serve", "--port", "0", "--frames-after", "never"]
    process = subprocess.Popen(
        [*command, "--backend", "scripted", "--store", f"sqlite:{path}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        told = next(line for line in iter(process.stdout.readline, "") if line[:7] == "address")
        yield urlsplit(told.split()[1]).netloc
    finally:
        process.terminate()
        process.wait()


class Reader:
    """Asks for pages over one connection, and keeps how long each took."""

    def __init__(self, host: str) -> None:
        self._connection = http.client.HTTPConnection(host)

    def page(self, rest: str) -> tuple[str, float]:
        begun = time.perf_counter()
        self._connection.request("GET", f"/dashboard{rest}")
        answer = self._connection.getresponse()
        body = answer.read().decode()
        took_ms = 1_000 * (time.perf_counter() - begun)
        if answer.status != 200:
            raise SystemExit(f"{rest}: {answer.status}\n{body}")
        return body, took_ms

    def again(self, rest: str, rounds: int) -> list[float]:
        return [self.page(rest)[1] for _ in range(rounds)]

    def walk(self, rest: str, rounds: int) -> list[float]:
        """Go from page to page."""
        took: list[float] = []
        for _ in itertools.repeat(None, rounds):
            body, ms = self.page(rest)
            took.append(ms)
            found = re.search(r'rel="next" href="/dashboard([^"]*)"', body)
            rest = found[1].replace("&amp;", "&") if found else ""
        return took


def report(name: str, took: list[float]) -> None:
    ordered = sorted(took)
    p95 = ordered[int(0.95 * (len(ordered) - 1))]
    print(f"| {name} | {statistics.median(took):.1f} | {p95:.1f} | {ordered[-1]:.1f} |", flush=True)


def measure(path: Path, rounds: int) -> None:
    """Print a row of a table for each page."""
    with service(path) as host:
        reader = Reader(host)
        print("| page | median | p95 | most |\n|---|---|---|---|")
        for name, rest in PAGES.items():
            report(name, reader.again(rest, rounds))
        for name, rest in WALKED.items():
            report(name, reader.walk(rest, rounds))
        report("a run of 200 steps", reader.again(f"/run?id={BUSY_RUN}", rounds))
        turn = f"/run?id={quote('@t0/chat:s0-1:0')}"
        report("a turn", reader.again(turn, rounds))
        report("a step", reader.again(f"/step?id={BUSY_RUN}&index=7", rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--database", type=Path, help="keep the database in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = (options.database or Path(folder)) / f"runs-{options.runs}.db"
        fill(path, options.runs)
        measure(path, options.rounds)


if __name__ == "__main__":
    main()
