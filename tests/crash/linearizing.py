"""A check of recorded histories: whether the calls could have happened one after another.

A history holds the calls on one run, by many processes. Each call has the moment at which it was
made, the moment at which it was answered, and the answer; one that was never answered (its process
was killed, or its connection broke) may have happened at any moment since, or not at all. The
history is linearizable if there is an order of the calls that keeps whatever came wholly before
something else before it, and in which a run that knows no concurrency gives each of the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple


class Call(NamedTuple):
    """One call: `began` and `ended` are moments of one clock, `ended` inf without an answer.

    `arguments` and `answer` are those that `Model.after` knows for the `name`.
    """

    name: str
    arguments: tuple[object, ...]
    began: float
    ended: float = inf
    answer: object = None

    @property
    def is_answered(self) -> bool:
        return self.ended != inf


class Model(NamedTuple):
    """A run as one place would keep it: the newest lease, what is recorded, whether it is over."""

    epoch: int = 0
    end: str | None = None
    steps: frozenset[tuple[int, str]] = frozenset()
    events: frozenset[tuple[str, str]] = frozenset()

    def after(self, call: Call) -> Model | None:
        """Return the run after `call`; None if it could not answer so now.

        Without an answer, any will do.
        """
        answers = {
            "claim": self._claim,
            "complete": self._complete,
            "end": self._end,
            "emit": self._emit,
            "read": self._read,
        }
        return answers[call.name](call)

    def _claim(self, call: Call) -> Model | None:
        """Answer ("mine", epoch, steps), ("held",) or ("over", end); a lease may lapse any time."""
        if call.answer == ("held",):
            return self if self.epoch and self.end is None else None
        if self.end is not None:
            return self._if_answered(call, ("over", self.end))
        after = self._replace(epoch=self.epoch + 1)
        return after if _allows(call, ("mine", after.epoch, after.steps)) else None

    def _complete(self, call: Call) -> Model | None:
        """Answer the result that is recorded, or "lost", for (epoch, position, result)."""
        epoch, position, result = call.arguments
        assert isinstance(position, int)
        if epoch != self.epoch or self.end is not None:
            return self._if_answered(call, "lost")
        steps = dict(self.steps)
        first = steps.setdefault(position, str(result))
        return self._replace(steps=frozenset(steps.items())) if _allows(call, first) else None

    def _end(self, call: Call) -> Model | None:
        """Answer "done" or "lost", for (epoch, end)."""
        epoch, end = call.arguments
        if epoch != self.epoch or self.end is not None:
            return self._if_answered(call, "lost")
        return self._replace(end=str(end)) if _allows(call, "done") else None

    def _emit(self, call: Call) -> Model | None:
        """Answer (whether this one won, the payload that is recorded), for (key, payload)."""
        key, payload = map(str, call.arguments)
        events = dict(self.events)
        if not self.epoch:
            return self._if_answered(call, "unknown")
        if key in events:
            return self._if_answered(call, (False, events[key]))
        after = self._replace(events=self.events | {(key, payload)})
        return after if _allows(call, (True, payload)) else None

    def _read(self, call: Call) -> Model | None:
        """Answer the steps that are recorded."""
        return self._if_answered(call, self.steps)

    def _if_answered(self, call: Call, answer: object) -> Model | None:
        return self if _allows(call, answer) else None


def _allows(call: Call, answer: object) -> bool:
    return not call.is_answered or call.answer == answer


def is_linearizable(history: Sequence[Call], begin: Model | None = None) -> bool:
    """Return whether the calls could have happened one after another.

    Searches the orders depth first, and never goes twice through the same set of calls that leads
    to the same run.
    """
    calls = sorted(history)
    calls.sort(key=lambda call: call.began)
    answered = sum(1 << number for number, call in enumerate(calls) if call.is_answered)
    start = (0, begin or Model())
    seen = {start}
    open_ends = [start]
    while open_ends:
        done, model = open_ends.pop()
        if done & answered == answered:
            return True
        for number in _next_of(calls, done):
            after = model.after(calls[number])
            step = (done | 1 << number, after)
            if after is not None and step not in seen:
                seen.add((step[0], after))
                open_ends.append((step[0], after))
    return False


def _next_of(calls: Sequence[Call], done: int) -> Iterator[int]:
    """Yield the calls that may come next: those that began before any of the rest was answered."""
    rest = [number for number in range(len(calls)) if not done >> number & 1]
    first_answer = min(calls[number].ended for number in rest)
    for number in rest:
        if calls[number].began <= first_answer:
            yield number
