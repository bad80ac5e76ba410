"""The servers that the backends are tested against."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.backends.aimock import Aimock, install_node_packages, running_aimock
from tests.backends.model_server import ModelServer


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture(scope="session")
def aimock_process() -> Iterator[Aimock]:
    if shutil.which("npm") is None:
        give_up("needs npm")
    try:
        install_node_packages()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        give_up(f"the packages of tests/node cannot be installed: {error.stderr!r}")
    with running_aimock() as aimock:
        yield aimock


@pytest.fixture
def aimock(aimock_process: Aimock) -> Aimock:
    aimock_process.forget()
    return aimock_process


def give_up(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (nothing is skipped in CI)", pytrace=False)
    pytest.skip(reason)
