"""The simulated world: virtual time, processes that pause and die, a store behind a bad network."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Final, NamedTuple

from perdure.core.effects import Dice
from perdure.errors import PerdureError, StoreUnavailableError
from perdure.testing.clock import ManualClock
from perdure.testing.simulator.checks import Violation

LATENCY_MS: Final = 20
"""A statement takes up to so long on its way, in the store, and back."""
HICCUP_MS: Final = (500, 4_000, 15_000)
"""Once in a while one of the three takes up to so long; the longest outlives a lease."""


class Later(NamedTuple):
    """Awaited by a store: let so much time pass between two of its statements."""

    ms: float


@coroutine
def pause_between_statements(ms: float) -> Generator[Later, None, None]:
    """Await it in the middle of a planted store, which so is not atomic."""
    yield Later(ms)


class Sleep(NamedTuple):
    """Yielded by a process: do nothing for a while."""

    ms: float


class Call(NamedTuple):
    """Yielded by a process: send a statement to the store, and get its answer or its error.

    `row` is the run whose row it locks from its first look until what it wrote is visible; None:
    it locks none. `observe` sees the answer at the moment at which it is written, whoever gets it.
    """

    row: str | None
    perform: Callable[[], Coroutine[Any, Any, Any]]
    observe: Callable[[Any], None] | None = None


Life = Generator[Sleep | Call, Any, None]


class Faults(NamedTuple):
    """How often what goes wrong: the chances of each statement, and the luck of each host."""

    lost: float = 0.02
    """The statement never arrives."""
    unanswered: float = 0.02
    """It is executed, and its answer is lost: whoever asked will ask again."""
    repeated: float = 0.01
    """It arrives a second time, later."""
    refused: float = 0.01
    """The disk fails: nothing is written."""
    slow: float = 0.03
    mishap_ms: float = 6_000
    """How long a host is well, on average, before it pauses or dies."""


NO_FAULTS: Final = Faults(0, 0, 0, 0, 0, 0)


class Host:
    """What crashes and pauses as one: the processes of one worker."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.paused_until = 0.0


class Process:
    """One line of work on a host."""

    __slots__ = ("host", "life")

    def __init__(self, host: Host, life: Life) -> None:
        self.host = host
        self.life = life


class World:
    """Runs processes under virtual time; one seed is one schedule.

    The store's code is driven by hand, statement by statement: `asyncio` only stands around it.
    """

    def __init__(self, dice: Dice, *, faults: Faults) -> None:
        self.clock = ManualClock()
        self.dice = dice
        self.faults = faults
        self.now = 0.0
        self.statements = 0
        self.locks_rows = True
        self._begin_ms = self.clock.now_ms
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._waiting: dict[str, deque[Callable[[], None]]] = {}
        """By the row that is locked, who else wants it."""

    # Time.

    def at(self, ms: float, action: Callable[[], None]) -> None:
        """Do `action` in `ms` from now."""
        self._order += 1
        heapq.heappush(self._events, (self.now + ms, self._order, action))

    def run_until(self, end_ms: float, is_over: Callable[[], bool]) -> None:
        """Let things happen until it is over, or late."""
        events, looked_at = self._events, -1
        while events:
            if self.statements != looked_at:
                looked_at = self.statements
                if is_over():
                    return
            if events[0][0] > end_ms:
                return
            moment, _, action = heapq.heappop(events)
            self.now = moment
            self.clock.now_ms = self._begin_ms + int(moment)
            action()

    def delay(self) -> float:
        """Return how long a statement takes on one part of its way."""
        dice = self.dice
        if dice.random() < self.faults.slow:
            return dice.random() * dice.choice(HICCUP_MS)
        return dice.random() * LATENCY_MS

    # Processes.

    def spawn(self, host: Host, life: Life, *, after_ms: float = 0) -> Process:
        """Begin a line of work on a host."""
        process = Process(host, life)
        self.at(after_ms, lambda: self._resume(process, None, None))
        return process

    def crash(self, host: Host) -> None:
        """End everything on a host, now."""
        host.is_dead = True

    def _resume(self, process: Process, answer: Any, error: BaseException | None) -> None:
        host = process.host
        if host.is_dead:
            process.life.close()
            return
        if host.paused_until > self.now:
            self.at(host.paused_until - self.now, lambda: self._resume(process, answer, error))
            return
        try:
            request = process.life.send(answer) if error is None else process.life.throw(error)
        except StopIteration:
            return
        if isinstance(request, Sleep):
            self.at(request.ms, lambda: self._resume(process, None, None))
        else:
            self._send(process, request)

    # Statements.

    def _send(self, process: Process, call: Call) -> None:
        faults, chance = self.faults, self.dice.random()

        def answer(value: Any, error: BaseException | None) -> None:
            self.at(self.delay(), lambda: self._resume(process, value, error))

        def lose(_value: Any, _error: BaseException | None) -> None:
            lost = StoreUnavailableError("the answer was lost")
            self.at(self.delay(), lambda: self._resume(process, None, lost))

        if chance < faults.lost:
            lose(None, None)
            return
        chance -= faults.lost
        if chance < faults.refused:
            answer(None, StoreUnavailableError("the disk failed"))
            return
        chance -= faults.refused
        reply = lose if chance < faults.unanswered else answer
        self.at(self.delay(), lambda: self._arrive(call, reply))
        if self.dice.random() < faults.repeated:
            self.at(self.delay() + self.delay(), lambda: self._arrive(call, _to_nobody))

    def _arrive(self, call: Call, reply: Callable[[Any, BaseException | None], None]) -> None:
        row = call.row
        if row is None or not self.locks_rows:
            self._execute(call, reply, free=_nothing)
            return
        waiting = self._waiting.get(row)
        if waiting is not None:
            waiting.append(lambda: self._hold(row, call, reply))
            return
        self._waiting[row] = deque()
        self._hold(row, call, reply)

    def _hold(
        self, row: str, call: Call, reply: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Keep the row locked from the first look of the statement until it is visible."""

        def free() -> None:
            waiting = self._waiting[row]
            if waiting:
                waiting.popleft()()
            else:
                del self._waiting[row]

        self.at(self.delay(), lambda: self._execute(call, reply, free=free))

    def _execute(
        self,
        call: Call,
        reply: Callable[[Any, BaseException | None], None],
        *,
        free: Callable[[], None],
    ) -> None:
        self.statements += 1
        self._go_on(call, call.perform(), reply, free)

    def _go_on(
        self,
        call: Call,
        work: Coroutine[Any, Any, Any],
        reply: Callable[[Any, BaseException | None], None],
        free: Callable[[], None],
    ) -> None:
        try:
            later = work.send(None)
        except StopIteration as done:
            if call.observe is not None:
                call.observe(done.value)
            free()
            reply(done.value, None)
        except PerdureError as error:
            free()
            reply(None, error)
        except Exception as error:
            raise Violation("error", f"the store raised {error!r}") from error
        else:
            assert isinstance(later, Later), "a simulated store awaits nothing but its own time"
            self.at(later.ms, lambda: self._go_on(call, work, reply, free))


def _nothing() -> None:
    """Free nothing."""


def _to_nobody(_value: Any, _error: BaseException | None) -> None:
    """Answer a statement that nobody has sent."""
