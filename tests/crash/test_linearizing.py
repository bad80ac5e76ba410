"""The check of histories passes what one place could have answered, and refuses planted faults."""

from __future__ import annotations

from itertools import count
from math import inf

import pytest

from tests.crash.linearizing import Call, is_linearizable

Told = tuple[str, tuple[object, ...], object]
NOTHING: frozenset[object] = frozenset()
ONE = frozenset({(0, "a")})

A_RUN: list[Told] = [
    ("claim", (), ("mine", 1, NOTHING)),
    ("complete", (1, 0, "a"), "a"),
    ("emit", ("key", "x"), (True, "x")),
    ("claim", (), ("held",)),
    ("claim", (), ("mine", 2, ONE)),
    ("complete", (1, 1, "late"), "lost"),
    ("complete", (2, 0, "b"), "a"),
    ("read", (), ONE),
    ("complete", (2, 1, "c"), "c"),
    ("emit", ("key", "y"), (False, "x")),
    ("end", (1, "early"), "lost"),
    ("end", (2, "over"), "done"),
    ("claim", (), ("over", "over")),
]

PLANTED: dict[str, tuple[int, Told]] = {
    "a zombie's result is taken": (5, ("complete", (1, 1, "late"), "late")),
    "a zombie's end is taken": (10, ("end", (1, "early"), "done")),
    "a result is replaced": (6, ("complete", (2, 0, "b"), "b")),
    "a lease is granted twice": (4, ("claim", (), ("mine", 1, ONE))),
    "a lease is skipped": (4, ("claim", (), ("mine", 3, ONE))),
    "an heir misses a result": (4, ("claim", (), ("mine", 2, NOTHING))),
    "an event is won twice": (9, ("emit", ("key", "y"), (True, "y"))),
    "an event is lost": (9, ("emit", ("key", "y"), (True, "x"))),
    "a read misses what was recorded": (7, ("read", (), NOTHING)),
    "a read is ahead of time": (7, ("read", (), frozenset({(0, "a"), (1, "c")}))),
    "a run ends twice": (10, ("end", (2, "early"), "done")),
    "a run is claimed behind its end": (12, ("claim", (), ("mine", 3, ONE))),
    "an end is forgotten": (12, ("claim", (), ("over", "early"))),
    "a holder is shut out": (8, ("complete", (2, 1, "c"), "lost")),
    "a run is held before it is claimed": (0, ("claim", (), ("held",))),
}


def one_after_another(calls: list[Told]) -> list[Call]:
    moments = count()
    return [
        Call(name, arguments, next(moments), next(moments), answer)
        for name, arguments, answer in calls
    ]


def at_once(calls: list[Told]) -> list[Call]:
    return [Call(name, arguments, 0, 1, answer) for name, arguments, answer in calls]


def test_what_one_place_answers_is_linearizable() -> None:
    assert is_linearizable(one_after_another(A_RUN))


def test_calls_at_once_may_have_happened_in_any_order() -> None:
    assert is_linearizable(at_once(A_RUN))
    assert is_linearizable(at_once(A_RUN[::-1]))


def test_calls_that_came_wholly_after_others_may_not_be_moved_before_them() -> None:
    assert not is_linearizable(one_after_another(A_RUN[::-1]))


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_refused(name: str) -> None:
    place, planted = PLANTED[name]
    history = [*A_RUN[:place], planted, *A_RUN[place + 1 :]]
    assert not is_linearizable(one_after_another(history))


@pytest.mark.parametrize("seen", [NOTHING, ONE])
def test_a_call_without_an_answer_may_have_happened_or_not(seen: frozenset[object]) -> None:
    claim, complete, *_ = one_after_another(A_RUN)
    lost = complete._replace(ended=inf, answer=None)
    read = Call("read", (), 10, 11, seen)
    assert is_linearizable([claim, lost, read])


def test_a_call_without_an_answer_cannot_be_undone_once_it_was_seen() -> None:
    claim, complete, *_ = one_after_another(A_RUN)
    lost = complete._replace(ended=inf, answer=None)
    seen = Call("read", (), 10, 11, ONE)
    gone = Call("read", (), 12, 13, NOTHING)
    assert not is_linearizable([claim, lost, seen, gone])


def test_a_call_without_an_answer_cannot_have_happened_before_it_was_made() -> None:
    claim, complete, *_ = one_after_another(A_RUN)
    lost = complete._replace(began=20, ended=inf, answer=None)
    assert not is_linearizable([claim, lost, Call("read", (), 10, 11, ONE)])
