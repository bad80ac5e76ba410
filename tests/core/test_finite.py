"""Numbers are told from what only looks like one."""

from __future__ import annotations

import math

import pytest

from perdure.core.finite import is_finite, is_fraction


@pytest.mark.parametrize("value", [0, -1, 0.5, 10**300])
def test_a_number_that_a_float_can_hold_is_finite(value: object) -> None:
    assert is_finite(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, True, "1", None, []])
def test_what_is_no_such_number_is_not(value: object) -> None:
    assert not is_finite(value)


def test_a_fraction_is_from_0_to_1() -> None:
    assert [is_fraction(value) for value in (0, 1, 0.5, -0.1, 1.1, math.nan, True)] == [
        True,
        True,
        True,
        False,
        False,
        False,
        False,
    ]
