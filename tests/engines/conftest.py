"""What the tests of engines share: one Workflows engine for a whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.workflow_engine import WorkflowEngine
from tests.node_packages import need_node_packages


@pytest.fixture(scope="session")
def workflow_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkflowEngine]:
    """Return Cloudflare's own Workflows engine; whoever kills it starts it again."""
    need_node_packages()
    with WorkflowEngine(tmp_path_factory.mktemp("workflows")).running() as running:
        yield running
