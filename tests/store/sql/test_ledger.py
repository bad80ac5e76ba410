"""The newest groups of calls: found page by page, they are those that sorting all would find."""

from __future__ import annotations

import random

import pytest

from perdure.store.sql.ledger import NewestGroups


@pytest.mark.parametrize("seed", range(40))
def test_the_newest_groups_are_found_whatever_the_pages_and_the_ties(seed: int) -> None:
    chance = random.Random(seed)
    calls = sorted(
        (
            (f"{chance.randint(1, 9)}", f"run-{chance.randint(1, 8)}", chance.choice("ab"), number)
            for number in range(30)
        ),
        reverse=True,
    )
    last: dict[tuple[str, str], str] = {}
    for at, run_id, tenant, _ in calls:
        last.setdefault((run_id, tenant), at)
    most, size = chance.randint(1, 20), chance.randint(1, 9)
    newest = NewestGroups("run", most)
    read = 0
    for begin in range(0, len(calls), size):
        page = calls[begin : begin + size]
        read += len(page)
        if newest.take([(run_id, tenant, None, at, 1, n) for at, run_id, tenant, n in page]):
            break
        assert newest.edge == (page[-1][0], page[-1][1], 1, page[-1][3])
    wanted = sorted(sorted(last), key=lambda group: last[group], reverse=True)[:most]
    assert newest.groups == wanted
    assert read == len(calls) or len(wanted) == most


def test_a_call_of_no_session_ends_the_search() -> None:
    newest = NewestGroups("session", 1)
    assert not newest.take([("r", "", None, "1", 1, 0)])
    assert newest.has_nameless
    behind = NewestGroups("session", 1)
    assert behind.take([("r", "", "s", "2", 1, 0), ("q", "", None, "1", 1, 0)])
    assert (behind.groups, behind.has_nameless) == ([("s", "")], False)
