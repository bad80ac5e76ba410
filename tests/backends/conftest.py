"""The servers that the backends are tested against."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.backends.aimock import Aimock, running_aimock
from tests.backends.model_server import ModelServer
from tests.node_packages import need_node_packages


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture(scope="session")
def aimock_process() -> Iterator[Aimock]:
    need_node_packages()
    with running_aimock() as aimock:
        yield aimock


@pytest.fixture
def aimock(aimock_process: Aimock) -> Aimock:
    aimock_process.forget()
    return aimock_process
