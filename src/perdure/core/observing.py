"""Who watches attempts, steps and model calls; where nobody does, it costs a look at one name."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from perdure.core.changes import SettleUsage
from perdure.core.records import RunRecord

logger = logging.getLogger("perdure.watched")


class TraceLink(NamedTuple):
    """Where an earlier attempt at a run stands in its trace: a W3C `traceparent`, and its end.

    `ended` is as in AttemptRecord: None or 'lost' if that attempt crashed.
    """

    epoch: int
    traceparent: str
    ended: str | None = None

    @property
    def is_lost(self) -> bool:
        return self.ended in (None, "lost")


class AttemptSeen(NamedTuple):
    """An attempt that begins. `agent`: the name of the engine, if the run is a turn.

    `earlier`: the attempts at the same run that were watched, oldest first.
    """

    run: RunRecord
    epoch: int
    agent: str | None = None
    earlier: tuple[TraceLink, ...] = ()


class StepSeen(NamedTuple):
    """A step whose body is about to run for the `tries`-th time; one that replays is not seen."""

    position: int
    intent: str
    kind: str
    tries: int


class Told(NamedTuple):
    """What whoever does a piece of work says of it meanwhile; None: nothing of that.

    `provider` and `model` are asked by a model call, `has_begun` says that the first piece of its
    answer is here, and `finish` why the answer ended. `tool` and `call` are the tool of a call,
    and the id that the model gave it. `error` is the kind of a failure that is not raised.
    """

    provider: str | None = None
    model: str | None = None
    has_begun: bool = False
    finish: str | None = None
    tool: str | None = None
    call: str | None = None
    error: str | None = None


class Watch(Protocol):
    """One piece of work that is being watched, from when it was made until `end`."""

    @property
    def traceparent(self) -> str | None:
        """Where it stands in its trace, for whoever goes on after a crash; None: nowhere."""
        ...

    def active(self) -> AbstractContextManager[None]:
        """What begins inside belongs to this work."""
        ...

    def end(
        self,
        *,
        outcome: str | None = None,
        error: BaseException | None = None,
        usage: SettleUsage | None = None,
    ) -> None:
        """Say how it went; `usage` is what a model call is known to have used."""
        ...


class Observer(Protocol):
    """Is told what happens, and changes nothing. No method of it, or of a Watch, may raise."""

    def attempt(self, seen: AttemptSeen) -> Watch: ...

    def step(self, seen: StepSeen) -> Watch: ...

    def model_call(
        self, *, provider: str | None, model: str | None, began_ago_ms: float = 0
    ) -> Watch:
        """Watch a call that is no step of its own: the one of a producer that only asks."""
        ...

    def told(self, told: Told) -> None:
        """Hear more of the work that is active here, if it is watched."""
        ...


observer: Observer | None = None
"""Who watches in this process; look at it as `observing.observer`."""


def watch_with(watcher: Observer | None) -> None:
    """Have `watcher` told from now on, None: nobody; work that has begun stays with its own."""
    global observer
    observer = watcher


def tell(told: Told) -> None:
    """Say more of the work that is going on here, if anybody watches it."""
    if observer is None:
        return
    try:
        observer.told(told)
    except Exception:
        logger.exception("nobody was told of what goes on")
