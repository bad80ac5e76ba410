"""The guide's endpoint before and after: what the change costs, and what it is good for."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.docs.pages import blocks_of
from tests.servers.running import PATIENCE_S, ROOT, Server, listening, running

EXAMPLE = ROOT / "examples" / "durable_endpoint"
GUIDE = ROOT / "docs" / "guides" / "durable-endpoint.md"
CHANGED_LINES_MAX = 15
TURNS = "/v1/sessions/s/turns"
ANSWER = "An answer that you have paid for should not be lost because somebody closed a tab . "


def difference() -> list[str]:
    """Return the unified difference of the two, without its header."""
    before, after = (
        (EXAMPLE / name).read_text("utf-8").splitlines() for name in ("before.py", "after.py")
    )
    return list(difflib.unified_diff(before, after, lineterm="", n=30))[3:]


def test_the_change_has_fifteen_lines_at_most() -> None:
    changed = [line for line in difference() if not line.startswith(" ")]
    assert 10 < len(changed) <= CHANGED_LINES_MAX


def test_the_guide_shows_the_change_as_it_is() -> None:
    [shown] = [block for block in blocks_of(GUIDE) if block.words == ["diff"]]
    assert shown.text.splitlines() == difference()


@contextmanager
def serving(name: str, folder: Path) -> Iterator[tuple[Server, httpx2.Client]]:
    for path in EXAMPLE.glob("*.py"):
        shutil.copy(path, folder)
    command = ["uvicorn", f"{name}:app", "--fd", "{fd}", "--log-level", "warning"]
    with (
        listening() as listener,
        running(command, listener, folder) as server,
        httpx2.Client(base_url=server.origin, timeout=PATIENCE_S) as client,
    ):
        yield server, client


def log_of(folder: Path) -> list[str]:
    """Return what the model did, in order."""
    return [line.partition(":")[0] for line in (folder / "model.log").read_text().splitlines()]


def ask_and_hang_up(client: httpx2.Client, body: dict[str, Any]) -> None:
    """Ask, and leave as soon as the answer has begun."""
    with client.stream("POST", TURNS, json=body) as response:
        pieces = response.iter_raw()
        while b"An" not in next(pieces):
            continue


def text_of(client: httpx2.Client) -> str:
    """Return the answer that the turn has in the end."""
    with client.stream("GET", f"{TURNS}/0/stream") as response:
        assert response.status_code == 200, response.read()
        response.read()
    turn = client.get(f"{TURNS}/0").json()
    assert turn["state"] == "completed"
    return str(turn["text"])


def test_before_an_answer_is_lost_with_its_reader_and_paid_for_twice(tmp_path: Path) -> None:
    with serving("before", tmp_path) as (_, client):
        ask_and_hang_up(client, {"message": "Why?"})
        assert client.post(TURNS, json={"message": "Why?"}).text == ANSWER
    assert log_of(tmp_path) == ["asked", "asked", "answered"]


def test_after_an_answer_is_there_whether_or_not_somebody_reads_it(tmp_path: Path) -> None:
    with serving("after", tmp_path) as (_, client):
        ask_and_hang_up(client, {"turnIndex": 0, "message": "Why?"})
        assert text_of(client) == ANSWER
        again = client.post(TURNS, json={"turnIndex": 0, "message": "Why?"})
        assert again.status_code == 200
    assert log_of(tmp_path) == ["asked", "answered"]


def test_before_nothing_is_left_of_an_answer_behind_a_kill(tmp_path: Path) -> None:
    with serving("before", tmp_path) as (server, client):
        ask_and_hang_up(client, {"message": "Why?"})
        server.kill()
    with serving("before", tmp_path) as (_, client):
        assert client.get(f"{TURNS}/0").status_code == 404
    assert log_of(tmp_path) == ["asked"]


def test_after_an_answer_goes_on_behind_a_kill_by_itself(tmp_path: Path) -> None:
    with serving("after", tmp_path) as (server, client):
        ask_and_hang_up(client, {"turnIndex": 0, "message": "Why?"})
        server.kill()
    with serving("after", tmp_path) as (_, client):
        assert text_of(client) == ANSWER
    assert log_of(tmp_path) == ["asked", "asked", "answered"]
