"""The package without any dependency: what has to work, and what has to say how to install it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, blocks_of

SOURCE = Path(__file__).parent.parent / "src"
DRIVERS = {"postgres", "otel", "d1/api.py"}
"""What of lower floors needs an extra, and is imported only by whoever asks for it."""
LOWER_FLOORS = [
    "errors",
    "core",
    "store",
    "durable",
    "observe",
    "turn",
    "agent",
    "sync",
    "testing",
]


def run_bare(code: str) -> str:
    """Run code in an interpreter that sees the standard library and our source only."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = [{str(SOURCE)!r}]\n{code}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_of(floor: str) -> list[str]:
    """Return the importable names of a floor's modules."""
    place = SOURCE / "perdure" / floor
    found = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return [
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for path in found
        if DRIVERS.isdisjoint((path.parent.name, f"{path.parent.name}/{path.name}"))
    ]


@pytest.mark.parametrize("floor", LOWER_FLOORS)
def test_the_floor_needs_only_the_standard_library(floor: str) -> None:
    modules = modules_of(floor)
    assert modules
    lines = [f"import {module}" for module in modules]
    assert run_bare("\n".join([*lines, "print(len(sys.modules) > 0)"])) == "True\n"


def test_a_run_is_durable_without_any_dependency() -> None:
    code = """
import asyncio
import perdure

async def task(context):
    return await context.step("answer", lambda: 42)

async def main():
    store = await perdure.open_store("memory:")
    manifest = perdure.RunManifest("project", perdure.AgentTaskSpec("task", "answer"))
    done = await perdure.run_durable(store, run_id="run", manifest=manifest, task=task)
    again = await perdure.run_durable(store, run_id="run", manifest=manifest, task=task)
    print(done.result, again.result)
    await store.close()

asyncio.run(main())
"""
    assert run_bare(code) == "42 42\n"


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("perdure.backends.anthropic", "anthropic"),
        ("perdure.backends.openai", "openai"),
        ("perdure.encryption", "encryption"),
        ("perdure.engines.dbos", "dbos"),
        ("perdure.engines.langgraph", "langgraph"),
        ("perdure.engines.openai_agents", "openai-agents"),
        ("perdure.engines.pydantic_ai", "pydantic-ai"),
        ("perdure.engines.restate", "restate"),
        ("perdure.store.sql.postgres.driver", "postgres"),
        ("perdure.web.app", "serve"),
        ("perdure.web.dashboard", "serve"),
        ("perdure.web.fastapi", "fastapi"),
        ("perdure.web.requests", "serve"),
        ("perdure.web.responses", "serve"),
        ("perdure.web.shapes", "fastapi"),
    ],
)
def test_a_missing_extra_says_how_to_install_it(module: str, extra: str) -> None:
    code = f"""
try:
    import {module}
except ImportError as error:
    print(error)
"""
    assert f"pip install 'perdure[{extra}]'" in run_bare(code)


def modules_on_the_pages() -> list[str]:
    """Return the modules of the package that programs on the pages import from."""
    code = "\n".join(block.text for page in PAGES for block in blocks_of(page))
    return sorted(set(re.findall(r"^from (perdure[\w.]*) import", code, re.MULTILINE)))


def test_what_a_page_imports_is_there_or_says_how_to_install_it() -> None:
    code = f"""
import importlib
for module in {modules_on_the_pages()}:
    try:
        importlib.import_module(module)
    except ImportError as error:
        if "pip install 'perdure[" not in str(error):
            print(module, error)
"""
    assert run_bare(code) == ""
