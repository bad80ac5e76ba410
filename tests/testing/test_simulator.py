"""The protocol under every kind of trouble, and the proof that the simulator would notice."""

from __future__ import annotations

import pytest

from perdure.testing.simulator import Cast, first_violation, simulate
from perdure.testing.simulator.__main__ import main
from tests.testing.planted import PLANTED, Planted

SCHEDULES = 100_000
PIECES = 20
SIZE = SCHEDULES // PIECES


@pytest.mark.parametrize("begin", range(0, SCHEDULES, SIZE))
def test_no_schedule_breaks_an_invariant(begin: int) -> None:
    assert first_violation(range(begin, begin + SIZE)) is None


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_a_planted_fault_is_found(planted: Planted) -> None:
    assert planted.seed in range(SCHEDULES)
    assert first_violation((planted.seed, *range(SCHEDULES)), planted.cast) is not None


def test_there_are_enough_planted_faults() -> None:
    assert len({planted.name for planted in PLANTED}) >= 35


def test_one_seed_is_one_schedule() -> None:
    assert [simulate(seed) for seed in range(20)] == [simulate(seed) for seed in range(20)]
    assert len({simulate(seed).statements for seed in range(20)}) > 10


def test_a_violation_names_its_seed() -> None:
    cast: Cast = PLANTED[0].cast
    found = first_violation(range(SCHEDULES), cast)
    assert found is not None
    seed, violation = found
    assert f"seed {seed}" in violation.__notes__[0]


def test_the_command_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0:50"]) == 0
    assert capsys.readouterr().out == "50 schedules, no violation\n"
