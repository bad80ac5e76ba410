"""What holds for every test: no provider's key, Hypothesis without a clock, tools that CI has."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.node_packages import need_node_packages
from tests.store.d1_server import D1Server, running_d1
from tests.store.postgres_server import PostgresServer, running_server

IN_CI = bool(os.environ.get("CI"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NODE_TESTS = Path(__file__).parent / "node"

# A developer's key must not turn an offline test into calls that somebody pays for.
for name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "OPENAI_"))]:
    del os.environ[name]

# What a shell starts in the background ignores interrupts, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A shared machine is slow at times, which says nothing about the code.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "ci", parent=settings.get_profile("local"), derandomize=True, print_blob=True
)
settings.load_profile("ci" if IN_CI else "local")


def find_browser() -> str | None:
    """Return the path of a Chromium, if there is one."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


def missing_tool(item: pytest.Item) -> str | None:
    """Return what the markers of a test ask for and this machine has not."""
    if item.get_closest_marker("browser") and find_browser() is None:
        return "needs Chromium: apt-get install chromium"
    if item.get_closest_marker("node"):
        if shutil.which("node") is None:
            return "needs Node.js"
        if item.path.is_relative_to(NODE_TESTS) and not (NODE_TESTS / "node_modules").is_dir():
            return "needs the packages of tests/node: make node"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = missing_tool(item)
    if missing and IN_CI:
        pytest.fail(f"{missing} (nothing is skipped in CI)", pytrace=False)
    if missing:
        pytest.skip(missing)


def pytest_collection_finish() -> None:
    """Look no more at the million objects that are there for good whenever garbage is collected.

    Each such look would take half a second, and the suite takes hundreds.
    """
    gc.freeze()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the path of the Chromium for a test marked `browser`."""
    path = find_browser()
    assert path is not None, "the test lacks the marker `browser`"
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Return a PostgreSQL that all tests of this process share, each in a schema of its own."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def d1() -> Iterator[D1Server]:
    """Return Cloudflare's own D1 that all tests of this process share; they are marked `node`."""
    need_node_packages()
    with running_d1() as server:
        yield server
