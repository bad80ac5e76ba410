"""The desk of the tests: a store on the disk, of either kind."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from tests.cli.desk import Desk, url_in


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(url_in(tmp_path, "sqlite"), capsys)


@pytest.fixture(params=["file", "sqlite"])
def each_desk(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Desk:
    return Desk(url_in(tmp_path, cast(str, request.param)), capsys)
