"""The protocol under every kind of trouble, and the proof that the simulator would notice."""

from __future__ import annotations

import inspect
import math
import re

import pytest

from perdure.core.records import Claim
from perdure.testing.simulator import Cast, Checks, checks, first_violation, schedule, simulate
from perdure.testing.simulator.__main__ import main
from tests.testing.planted import PLANTED, Planted

SCHEDULES = 100_000
CAMPAIGN = 10_000_000
PIECES = 20
SIZE = SCHEDULES // PIECES


@pytest.mark.parametrize("begin", range(0, SCHEDULES, SIZE))
def test_no_schedule_breaks_an_invariant(begin: int) -> None:
    assert first_violation(range(begin, begin + SIZE)) is None


@pytest.mark.campaign
@pytest.mark.parametrize("begin", range(SCHEDULES, CAMPAIGN, SCHEDULES))
def test_no_schedule_of_ten_million_breaks_an_invariant(begin: int) -> None:
    assert first_violation(range(begin, begin + SCHEDULES)) is None


class LeasesLapseEarly(Checks):
    """On SQLite and files the clock of the store is that of whoever writes: a lease says little."""

    def granted(
        self, claim: Claim, now_ms: float, lease_ms: int, *, token: str | None = None
    ) -> None:
        super().granted(claim, math.inf, lease_ms, token=token)


WRONG_CLOCKS = Cast(skews=True, checks=LeasesLapseEarly)


def test_clocks_that_are_wrong_cost_leases_and_nothing_else() -> None:
    assert first_violation(range(1_500), WRONG_CLOCKS) is None


@pytest.mark.campaign
@pytest.mark.timeout(600)
@pytest.mark.parametrize("begin", range(0, SCHEDULES, SIZE))
def test_clocks_that_are_wrong_cost_nothing_else_in_any_schedule(begin: int) -> None:
    assert first_violation(range(begin, begin + SIZE), WRONG_CLOCKS) is None


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_a_planted_fault_is_found(planted: Planted) -> None:
    assert planted.seed in range(SCHEDULES)
    assert first_violation((planted.seed, *range(SCHEDULES)), planted.cast) is not None


def test_each_invariant_is_broken_by_a_planted_fault() -> None:
    # One that nothing breaks may be one that cannot fail.
    sources = inspect.getsource(checks), inspect.getsource(schedule)
    rules = {rule for text in sources for rule in re.findall(r'Violation\(\s*"(\w+)"', text)}
    found = (first_violation((one.seed, *range(SCHEDULES)), one.cast) for one in PLANTED)
    assert {violation.rule for _, violation in filter(None, found)} == rules


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


def test_an_attempt_that_is_lost_is_not_blamed_for_those_behind_it() -> None:
    # Its begin was written, and it hears of that 12 s later, when two others have been lost.
    assert simulate(5_454_450).ends == ("completed",)
