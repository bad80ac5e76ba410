"""The pages of limits, errors and the life of a run, written from the code that decides them."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

from docs.markdown import in_one_line, opening_of, page, table
from perdure import errors
from perdure.core import limits, transitions
from perdure.turn import ending
from perdure.web import responses

# Limits…


def described_constants(module: ModuleType) -> Iterator[tuple[str, Any, str]]:
    """Yield name, value and the docstring below it of each constant, in order."""
    body = ast.parse(inspect.getsource(module)).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name, text = node.target.id, ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = in_one_line(str(following.value.value))
        yield name, getattr(module, name), text


def length_text(milliseconds: int) -> str:
    for unit, length in (("h", 3_600_000), ("s", 1_000)):
        if milliseconds >= length and milliseconds % length == 0:
            return f"{milliseconds // length} {unit}"
    return f"{milliseconds} ms"


def size_text(count: int) -> str:
    for unit, size in (("MiB", 1024**2), ("KiB", 1024)):
        if count >= size and count % size == 0:
            return f"{count // size} {unit}"
    return f"{count:,} bytes"


def limit_text(name: str, value: int) -> str:
    """Return a limit with its unit, which its name ends in."""
    if name.endswith("_MS"):
        return length_text(value)
    if "BYTES" in name:
        return size_text(value)
    return "2^53 - 1" if value == 2**53 - 1 else f"{value:,}"


def limits_page() -> str:
    rows = [
        (f"`{name}`", limit_text(name, value), text)
        for name, value, text in described_constants(limits)
    ]
    opening = """
Every limit has a name in `perdure.core.limits`. Leases, strikes, the idle time-out and the drain
are arguments as well, of `run_durable`, `Worker` and `ChatTurnEngine`; turns, streams and bodies
of a process are settings of `create_app` (`AdmissionLimits`); the others are fixed. What is over a
limit is refused with an error that names the limit, never cut without a word.
"""
    return page("Limits", opening, table(("name", "value", "meaning"), rows))


# Errors…

STREAM_CODES: Final = {
    "internal": "An exception of the product: its message is in the log, under `ref`.",
    "parked": "The turn was given up; the `reason` is in its state. Retry it.",
    "attempts_exhausted": "A `reason` of parked runs: too many attempts crashed without progress.",
}
"""Codes that a reader of a stream or of a run's `reason` meets without a class of their own."""


def error_classes() -> list[type[errors.PerdureError]]:
    """Return every error class of the package, parents first, as the modules define them."""
    found: list[type[errors.PerdureError]] = []
    for module in (errors, ending, responses):
        for value in vars(module).values():
            if not isinstance(value, type) or not issubclass(value, errors.PerdureError):
                continue
            if value.__module__ == module.__name__:
                found.append(value)
    return found


def parents_text(error: type[errors.PerdureError]) -> str:
    return ", ".join(f"`{parent.__name__}`" for parent in error.__bases__)


def status_text(error: type[errors.PerdureError]) -> str:
    """Return the status of an error's JSON answer; what only streams carry has none."""
    if issubclass(error, errors.AgentRuntimeError):
        return "in the stream"
    return str(responses.STATUS_OF.get(error.code, 500))


def errors_page() -> str:
    rows = [
        (
            f"`{error.code}`",
            f"`{error.__name__}`",
            parents_text(error),
            status_text(error),
            "yes" if error.retryable else "no",
            opening_of(error),
            error.hint,
        )
        for error in error_classes()
    ]
    opening = """
Every exception that Perdure raises is a `PerdureError` with a `code` that never changes its
meaning, a `retryable` (may the same call succeed later, without a change?) and a `hint` (the way
out). Catch by class in Python, compare codes on the wire. `retryable` is the usual answer of a
class; a `BackendTransportError` decides it for each failure.

What a task raises is not wrapped: `run_durable` hands it to its caller as it is. A client of a
turn never sees the message of an exception, but a code, a general text and a reference
([decision 0021](../decisions/0021-public-messages-carry-no-inside.md)). Let a `LeaseLostError`
pass: another worker has gone on.

The column HTTP has the status of an answer that is this error. Most of the 500s never are one: they
end a run or a turn, and stand in its record and its stream.
"""
    header = ("code", "class", "is a", "HTTP", "retryable", "meaning", "way out")
    others = [(f"`{code}`", text) for code, text in STREAM_CODES.items()]
    refusals = [
        (f"`{code}`", str(status), hint)
        for status, (code, hint) in responses.REFUSALS.items()
        if code not in {error.code for error in error_classes()}
    ]
    code, hint = responses.OTHER_REFUSAL
    refusals.append((f"`{code}`", "any other", hint))
    return page(
        "Errors",
        opening,
        table(header, rows),
        "## Codes without a class",
        table(("code", "meaning"), others),
        "Over HTTP a request may also be refused before any of this package's code is asked:",
        table(("code", "HTTP", "way out"), refusals),
        f"The reference's code `{errors.EVENT_EMIT_RACE}` is kept as a constant and never raised.",
    )


# The life of a run…

PHASES: Final = {
    "queued": "recorded for a worker, not begun (or asked for again)",
    "sleeping": "asleep until `wake_at`",
    "waiting": "asleep until an event comes, or until `wake_at`",
    "parked": "given up with a reason; only a retry goes on",
    "completed": "over, with a result",
    "stopped": "over, ended by a stop; what there was of it is kept",
    "failed": "over, the task raised; a retry goes on",
}
ANSWERS: Final = {"remove": "the run, or what was asked of it, is deleted"}
"""What the code does not explain beside the word itself."""


def comments_of(literal: str, module: ModuleType) -> dict[str, str]:
    """Return the comment that stands behind each word of a `Literal` of a module."""
    _, _, rest = inspect.getsource(module).partition(f"\n{literal} = Literal[\n")
    words, _, _ = rest.partition("\n]")
    return dict(re.findall(r'^    "(\w+)",(?:  # (.+))?$', words, re.MULTILINE))


def transitions_page() -> str:
    life = transitions.LIFE
    phases = {**comments_of("Phase", transitions), **PHASES}
    answers = {**comments_of("Verdict", transitions), **ANSWERS}
    commands = list(life["held"])
    cells = [(f"`{phase}`", *(row[command] for command in commands)) for phase, row in life.items()]
    opening = """
One table decides what each command does to a run in each phase: `LIFE` in
`perdure.core.transitions`. The memory store applies it, the SQL store repeats it in statements, and
the cases of `perdure.testing` ask every store for every cell. `RunRecord.state` is the phase, where
`held`, `lapsed` and `released` are all `running`. A claim takes a `held` run for `lapsed` if its
store [knows its holder to be dead](../guides/restarts.md).
"""
    closing = """
A worker claims by itself what is `queued`, `lapsed` or `released`, and what is `sleeping` or
`waiting` once its `wake_at` has come; never what is `failed` or `parked`. A `write` may end in one
of `Suspend` (to `sleeping`, `waiting` or `parked`), `Release` (to `released`) and `EndRun` (to
`completed`, `stopped` or `failed`). Another manifest hash is refused with `RunInputMismatchError`
in every phase, before anything else.

![The phases of a run, and what leads from one to the next](../images/life-of-a-run.svg)
"""
    return page(
        "The life of a run",
        opening,
        table(("phase", *(f"`{command}`" for command in commands)), cells),
        "## Phases",
        table(("phase", "meaning"), [(f"`{phase}`", phases[phase]) for phase in life]),
        "## Answers",
        table(("answer", "meaning"), [(f"`{answer}`", text) for answer, text in answers.items()]),
        "## Ways through",
        closing,
    )
