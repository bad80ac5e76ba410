"""The command line: what it says of itself, and that saying it costs nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from perdure.cli.main import main
from tests.cli.commands import environment, perdure

IMPORT_US_MAX = 150_000
HEAVY = {"asyncio", "starlette", "uvicorn", "httpx2", "sqlite3", "perdure.turn", "perdure.store"}


def test_the_version_is_that_of_the_package() -> None:
    ended = perdure("--version")
    assert (ended.code, ended.out.strip()) == (0, f"perdure {version('perdure')}")


def test_help_names_the_commands_and_options() -> None:
    assert "serve" in perdure("--help").out
    told = perdure("serve", "--help").out
    for option in ("--host", "--port", "--store", "--backend", "--token-delay-ms", "--authorize"):
        assert option in told


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"]])
def test_what_only_talks_imports_nothing_heavy(arguments: list[str]) -> None:
    code = "import sys; from perdure.cli.main import main; main(sys.argv[1:])"
    took_us: list[int] = []
    # A machine may be busy with something else once, or twice.
    while len(took_us) < 5 and min(took_us, default=IMPORT_US_MAX) >= IMPORT_US_MAX:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code, *arguments],
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        # Each line of it is `import time: self [us] | cumulative | name`.
        found = re.findall(r"^import time:\s+(\d+) \|\s+\d+ \| +([\w.]+)$", done.stderr, re.M)
        names = [name for _, name in found]
        assert not HEAVY.intersection(names)
        begun = names.index("site")
        took_us.append(sum(int(us) for us, _ in found[begun + 1 :]))
    assert min(took_us) < IMPORT_US_MAX


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
