"""`perdure doctor` finds what is planted, says what to do, and is silent where all is well."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from perdure.cli import checks
from perdure.cli.checks import Finding, examine_place
from perdure.core.changes import Suspend
from perdure.core.effects import system_clock
from perdure.core.limits import DELIVERY_BACKOFF_MAX_MS, DELIVERY_TRIES_MAX, LEASE_MS
from perdure.store.opening import path_of
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.samples import HANDLER, completed, delivery, finish, hold, row
from tests.backends import messaging
from tests.cli.desk import Desk

HOUR_MS = 60 * 60 * 1_000


def path(desk: Desk) -> Path:
    found = path_of(desk.url)
    assert found is not None
    return Path(found)


def findings(desk: Desk, *arguments: str) -> dict[str, Any]:
    """Return what a doctor says who finds something, by check."""
    ended = desk.run("doctor", "--json", *arguments)
    told = {found["check"]: found for found in map(json.loads, ended.out.splitlines())}
    assert ended.err == ""
    assert ended.code == any(found["level"] == "fault" for found in told.values())
    return told


def is_the_only_fault(found: dict[str, Any], check: str, *words: str) -> bool:
    assert [each["check"] for each in found.values() if each["level"] == "fault"] == [check]
    assert found[check]["wayOut"]
    return all(word in f"{found[check]['told']} {found[check]['wayOut']}" for word in words)


async def nothing(store: RunStore) -> None:
    await store.list_runs()


def test_a_healthy_store_has_no_fault(each_desk: Desk) -> None:
    async def work(store: RunStore) -> None:
        await finish(store, "done", row(1, "a"), completed(0), delivery(0))
        await hold(store, "live")

    each_desk.work(work)
    ended = each_desk.run("doctor")
    assert (ended.code, ended.err) == (0, "")
    assert "fault" not in ended.out
    assert ended.out.endswith("\nnothing is wrong\n")
    assert "1 completed, 1 running" in ended.out


def test_a_store_that_is_not_there_is_no_fault_of_it(desk: Desk) -> None:
    assert desk.run("doctor").code == 2


# The place.


def test_it_finds_an_old_sqlite(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.work(nothing)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.34.1")
    assert is_the_only_fault(findings(desk), "sqlite", "3.34.1", "3.35.0")


def test_it_finds_a_network_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/share {tmp_path} nfs4 rw 0 0\n")
    for url in (f"sqlite:{tmp_path / 'runs.db'}", f"file:{tmp_path}"):
        found = {each.check: each for each in examine_place(url, mounts=str(mounts))}
        assert found["mount"].level == "fault"
        assert "nfs4" in found["mount"].told


class Usage(NamedTuple):
    """What a disk has."""

    total: int
    used: int
    free: int


@pytest.mark.parametrize(
    ("free", "level", "code"),
    [(5 << 20, "fault", 1), (500 << 20, "warning", 0), (9 << 30, "ok", 0)],
)
def test_it_finds_a_disk_that_is_nearly_full(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, free: int, level: str, code: int
) -> None:
    desk.work(nothing)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10 << 30, 0, free))
    ended = desk.run("doctor")
    assert ended.code == code
    assert f"{level.ljust(8)} disk" in ended.out
    assert ("gc --runs-after" in ended.out) == (level != "ok")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_it_finds_missing_rights(desk: Desk) -> None:
    desk.work(nothing)
    path(desk).chmod(0o400)
    assert findings(desk)["rights"]["level"] == "fault"


def test_it_finds_a_database_that_is_none(desk: Desk) -> None:
    path(desk).write_text("This is no database. " * 100)
    assert is_the_only_fault(findings(desk), "store", "not a SQLite database")


# The schema.


def change(desk: Desk, statement: str) -> None:
    connection = sqlite3.connect(path(desk))
    with connection:
        connection.execute(statement)
    connection.close()


def test_it_finds_an_older_schema_and_leaves_it_alone(desk: Desk) -> None:
    desk.work(nothing)
    change(desk, "DELETE FROM perdure_schema WHERE number = 103")
    found = findings(desk)
    assert is_the_only_fault(found, "schema", "103_upkeep", f"perdure migrate --store {desk.url}")
    assert findings(desk) == found


def test_it_finds_a_newer_schema(desk: Desk) -> None:
    desk.work(nothing)
    change(desk, "INSERT INTO perdure_schema VALUES (999, 'x', 'y', 'z')")
    assert is_the_only_fault(findings(desk), "schema", "999", "newer")


# What is in it.


def test_it_finds_a_clock_that_was_ahead(each_desk: Desk) -> None:
    async def begin(store: RunStore) -> None:
        await finish(store, "run")

    each_desk.work(begin, clock=ManualClock(system_clock() + HOUR_MS))
    assert is_the_only_fault(findings(each_desk), "clock", "NTP")


async def test_it_finds_a_store_whose_clock_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure.store.memory import MemoryStore

    clock = ManualClock()
    for apart_ms, side in ((-HOUR_MS, "ahead of"), (HOUR_MS, "behind")):
        store = MemoryStore(clock=clock)
        machine = ManualClock(clock.now_ms + apart_ms)
        found: list[Finding] = [
            finding
            async for finding in checks.examine_content(
                store.upkeep(), frames_after_ms=None, clock=machine
            )
        ]
        assert found[0].level == "fault"
        assert side in found[0].told


def test_it_finds_parked_runs(each_desk: Desk) -> None:
    async def park(store: RunStore) -> None:
        for number in range(7):
            lease = await hold(store, f"run-{number}")
            await store.write(lease, Suspend("parked", reason="divergence"))

    each_desk.work(park)
    found = findings(each_desk)
    assert is_the_only_fault(found, "parked", "7 runs", "run-6 (divergence)", ", …", "retry")


def test_it_finds_runs_that_nobody_works_on(each_desk: Desk) -> None:
    async def begin(store: RunStore) -> None:
        await hold(store, "run")

    each_desk.work(begin, clock=ManualClock(system_clock() - HOUR_MS))
    assert is_the_only_fault(findings(each_desk), "workers", "run (handler letters)")


def test_it_finds_an_outbox_that_is_stuck(each_desk: Desk) -> None:
    async def end(store: RunStore) -> None:
        await finish(store, "run", delivery(0))

    each_desk.work(end, clock=ManualClock(system_clock() - HOUR_MS))
    assert is_the_only_fault(findings(each_desk), "outbox", "1h ago", HANDLER)


def test_it_finds_dead_deliveries(each_desk: Desk) -> None:
    clock = ManualClock(system_clock() - 30 * HOUR_MS)

    async def die(store: RunStore) -> None:
        await finish(store, "run", delivery(0))
        for _ in range(DELIVERY_TRIES_MAX):
            (claimed,) = await store.claim_deliveries([HANDLER], limit=1)
            await store.settle_delivery(claimed, error="no room")
            clock.advance(DELIVERY_BACKOFF_MAX_MS)

    each_desk.work(die, clock=clock)
    found = findings(each_desk)
    assert is_the_only_fault(found, "dead", "run persist (no room)", "perdure hooks retry --dead")


def test_it_finds_frames_over_their_time(each_desk: Desk) -> None:
    async def end(store: RunStore) -> None:
        await finish(store, "run", row(1, "a"))

    each_desk.work(end, clock=ManualClock(system_clock() - 26 * HOUR_MS))
    assert is_the_only_fault(findings(each_desk), "frames", "1 finished turn has", "perdure gc")
    assert findings(each_desk, "--frames-after", "48h")["frames"]["level"] == "ok"
    assert "frames" not in findings(each_desk, "--frames-after", "never")
    each_desk.run("gc")
    assert findings(each_desk)["frames"]["level"] == "ok"


def test_a_lease_that_has_just_lapsed_is_no_fault(desk: Desk) -> None:
    async def begin(store: RunStore) -> None:
        await hold(store, "run")

    desk.work(begin, clock=ManualClock(system_clock() - LEASE_MS - 1_000))
    assert findings(desk)["workers"]["level"] == "ok"


# The model.

CHUNKS = (
    {"choices": [{"index": 0, "delta": {"content": "yes"}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
)


class Answering(BaseHTTPRequestHandler):
    """An endpoint that says yes."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if self.path == "/v1/messages":
            self.wfile.write(messaging.wire(*messaging.HELLO))
            return
        told = [json.dumps(chunk) for chunk in CHUNKS]
        self.wfile.write("".join(f"data: {each}\n\n" for each in [*told, "[DONE]"]).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def model() -> Generator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for provider in ("OPENAI", "ANTHROPIC"):
        for name in ("API_KEY", "BASE_URL", "MODEL"):
            monkeypatch.delenv(f"{provider}_{name}", raising=False)
    return monkeypatch


def test_it_asks_the_model_only_when_it_is_told_to(
    desk: Desk, configured: pytest.MonkeyPatch
) -> None:
    desk.work(nothing)
    with model() as url:
        configured.setenv("OPENAI_BASE_URL", url)
        configured.setenv("OPENAI_MODEL", "m-1")
        assert findings(desk, "--model")["model"]["told"] == "openai (m-1) answers"
    assert "model" not in findings(desk)


def test_it_finds_a_model_that_cannot_be_reached(
    desk: Desk, configured: pytest.MonkeyPatch
) -> None:
    desk.work(nothing)
    with model() as url:
        configured.setenv("OPENAI_BASE_URL", url)
    configured.setenv("OPENAI_MODEL", "m-1")
    assert is_the_only_fault(findings(desk, "--model"), "model", "m-1", "endpoint")


def test_it_finds_that_no_model_is_configured(desk: Desk, configured: pytest.MonkeyPatch) -> None:
    desk.work(nothing)
    assert is_the_only_fault(findings(desk, "--model"), "model", "OPENAI_MODEL")


def test_it_asks_the_model_of_another_provider(desk: Desk, configured: pytest.MonkeyPatch) -> None:
    desk.work(nothing)
    with model() as url:
        configured.setenv("ANTHROPIC_BASE_URL", url)
        configured.setenv("ANTHROPIC_MODEL", "c-1")
        assert findings(desk, "--model")["model"]["told"] == "anthropic (c-1) answers"


def test_it_finds_that_a_provider_is_named_without_a_model(
    desk: Desk, configured: pytest.MonkeyPatch
) -> None:
    desk.work(nothing)
    configured.setenv("ANTHROPIC_API_KEY", "k")
    assert is_the_only_fault(findings(desk, "--model"), "model", "ANTHROPIC_MODEL")


def test_it_asks_the_model_where_no_store_is_yet(
    desk: Desk, configured: pytest.MonkeyPatch
) -> None:
    with model() as url:
        configured.setenv("OPENAI_BASE_URL", url)
        configured.setenv("OPENAI_MODEL", "m-1")
        found = findings(desk, "--model")
    assert [(check, each["level"]) for check, each in found.items()] == [
        ("store", "warning"),
        ("model", "ok"),
    ]
    assert not path(desk).exists()


def test_without_a_store_and_a_question_for_the_model_it_says_how_to_begin_one(
    desk: Desk,
) -> None:
    ended = desk.run("doctor")
    assert (ended.code, ended.out) == (2, "")
    said, way_out = ended.err.splitlines()
    assert "there is no store at" in said
    assert way_out.strip() == "Name one with --store, or begin one with `perdure serve`."
