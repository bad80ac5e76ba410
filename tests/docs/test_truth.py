"""What the pages say of the code: generated pages are current, names and numbers are real."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import perdure
import perdure.testing
from docs.cli_page import commands_of
from perdure.backends.scripted import ScriptedBackend
from perdure.cli.main import command_line
from perdure.core import limits
from perdure.store.opening import open_store
from perdure.testing import ERASURE_CASES, SCHEDULE_CASES, STORE_CASES, UPKEEP_CASES
from perdure.turn.wire import events
from perdure.web.app import create_app
from perdure.web.dashboard import dashboard_routes
from perdure.web.responses import REFUSALS, STATUS_OF
from tests.docs.pages import PAGES, ROOT, prose_of, relative_name

DOCS = ROOT / "docs"
CODE = re.compile(r"`([^`\n]+)`")
TEST_NAME = re.compile(r"def (test_\w+)")


def code_words(page: Path) -> list[str]:
    return CODE.findall(prose_of(page))


def test_the_generated_pages_say_what_the_code_says() -> None:
    # In a process of its own: CPython 3.11 may fail to parse while other threads do.
    command = [sys.executable, "-m", "docs.generate", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run: python -m docs.generate\n{done.stdout}{done.stderr}"


def test_every_public_name_is_described() -> None:
    page = (DOCS / "reference" / "api.md").read_text("utf-8")
    names = [*perdure.__all__, *(f"perdure.testing.{name}" for name in perdure.testing.__all__)]
    missing = [
        name for name in names if f"### {name}\n" not in page and f"| `{name}` |" not in page
    ]
    assert not missing


def telemetry_names() -> str:
    """Return the source that names attributes, metrics and events such as `perdure.run.id`."""
    folder = ROOT / "src" / "perdure"
    paths = [*sorted(folder.glob("observe/otel/*.py")), folder / "durable" / "watched.py"]
    text = "\n".join(path.read_text("utf-8") for path in paths).replace("__", ".")
    return "\n".join(line for line in text.splitlines() if "import" not in line)


@pytest.mark.parametrize("page", PAGES, ids=relative_name)
def test_every_dotted_name_of_the_package_is_there(page: Path) -> None:
    telemetry = telemetry_names()
    for word in code_words(page):
        match = re.match(r"perdure((?:\.\w+)+)", word)
        if match is None or match[0].endswith((".db", ".md", ".py")) or match[0] in telemetry:
            continue
        value: object = perdure
        for name in match[1].split(".")[1:]:
            if not hasattr(value, name):
                __import__(f"{getattr(value, '__name__', '')}.{name}")
            value = getattr(value, name)


@pytest.mark.parametrize("page", PAGES, ids=relative_name)
def test_every_error_that_a_page_names_is_there(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "coming-from-typescript.md"):
        return
    known = {*vars(perdure.errors), "ImportError", "TypeError", "ValueError", "PerdureError"}
    known |= {error.__name__ for error in subclasses(perdure.PerdureError)}
    named = {word for word in code_words(page) if re.fullmatch(r"[A-Z]\w+Error", word)}
    assert named <= known


def subclasses(kind: type[Exception]) -> set[type[Exception]]:
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


@pytest.mark.parametrize("page", PAGES, ids=relative_name)
def test_every_file_of_the_repository_that_a_page_names_is_there(page: Path) -> None:
    for word in code_words(page):
        if re.fullmatch(r"(src|tests|docs|examples)/[\w./-]+", word):
            assert (ROOT / word).exists(), word


ALL_CASES = STORE_CASES + SCHEDULE_CASES + UPKEEP_CASES + ERASURE_CASES


def test_every_test_that_stands_behind_a_promise_is_there() -> None:
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in TEST_NAME.findall(path.read_text("utf-8"))
    }
    cases = {case.__name__ for case in ALL_CASES}
    named = [word for word in code_words(DOCS / "promises.md") if word.count("_") >= 3]
    assert len(named) > 30
    assert not [name for name in named if name not in written | cases]


async def test_the_page_of_the_data_has_every_table_and_column(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:{tmp_path / 'fresh.db'}")
    await store.close()
    assert described_tables() == await actual_tables(tmp_path / "fresh.db")


def described_tables() -> dict[str, list[str]]:
    page = (DOCS / "internals" / "data.md").read_text("utf-8")
    tables: dict[str, list[str]] = {}
    for section in page.split("\n## ")[1:]:
        name = section.splitlines()[0]
        tables[name] = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    return tables


async def actual_tables(path: Path) -> dict[str, list[str]]:
    import sqlite3

    with sqlite3.connect(path) as connection:
        names = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        columns = {
            name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
            for name in names
        }
    connection.close()
    return columns


def test_the_page_of_the_command_line_has_every_command_and_option() -> None:
    sections = (DOCS / "reference" / "cli.md").read_text("utf-8").split("\n## perdure ")[1:]
    described = {section.splitlines()[0]: section for section in sections}
    commands = dict(commands_of(command_line()))
    assert list(described) == list(commands)
    for name, parser in commands.items():
        offered = set(re.findall(r"^  (--[a-z-]+)", parser.format_help(), re.MULTILINE))
        assert offered, name
        for option in offered:
            assert f"`{option}" in described[name], f"perdure {name} {option}"


def test_the_page_of_http_has_every_route() -> None:
    page = (DOCS / "reference" / "http.md").read_text("utf-8")
    store = perdure.MemoryStore()
    engine = perdure.ChatTurnEngine(store, produce=perdure.answer_with(ScriptedBackend()))
    for route in create_app(engine, store, authorize=lambda _: None, page=False).routes:
        path = getattr(route, "path", "")
        shown = path.replace("{session_id}", "{session}").replace("{turn_index}", "{n}")
        for method in getattr(route, "methods", set()) - {"HEAD"}:
            assert f"{method} {shown}" in page, f"{method} {shown} is not described"


def test_the_page_of_http_has_every_route_of_the_dashboard() -> None:
    page = (DOCS / "reference" / "http.md").read_text("utf-8")
    for route in dashboard_routes(perdure.MemoryStore(), authorize=lambda _: None):
        path = re.sub("/static/.*", "/static/", getattr(route, "path", ""))
        for method in getattr(route, "methods", set()) - {"HEAD"}:
            assert f"{method} {path}" in page, f"{method} {path} is not described"


def test_the_page_of_http_has_every_error_with_its_status() -> None:
    section = (DOCS / "reference" / "http.md").read_text("utf-8").partition("\n## Errors\n")[2]
    rows = re.findall(r"^\| (\d{3}) \| (.*) \|$", section, re.MULTILINE)
    shown = {(int(status), code) for status, codes in rows for code in CODE.findall(codes)}
    raised = {(status, code) for code, status in STATUS_OF.items()}
    refused = {(status, code) for status, (code, _) in REFUSALS.items()}
    told = {(int(status), code) for status, code in re.findall(r"(\d{3}) `(\w+)`", section)}
    assert raised | refused <= shown | told
    assert all(code not in STATUS_OF or STATUS_OF[code] == status for status, code in shown)
    # What no request of the service gets stands beside the table.
    assert not {"parked", "stopped"} & {code for _, code in shown}


def test_the_page_of_the_wire_has_every_event() -> None:
    page = (DOCS / "reference" / "wire.md").read_text("utf-8")
    source = Path(events.__file__).read_text("utf-8")
    for name in re.findall(r'_event\("([\w.]+)"', source):
        assert f"`{name}`" in page, name


def test_the_limits_that_pages_count_on_are_the_real_ones() -> None:
    assert limits.LEASE_MS == 15_000
    assert limits.HEARTBEAT_MS == 15_000
    assert limits.LINGER_MS == limits.LAZY_BEGIN_MS == 20
    assert (limits.STRIKES_MAX_TURN, limits.STRIKES_MAX_RUN) == (3, 5)
    assert limits.READERS_MAX == 1_024
    assert limits.DELIVERY_TRIES_MAX == 20
    assert limits.BODY_BYTES_MAX == 1024 * 1024


def test_every_decision_stands_in_the_list() -> None:
    listed = (DOCS / "decisions" / "README.md").read_text("utf-8")
    for path in sorted((DOCS / "decisions").glob("0*.md")):
        title = path.read_text("utf-8").splitlines()[0].removeprefix(f"# {path.name[:4]}: ")
        assert f"| [{path.name[:4]}]({path.name}) |" in listed
        assert title


def test_a_decision_says_what_it_gave_up() -> None:
    headings = [
        "## Situation",
        "## Decision",
        "## What we gave up",
        "## How we would notice that it was wrong",
    ]
    for path in (DOCS / "decisions").glob("0*.md"):
        lines = path.read_text("utf-8").splitlines()
        assert [line for line in lines if line.startswith("## ")] == headings, path.name
        assert len(lines) <= 45, f"{path.name} is longer than a page"
