"""Every rule of the specification of agent tasks is named by a test, and no test names another.

A test of a rule has its number in its name, `test_<section>_r<rule>_...`, or `bb_<number>` for a
place where we do better than what was specified; a section without numbered rules has its own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

RULES: Final = {
    "1_1": 4,
    "1_2": 5,
    "4_2": 9,
    "4_3": 2,
    "4_5": 5,
    "4_7": 5,
    "5_2": 10,
    "6_3": 12,
    "7_3": 15,
    "8": 4,
    "9_3": 4,
    "9_4": 9,
    "9_6": 5,
    "10": 6,
    "11_2": 12,
    "11_3": 4,
    "12": 7,
    "13": 4,
    "14_1": 5,
    "14_2": 8,
    "14_4": 7,
}
"""How many rules each section has; they count from 1."""
UNNUMBERED: Final = (
    "2 3_1 3_2 3_3 4_1 4_4 4_6 5_1 6_1 6_2 6_4 7_1 7_2 9_1 9_2 9_5 11_1 14_3 appendix_a appendix_b"
)
BETTER: Final = 20
"""So many places where we do better."""

TESTS: Final = Path(__file__).parent.parent
NAME: Final = re.compile(r"def test_(\w+)\(")
NUMBERED: Final = re.compile(r"(\d+(?:_\d+)?)((?:_r\d+[a-z]?)+)_")
PLACE: Final = re.compile(r"(?:^|_)bb_(\d+)_")


def names() -> list[str]:
    """Return the names of all tests, without `test_`."""
    found: list[str] = []
    for path in sorted(TESTS.rglob("test_*.py")):
        found += NAME.findall(path.read_text("utf-8"))
    return found


def rules_named(tests: list[str]) -> set[tuple[str, int]]:
    """Return section and number of each rule that a test names."""
    return {
        (matched[1], int(rule))
        for name in tests
        if (matched := NUMBERED.match(name))
        for rule in re.findall(r"_r(\d+)", matched[2])
    }


@pytest.fixture(scope="module")
def tests() -> list[str]:
    return names()


def test_every_rule_is_named_by_a_test_and_every_name_is_of_a_rule(tests: list[str]) -> None:
    rules = {(section, rule + 1) for section, count in RULES.items() for rule in range(count)}
    named = rules_named(tests)
    assert sorted(rules - named) == []
    assert sorted(named - rules) == []


def test_every_section_without_rules_is_named_by_a_test(tests: list[str]) -> None:
    missed = [
        section
        for section in UNNUMBERED.split()
        if not any(name.startswith(f"{section}_") for name in tests)
    ]
    assert missed == []


def test_every_place_where_we_do_better_is_named_by_a_test(tests: list[str]) -> None:
    named = {int(number) for name in tests for number in PLACE.findall(name)}
    assert sorted(named) == list(range(1, BETTER + 1))


def test_the_numbers_in_a_name_are_read_as_they_are_meant() -> None:
    assert rules_named(["5_2_r4a_r7_x", "10_r2_bb_13_y", "10_of_them", "8_r4"]) == {
        ("5_2", 4),
        ("5_2", 7),
        ("10", 2),
    }
