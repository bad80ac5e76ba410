"""The fixtures that users of pytest get with the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
HEAD = (
    "import perdure\n\nMANIFEST = perdure.RunManifest('p', perdure.AgentTaskSpec('t', 'greet'))\n"
)
TEST = f"""{HEAD}
async def greet(context):
    return await context.step("greet", lambda: "hello")

async def test_it_is_durable(perdure_lab):
    async with perdure_lab as lab:
        store = await lab.open()
        for _ in range(2):
            done = await perdure.run_durable(store, run_id="r", manifest=MANIFEST, task=greet)
            assert done.result == "hello"
        assert done.record.created_at == lab.clock.iso()

async def test_it_survives_crashes(perdure_crash_everywhere):
    async def scenario(store):
        done = await perdure.run_durable(store, run_id="r", manifest=MANIFEST, task=greet)
        return done.result

    report = await perdure_crash_everywhere(scenario)
    assert len(report.points) == 2 * len(report.calls) > 2
"""


def run_pytest(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_mine.py").write_text(text, "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "perdure.pytest_plugin"]
    command += ["-p", "no:cacheprovider", "-o", "asyncio_mode=auto", *arguments]
    # As in an environment where the package, and so its plugin, is installed once.
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [*command, "-p", "pytest_asyncio.plugin"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "count"),
    [((), 4), (("--perdure-store", "file"), 2), (("-o", "perdure_store=memory, file"), 4)],
)
def test_each_test_is_run_on_the_chosen_stores(
    tmp_path: Path, arguments: tuple[str, ...], count: int
) -> None:
    done = run_pytest(tmp_path, TEST, *arguments)
    assert f"{count} passed" in done.stdout, done.stdout + done.stderr


def test_a_store_that_is_not_known_is_named(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, TEST, "--perdure-store", "oracle")
    assert done.returncode != 0
    assert "'oracle' is none of memory, sqlite, file" in done.stdout + done.stderr


def test_a_crash_that_breaks_the_work_fails_the_test(tmp_path: Path) -> None:
    text = f"""{HEAD}
async def test_it_is_not_durable(perdure_crash_everywhere):
    calls = []

    async def scenario(store):
        async def task(context):
            calls.append(1)
            return await context.step("count", lambda: len(calls))
        done = await perdure.run_durable(store, run_id="r", manifest=MANIFEST, task=task)
        return done.result

    await perdure_crash_everywhere(scenario)
"""
    done = run_pytest(tmp_path, text, "--perdure-store", "memory")
    assert "1 failed" in done.stdout
    assert "crash before call" in done.stdout
