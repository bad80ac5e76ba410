"""What the tests of spans are given: a process whose spans and metrics are kept in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.observe.spanning import Watched, watching


@pytest.fixture
def watched() -> Iterator[Watched]:
    with watching() as found:
        yield found
