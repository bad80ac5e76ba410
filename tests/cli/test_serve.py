"""`perdure serve`: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from perdure.cli.main import main
from perdure.cli.serve import _listen
from tests.cli.commands import Ended, Serving, perdure, serving

MEMORY = ("--store", "memory:", "--token-delay-ms", "0")


def get(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def refuse(*arguments: str, told: pytest.CaptureFixture[str]) -> Ended:
    """Run the command in this process, where it begins faster than in one of its own."""
    known = list(sys.path)
    try:
        code = main(["serve", *arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.path[:] = known
    return Ended(code, *told.readouterr())


def is_refusal(ended: Ended, *words: str) -> bool:
    """Check for one line that says what is wrong (and one with the way out), no traceback."""
    first, *rest = ended.err.strip().splitlines()
    assert ended.code == 2, ended
    assert first.startswith("perdure: "), ended
    assert len(rest) <= 1, ended
    assert ended.out == ""
    return all(word in ended.err for word in words)


# What it prints.


def test_it_prints_backend_store_and_address_and_answers_there(tmp_path: Path) -> None:
    with serving("--token-delay-ms", "0", folder=tmp_path) as service:
        assert list(service.told) == ["backend", "store", "dashboard", "address"]
        assert service.told["dashboard"] == f"{service.origin}/dashboard"
        assert service.told["backend"].startswith("scripted")
        assert service.told["store"].startswith("sqlite:perdure.db")
        assert service.told["address"].startswith("http://127.0.0.1:")
        assert get(f"{service.origin}/readyz") == 200
        assert (tmp_path / "perdure.db").exists()
        body = json.dumps({"turnIndex": 0, "message": "12 * 34"}).encode()
        asked = urllib.request.Request(
            f"{service.origin}/v1/sessions/s/turns",
            data=body,
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked) as answer:
            assert answer.status == 201
            assert b"408" in answer.read()


@pytest.mark.parametrize(
    ("env", "backend"),
    [
        ({}, "scripted"),
        ({"OPENAI_API_KEY": "k", "OPENAI_MODEL": "m-1"}, "openai (m-1)"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_MODEL": "m-2"}, "openai (m-2)"),
        ({"OPENAI_MODEL": "m-3"}, "scripted"),
        ({"OPENAI_API_KEY": ""}, "scripted"),
        ({"ANTHROPIC_API_KEY": "k", "ANTHROPIC_MODEL": "c-1"}, "anthropic (c-1)"),
        (
            {
                "ANTHROPIC_API_KEY": "k",
                "ANTHROPIC_MODEL": "c-1",
                "OPENAI_API_KEY": "k",
                "OPENAI_MODEL": "m-1",
            },
            "openai (m-1)",
        ),
    ],
)
def test_auto_chooses_the_backend_by_the_environment(env: dict[str, str], backend: str) -> None:
    with serving(*MEMORY, env=env) as service:
        assert service.told["backend"].startswith(backend)


def test_the_responses_backend_is_taken_where_it_is_named() -> None:
    env = {"OPENAI_API_KEY": "k", "OPENAI_MODEL": "m-1"}
    with serving(*MEMORY, "--backend", "openai-responses", env=env) as service:
        assert service.told["backend"] == "openai (m-1, responses)"


def submit(service: Serving, turn: int, **fields: object) -> tuple[int, bytes]:
    """Submit a turn, and return its status and, once it is over, its stream."""
    asked = urllib.request.Request(
        f"{service.origin}/v1/sessions/s/turns",
        data=json.dumps({"turnIndex": turn, "message": "Hi", **fields}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(asked) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


FILE = {"id": "1", "mediaType": "image/png", "url": "https://files.example/1"}


def test_attachments_are_refused_unless_it_is_told_how_to_show_them() -> None:
    with serving(*MEMORY) as service:
        status, told = submit(service, 0, attachments=[FILE])
        assert status == 422
        assert b"attachments_not_shown" in told
        assert b"--attachments" in told
    with serving(*MEMORY, "--attachments", "text") as service:
        assert submit(service, 0, attachments=[FILE])[0] == 201
        unsafe = {**FILE, "url": "javascript:alert(1)"}
        assert submit(service, 1, attachments=[unsafe])[0] == 400


def begin(service: Serving, turn: int) -> int:
    """Submit a turn, hang up once it is answered, and return the status."""
    asked = urllib.request.Request(
        f"{service.origin}/v1/sessions/s/turns",
        data=json.dumps({"turnIndex": turn, "message": "Hi"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(asked) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.parametrize(("policy", "status"), [("reject", 409), ("replace", 201), ("queue", 201)])
def test_a_busy_session_is_treated_as_it_is_told(policy: str, status: int) -> None:
    slow = ("--store", "memory:", "--token-delay-ms", "60000", "--drain-ms", "0")
    with serving(*slow, "--busy", policy) as service:
        assert begin(service, 0) == 201
        assert begin(service, 1) == status


def test_a_key_does_not_matter_where_the_script_is_asked_for() -> None:
    with serving(*MEMORY, "--backend", "scripted", env={"OPENAI_API_KEY": "k"}) as service:
        assert service.told["backend"].startswith("scripted")


def test_it_refuses_pages_of_other_sites() -> None:
    with serving(*MEMORY) as service:
        url = f"{service.origin}/healthz"
        assert get(url) == 200
        assert get(url, Host="evil.example") == 403
        assert get(url, Origin="http://evil.example") == 403


def test_what_it_sends_is_not_held_back_for_more() -> None:
    """A socket that does not name its protocol would get no TCP_NODELAY from asyncio."""
    with contextlib.closing(_listen("127.0.0.1", 0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def dashboard(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        page: str = answer.read().decode()
        return page


def test_it_shows_the_dashboard_on_loopback_and_lets_nobody_act_unless_told_to() -> None:
    with serving(*MEMORY) as service:
        assert "read only" in dashboard(f"{service.origin}/dashboard")
        assert get(f"{service.origin}/dashboard", Host="evil.example") == 403
    with serving(*MEMORY, "--dashboard", "act") as service:
        assert "read only" not in dashboard(f"{service.origin}/dashboard")
    with serving(*MEMORY, "--dashboard", "off") as service:
        assert get(f"{service.origin}/dashboard") == 404
        assert "dashboard" not in service.told


def test_who_may_see_the_dashboard_is_said_by_a_callable_of_its_own(tmp_path: Path) -> None:
    source = (
        "from perdure.web.app import Caller\n"
        "from perdure.web.dashboard import Viewer\n"
        "def known(request):\n"
        "    return Caller('', 'ann')\n"
        "def viewer(request):\n"
        "    return Viewer() if request.headers.get('x-admin') else None\n"
    )
    (tmp_path / "rules.py").write_text(source)
    known = (*MEMORY, "--authorize", "rules:known")
    with serving(*known, folder=tmp_path) as service:
        assert get(f"{service.origin}/dashboard") == 404
    watched = (*known, "--authorize-dashboard", "rules:viewer")
    with serving(*watched, folder=tmp_path) as service:
        assert get(f"{service.origin}/dashboard") == 401
        assert get(f"{service.origin}/dashboard", **{"X-Admin": "1"}) == 200


def test_authorize_is_found_where_the_command_was_started(tmp_path: Path) -> None:
    source = (
        "from perdure.web.app import Caller\n"
        "def known(request):\n"
        "    user = request.headers.get('x-user')\n"
        "    return Caller('', user) if user else None\n"
    )
    (tmp_path / "gate.py").write_text(source)
    options = (*MEMORY, "--host", "0.0.0.0", "--authorize", "gate:known")
    with serving(*options, folder=tmp_path) as service:
        url = service.origin.replace("0.0.0.0", "127.0.0.1")
        assert get(f"{url}/v1/sessions/s") == 401
        assert get(f"{url}/v1/sessions/s", **{"x-user": "ann"}) == 404
        assert get(f"{url}/healthz", Host="chat.example") == 200


def test_it_listens_on_ipv6() -> None:
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this machine has no IPv6")
    with serving(*MEMORY, "--host", "::1") as service:
        assert service.origin.startswith("http://[::1]:")
        assert get(f"{service.origin}/healthz") == 200


def test_it_deletes_what_need_not_be_kept_by_itself(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'runs.db'}"
    begin = (
        "import asyncio, sys; from perdure.store.opening import open_store\n"
        "from perdure.testing.samples import finish, row\n"
        "async def work():\n"
        "    store = await open_store(sys.argv[1])\n"
        "    await finish(store, 'turn', row(1, 'a'))\n"
        "    await store.close()\n"
        "asyncio.run(work())"
    )
    assert perdure(url, python=("-c", begin)).code == 0
    soon = (
        "import functools, sys, perdure.durable.retention as retention\n"
        "retention.keep_collecting = functools.partial(\n"
        "    retention.keep_collecting, begin_ms=1, every_ms=20)\n"
        "from perdure.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    options = ("--store", url, "--frames-after", "0s", "--runs-after", "0s")
    with serving(*options, python=("-c", soon)):
        while "turn" in perdure("ls", "--store", url).out:
            pass
    with serving("--store", url) as service:
        assert get(f"{service.origin}/healthz") == 200
        assert service.end(signal.SIGTERM)[0] == 0


# What it refuses.


def test_a_port_that_is_taken() -> None:
    # In a process of its own, to see that nothing but the refusal is printed.
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert is_refusal(perdure("serve", *MEMORY, "--port", port), port, "--port")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--store", "mongodb://x"], ["mongodb://x", "memory:", "sqlite:"]),
        (["--store", ""], ["store", "sqlite:"]),
        (["--store", "sqlite:no/such/folder/x.db"], ["no/such/folder"]),
        (["--store", "sqlite:."], ["."]),
        (["--store", "sqlite:"], ["not a file"]),
        (["--store", "sqlite:x.db?mode=ro"], ["query"]),
        (["--store", "sqlite:/dev/null"], ["/dev/null"]),
        (["--host", "0.0.0.0"], ["0.0.0.0", "--authorize"]),
        (["--host", "::"], ["::", "--authorize"]),
        (["--host", ""], ["--authorize"]),
        (["--host", "no.such.name.invalid"], ["no.such.name.invalid"]),
        (["--host", "no.such.name.invalid", "--authorize", "json:loads"], ["no.such.name.invalid"]),
        (["--port", "-1"], ["--port", "-1"]),
        (["--port", "65536"], ["--port", "65536"]),
        (["--token-delay-ms", "-1"], ["--token-delay-ms"]),
        (["--drain-ms", "-1"], ["--drain-ms"]),
        (["--turns-max", "0"], ["--turns-max"]),
        (["--tenant-turns-max", "-1"], ["--tenant-turns-max"]),
        (["--streams-max", "0"], ["--streams-max"]),
        (["--lease-ms", "0"], ["--lease-ms"]),
        (["--lease-ms", "-5"], ["--lease-ms"]),
        (["--backend", "openai"], ["OPENAI_API_KEY"]),
        (["--backend", "anthropic"], ["ANTHROPIC_API_KEY"]),
        (["--authorize", "no_such_module:f"], ["--authorize", "no_such_module"]),
        (["--authorize", "json:no_such"], ["--authorize", "no_such"]),
        (["--authorize", "json:decoder"], ["--authorize", "callable"]),
        (["--authorize", "json"], ["--authorize"]),
        (["--authorize", ""], ["--authorize"]),
        (["--authorize", ":x"], ["--authorize"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_what_cannot_work_is_refused_in_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ended = refuse("--port", "0", *MEMORY, *arguments, told=capsys)
    assert is_refusal(ended, *words), ended


@pytest.mark.parametrize("option", ["--authorize", "--authorize-dashboard"])
def test_a_service_that_cannot_begin_leaves_no_database(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ("--store", f"sqlite:{tmp_path / 'new.db'}")
    ended = refuse("--port", "0", *store, option, "no_such_module:f", told=capsys)
    assert is_refusal(ended, option, "no_such_module"), ended
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("named", [{}, {"OPENAI_MODEL": ""}], ids=["unset", "empty"])
def test_openai_without_a_model_is_refused(named: dict[str, str]) -> None:
    ended = perdure("serve", "--port", "0", *MEMORY, env={"OPENAI_API_KEY": "k", **named})
    assert is_refusal(ended, "OPENAI_MODEL")


def test_anthropic_without_a_model_is_refused() -> None:
    ended = perdure("serve", "--port", "0", *MEMORY, env={"ANTHROPIC_API_KEY": "k"})
    assert is_refusal(ended, "ANTHROPIC_MODEL")


@pytest.mark.parametrize(
    "arguments",
    [["--port", "x"], ["--port", "1.5"], ["--port", "NaN"], ["--lease-ms", "1s"],
     ["--token-delay-ms", ""], ["--backend", "gpt"], ["--durability", "none"]],
)  # fmt: skip
def test_what_is_no_number_or_choice_is_refused_by_name(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ended = refuse(*arguments, told=capsys)
    assert ended.code == 2
    assert arguments[0] in ended.err.splitlines()[-1]


def test_a_database_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "notes.db"
    path.write_text("This is no database, but a file that somebody else may need. " * 100)
    before = path.read_bytes()
    ended = refuse("--port", "0", "--store", f"sqlite:{path}", told=capsys)
    assert is_refusal(ended, "notes.db")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("module", "extra", "env"),
    [
        ("starlette", "serve", {}),
        ("uvicorn", "serve", {}),
        ("httpx2", "openai", {"OPENAI_API_KEY": "k", "OPENAI_MODEL": "m"}),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    module: str, extra: str, env: dict[str, str]
) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None; from perdure.cli.main import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    ended = perdure("serve", "--port", "0", *MEMORY, env=env, python=("-c", code))
    assert is_refusal(ended, f"pip install 'perdure[{extra}]'"), ended


# How it ends.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_and_not_a_word(number: signal.Signals) -> None:
    with serving(*MEMORY) as service:
        assert get(f"{service.origin}/healthz") == 200
        code, seconds = service.end(number)
        assert code == 0
        assert seconds < 4
        assert service.process.stderr is not None
        assert service.process.stderr.read() == ""
