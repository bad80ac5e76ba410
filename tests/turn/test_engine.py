"""The engine's own settings: what cannot work is refused where it is written."""

from __future__ import annotations

import math
from typing import Any

import pytest

from perdure.errors import UsageError
from tests.turn.stage import Stage


@pytest.mark.parametrize(
    "wrong",
    [
        {"idle_timeout_ms": 0},
        {"idle_timeout_ms": -1},
        {"idle_timeout_ms": math.nan},
        {"idle_timeout_ms": "long"},
        {"strikes_max": 0},
        {"strikes_max": None},
        {"lease_ms": 0},
        {"replay": "all"},
        {"name": ""},
    ],
    ids=str,
)
async def test_a_setting_that_cannot_work_is_refused_by_its_name(
    stage: Stage, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        await stage.engine(**wrong)
