"""The simulated world: virtual time, processes that pause and die, a store behind a bad network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Generator
from heapq import heappop, heappush
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
    """One line of work on a host, which goes on with an answer or an error."""

    __slots__ = ("answer", "error", "host", "life")

    def __init__(self, host: Host, life: Life) -> None:
        self.host = host
        self.life = life
        self.answer: Any = None
        self.error: BaseException | None = None

    def taken_error(self) -> BaseException:
        """Return the error, which is kept nowhere: what it was raised through would keep itself."""
        assert self.error is not None
        error, self.error = self.error, None
        return error


class Statement:
    """A call on its way; `process` waits for its answer, unless it arrives a second time."""

    __slots__ = ("call", "is_answered", "process")

    def __init__(self, call: Call, process: Process | None, *, is_answered: bool = True) -> None:
        self.call = call
        self.process = process
        self.is_answered = is_answered


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
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._waiting: dict[str, deque[Statement]] = {}
        """By the row that is locked, who else wants it."""

    # Time.

    def at(self, ms: float, action: Callable[..., None], *arguments: Any) -> None:
        """Do `action` in `ms` from now."""
        self._order = order = self._order + 1
        heappush(self._events, (self.now + ms, order, action, arguments))

    def run_until(self, end_ms: float, is_over: Callable[[], bool]) -> None:
        """Let things happen until it is over, or late."""
        events, looked_at = self._events, -1
        clock, begin_ms = self.clock, self._begin_ms
        while events:
            if self.statements != looked_at:
                looked_at = self.statements
                if is_over():
                    return
            if events[0][0] > end_ms:
                return
            moment, _, action, arguments = heappop(events)
            self.now = moment
            clock.now_ms = begin_ms + int(moment)
            action(*arguments)

    def delay(self) -> float:
        """Return how long a statement takes on one part of its way."""
        dice = self.dice
        if dice.random() < self.faults.slow:
            return dice.random() * dice.choice(HICCUP_MS)
        return dice.random() * LATENCY_MS

    def end(self) -> None:
        """Let nothing happen any more. What knows each other is let go without the collector."""
        self._events.clear()
        self._waiting.clear()

    # Processes.

    def spawn(self, host: Host, life: Life, *, after_ms: float = 0) -> None:
        """Begin a line of work on a host."""
        self.at(after_ms, self._resume, Process(host, life))

    def crash(self, host: Host) -> None:
        """End everything on a host, now."""
        host.is_dead = True

    def _resume(self, process: Process) -> None:
        host = process.host
        if host.is_dead:
            process.life.close()
            return
        if host.paused_until > self.now:
            self.at(host.paused_until - self.now, self._resume, process)
            return
        try:
            if process.error is None:
                request = process.life.send(process.answer)
            else:
                request = process.life.throw(process.taken_error())
        except StopIteration:
            return
        if isinstance(request, Sleep):
            process.answer = None
            self.at(request.ms, self._resume, process)
        else:
            self._send(process, request)

    # Statements.

    def _on_its_way(self, action: Callable[..., None], *arguments: Any) -> None:
        """Do `action` when one part of the way of a statement lies behind it."""
        self._order = order = self._order + 1
        heappush(self._events, (self.now + self.delay(), order, action, arguments))

    def _send(self, process: Process, call: Call) -> None:
        faults, random = self.faults, self.dice.random
        chance = random()
        if chance < faults.lost:
            self._refuse(process, "the statement was lost")
            return
        chance -= faults.lost
        if chance < faults.refused:
            self._refuse(process, "the disk failed")
            return
        chance -= faults.refused
        statement = Statement(call, process, is_answered=chance >= faults.unanswered)
        self._on_its_way(self._arrive, statement)
        if random() < faults.repeated:
            self.at(self.delay() + self.delay(), self._arrive, Statement(call, None))

    def _refuse(self, process: Process, reason: str) -> None:
        process.answer, process.error = None, StoreUnavailableError(reason)
        self._on_its_way(self._resume, process)

    def _arrive(self, statement: Statement) -> None:
        """Execute what locks no row; else wait for the row, and keep it until it is visible."""
        row = statement.call.row
        if row is None or not self.locks_rows:
            self._execute(statement)
        elif row in self._waiting:
            self._waiting[row].append(statement)
        else:
            self._waiting[row] = deque()
            self._on_its_way(self._execute, statement)

    def _execute(self, statement: Statement, work: Coroutine[Any, Any, Any] | None = None) -> None:
        """Let the store work, or go on with the work."""
        if work is None:
            self.statements += 1
            work = statement.call.perform()
        try:
            later = work.send(None)
        except StopIteration as done:
            if statement.call.observe is not None:
                statement.call.observe(done.value)
            self._finish(statement, done.value, None)
        except PerdureError as error:
            self._finish(statement, None, error)
        except Exception as error:
            raise Violation("error", f"the store raised {error!r}") from error
        else:
            assert isinstance(later, Later), "a simulated store awaits nothing but its own time"
            self.at(later.ms, self._execute, statement, work)

    def _finish(self, statement: Statement, value: Any, error: BaseException | None) -> None:
        """Let the next one have the row, and send the answer."""
        row, process = statement.call.row, statement.process
        if row is not None and self.locks_rows:
            waiting = self._waiting[row]
            if waiting:
                self._on_its_way(self._execute, waiting.popleft())
            else:
                del self._waiting[row]
        if process is not None:
            if statement.is_answered:
                process.answer, process.error = value, error
            else:
                process.answer, process.error = None, StoreUnavailableError("the answer was lost")
            self._on_its_way(self._resume, process)
