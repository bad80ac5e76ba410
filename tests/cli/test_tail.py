"""`perdure tail`: the words of a turn, from another process while it lives, or later."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from perdure.core.changes import AppendFrames
from perdure.core.frames import Frame, encode_row, text, tool_call, tool_result
from perdure.core.records import Lease, SessionKey
from perdure.store.protocol import RunStore
from perdure.testing.samples import completed, ended, hold, restart_row, row
from tests.cli.commands import PATIENCE_S, environment
from tests.cli.desk import Desk

KEY = SessionKey("s", 0, 0, "ada")


def frames(first_seq: int, *told: Frame) -> AppendFrames:
    return AppendFrames(first_seq, first_seq + len(told) - 1, encode_row(list(told)))


async def finish(store: RunStore, lease: Lease, seq: int, answer: str) -> None:
    answered = completed(0, {"finalText": answer, "parts": []})
    await store.write(lease, frames(seq, Frame(0, 0, "completed", {})), answered, ended())


async def answered(store: RunStore) -> None:
    lease = await hold(store, "chat:s:0", session=KEY)
    await store.write(lease, row(1, "Hel", "lo."))
    await finish(store, lease, 3, "Hello.")


def test_a_finished_turn_is_told_at_once(each_desk: Desk) -> None:
    each_desk.work(answered)
    told = each_desk.run("tail", "chat:s:0")
    assert (told.code, told.out, told.err) == (0, "Hello.\n", "· completed\n")


def test_programs_get_the_lines_of_the_wire_with_their_cursors(desk: Desk) -> None:
    desk.work(answered)
    whole = desk.json("tail", "chat:s:0")
    kinds = [line["chunk"]["type"] for line in whole]
    assert (kinds[0], kinds[-1]) == ("session.run.started", "session.run.completed")
    rest = desk.json("tail", "chat:s:0", "--after", whole[0]["id"])
    assert [line["chunk"]["data"].get("delta") for line in rest] == ["Hel", "lo.", None]


def test_a_turn_that_failed_says_so_and_ends_with_1(desk: Desk) -> None:
    failure = {"code": "internal", "message": "It broke.", "retryable": True, "ref": "abc"}

    async def broken(store: RunStore) -> None:
        lease = await hold(store, "chat:s:0", session=KEY)
        await store.write(lease, row(1, "Hel"), frames(2, Frame(0, 0, "failed", failure)))
        await store.write(lease, ended("failed"))

    desk.work(broken)
    told = desk.run("tail", "chat:s:0")
    assert (told.code, told.out) == (1, "Hel\n")
    assert told.err == "· internal: It broke. (ref abc in the log)\n· failed: step_failed\n"


def test_a_run_that_is_no_turn_is_refused(desk: Desk) -> None:
    async def begin(store: RunStore) -> None:
        await hold(store, "run")

    desk.work(begin)
    told = desk.run("tail", "run")
    assert (told.code, told.out) == (2, "")
    assert "perdure show run" in told.err


def test_what_a_model_says_cannot_steer_the_terminal(desk: Desk) -> None:
    async def say(store: RunStore) -> None:
        lease = await hold(store, "chat:s:0", session=KEY)
        await store.write(lease, row(1, "a\x1b]0;title\x07b\n"))
        await finish(store, lease, 2, "a\x1b]0;title\x07b\n")

    desk.work(say)
    told = desk.run("tail", "chat:s:0")
    assert told.out == "a�]0;title�b\n"


def following(desk: Desk, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "perdure", "tail", "chat:s:0", "--store", desk.url, *more],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_live_turn_is_followed_from_another_process(each_desk: Desk) -> None:
    process: subprocess.Popen[str] | None = None

    async def speak(store: RunStore) -> None:
        nonlocal process
        lease = await hold(store, "chat:s:0", session=KEY)
        await store.write(lease, row(1, "lost ", "words\n"))
        process = following(each_desk)
        assert process.stdout is not None
        assert process.stdout.readline() == "lost words\n"
        await store.write(lease, restart_row(3, "He"))
        call = tool_call("c1", "search", {"q": "x"}, "pure")
        await store.write(lease, frames(5, call, tool_result("c1", [1]), text("llo.", "p1")))
        await finish(store, lease, 8, "Hello.")

    each_desk.work(speak)
    assert process is not None
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert out == "He\nllo.\n"
    assert err.splitlines() == [
        "· begun again (attempt 2, lease_expired): what stands above is no part of the answer",
        '· search {"q": "x"}',
        "· gave [1]",
        "· completed",
    ]


def test_an_interrupt_ends_it_without_a_trace(desk: Desk) -> None:
    process: subprocess.Popen[str] | None = None

    async def speak(store: RunStore) -> None:
        nonlocal process
        lease = await hold(store, "chat:s:0", session=KEY)
        await store.write(lease, row(1, "word\n"))
        process = following(desk)
        assert process.stdout is not None
        assert process.stdout.readline() == "word\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130

    desk.work(speak)
    assert process is not None
    _, err = process.communicate()
    assert "Traceback" not in err


def test_whoever_leaves_the_pipe_ends_it_without_a_word(desk: Desk) -> None:
    async def speak(store: RunStore) -> None:
        lease = await hold(store, "chat:s:0", session=KEY)
        await store.write(lease, row(1, "word\n"))
        process = following(desk, "--json")
        assert process.stdout is not None
        assert process.stderr is not None
        line = json.loads(process.stdout.readline())
        assert line["chunk"]["type"] == "session.run.started"
        process.stdout.close()
        for seq in range(2, 40):
            await store.write(lease, row(seq, "more\n"))
        await finish(store, lease, 40, "word")
        assert process.wait(PATIENCE_S) == 141
        assert process.stderr.read() == ""
        process.stderr.close()

    desk.work(speak)


@pytest.mark.parametrize("cursor", ["x", "0001_0000000001_ffffff"])
def test_a_cursor_that_is_none_is_refused(desk: Desk, cursor: str) -> None:
    desk.work(answered)
    told = desk.run("tail", "chat:s:0", "--after", cursor)
    assert told.code == 2
    assert "cursor" in told.err
