"""The command line: what it says of itself, and that saying it costs nothing."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest

from docs.cli_page import commands_of
from perdure.cli.arguments import without_password
from perdure.cli.main import command_line, main
from tests.cli.commands import perdure

HEAVY = {
    "asyncio",
    "httpx2",
    "sqlite3",
    "ssl",
    "starlette",
    "uvicorn",
    "perdure.backends",
    "perdure.durable",
    "perdure.store",
    "perdure.turn",
    "perdure.web",
}
COMMANDS = [name for name, _ in commands_of(command_line())]


def test_the_version_is_that_of_the_package() -> None:
    ended = perdure("--version")
    assert (ended.code, ended.out.strip()) == (0, f"perdure {version('perdure')}")


def test_help_names_the_commands_and_options() -> None:
    told = perdure("--help").out
    for name in COMMANDS:
        assert re.search(rf"^    {name.split()[0]}\b", told, re.MULTILINE)
    told = perdure("serve", "--help").out
    for option in ("--host", "--port", "--store", "--backend", "--token-delay-ms", "--authorize"):
        assert option in told


def test_what_only_talks_imports_nothing_heavy() -> None:
    """It costs what it imports: that is bound here, its time is not."""
    talks = [["--help"], ["--version"], *([*name.split(), "--help"] for name in COMMANDS)]
    code = (
        "import sys, json, io, contextlib\n"
        "from perdure.cli.main import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main(arguments)\n"
        "print(*sys.modules)"
    )
    done = perdure(json.dumps(talks), python=("-c", code))
    assert done.code == 0, done
    assert not HEAVY.intersection(done.out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: perdure {name}")
    assert max(map(len, told.splitlines())) <= 100


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["serve", "--nonsense"], ["serve", "extra"], ["--port", "1"]]
)
def test_what_is_not_understood_is_refused_with_2(arguments: list[str]) -> None:
    ended = perdure(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.splitlines()[-1].startswith("perdure")
    assert "Traceback" not in ended.err


def test_main_returns_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "70000"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("perdure: --port")


def test_a_reader_who_leaves_ends_it_without_a_word(tmp_path: Path) -> None:
    code = (
        "import os, sys; from perdure.cli.main import main\n"
        "read, write = os.pipe()\n"
        "os.dup2(write, 1)\n"
        "os.close(read)\n"
        "code = main(['migrate', '--sql', '--store', sys.argv[1]])\n"
        "sys.exit(code)"
    )
    ended = perdure(f"sqlite:{tmp_path / 'x.db'}", python=("-c", code))
    assert (ended.code, ended.out, ended.err) == (141, "", "")


def test_a_terminal_that_lacks_a_letter_does_not_end_it(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'runs.db'}"
    begin = (
        "import asyncio, sys; from perdure import *\n"
        "async def work():\n"
        "    store = await open_store(sys.argv[1])\n"
        "    await store.enqueue('été', RunManifest('p', AgentTaskSpec('t', 'i')), handler='h')\n"
        "    await store.close()\n"
        "asyncio.run(work())"
    )
    assert perdure(url, python=("-c", begin)).code == 0
    ended = perdure("ls", "--store", url, env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert (ended.code, ended.err) == (0, "")
    assert "\\xe9t\\xe9" in ended.out


def test_no_password_is_shown() -> None:
    url = "postgresql://ann:s%40cret@db.example/chat?schema=x"
    assert without_password(url) == "postgresql://ann:***@db.example/chat?schema=x"
    for arguments in (["--help"], ["ls", "--help"], ["serve", "--help"]):
        ended = perdure(*arguments, env={"PERDURE_STORE": url})
        assert ended.code == 0
        assert "cret" not in ended.out + ended.err


@pytest.mark.parametrize("url", ["sqlite:perdure.db", "file:///srv/a:b@c", "sqlite:////srv/x.db"])
def test_an_address_without_a_password_is_shown_as_it_is(url: str) -> None:
    assert without_password(url) == url
