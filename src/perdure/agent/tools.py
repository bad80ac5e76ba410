"""Tools that a model may call: what they are, what may happen twice, and how one call is made."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, cast, get_args

from perdure.agent.adapter import answer_of
from perdure.agent.tool_schema import Schema, Signature, check_schema, problems_of
from perdure.core.jsonvalue import encode_value
from perdure.core.lengths import check_length
from perdure.core.limits import FRAME_BYTES_MAX
from perdure.core.records import Effect, JsonValue
from perdure.core.wording import error_text
from perdure.errors import NotSerializableError, ToolError, UsageError

logger = logging.getLogger("perdure.agent")

RESULT_BYTES_MAX: Final = 64 * 1024
"""A result with more bytes of JSON is no use to a model, unless a tool says otherwise."""
RESULT_BYTES_LIMIT: Final = FRAME_BYTES_MAX // 2
"""What a tool may say at the most: a result has to fit into a frame."""
CUT_OFF: Final = " … [cut off: the result was too large]"

Unfinished = Literal["fail", "tell"]
Oversized = Literal["error", "truncate"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_UNKNOWN_EFFECT: Final = "it is not known whether it took effect, so do not just call it again"


class ToolCall(NamedTuple):
    """The call that a tool answers; a parameter of this type is filled in by the loop.

    `idempotency_key` is the same in every attempt at this call, and of no other call: hand it to
    the outside world. `tries` counts the executions of this call, this one included. `id` is the
    model's name for the call.
    """

    id: str
    name: str
    idempotency_key: str
    tries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutcome:
    """What a call came to: a value, or an error `{code, message}`."""

    value: JsonValue = None
    error: Mapping[str, str] | None = None

    @classmethod
    def failed(cls, code: str, message: str) -> ToolOutcome:
        """Return the outcome of a call that went wrong so."""
        return cls(error={"code": code, "message": message})

    def told(self, note: str | None = None) -> str:
        """Return what the model is told, `note` included."""
        if self.error is not None:
            return _dumps({"error": dict(self.error)})
        if note is not None:
            return _dumps({"result": self.value, "note": note})
        return self.value if isinstance(self.value, str) else _dumps(self.value)


@dataclass(frozen=True, slots=True)
class Tool:
    """A plain or async function that a model may call by name.

    `name`, `description` and `parameters` (a JSON schema of an object) are those of the function:
    its name, the first paragraph of its docstring, its type hints. Hints may be str, int, float,
    bool, None, list, dict, Literal, unions, dataclasses, and Annotated with a description; a
    parameter of type ToolCall gets the call. A plain function runs in a thread; the function gets
    valid arguments only, and returns plain JSON.

    `effect` says what a crash between the effect and its record may do. "pure" and "idempotent":
    the call is made again, under the same key. "at_most_once": it is not, and `on_unfinished`
    decides: "fail" ends the run (a turn, by its `on_interrupted`), and a retry of that makes the
    call again; "tell" goes on, and tells the model that nobody knows.

    `needs_approval` (or what it, plain or async, returns for the arguments, the same in every
    attempt) has a human decide first, for at most `approval_timeout_ms`; if it raises, one does.
    `timeout_ms` limits one execution; a plain function is left behind.
    `may_repeat`: the same call again and again is progress, as of a tool that looks whether
    something is done. `shows_errors`: the model is told the text of any exception, not only of
    ToolError. A result of more than `result_bytes_max` bytes of JSON is an error, or is cut off
    with `oversized="truncate"`.

    Raises UsageError for what cannot be used.
    """

    function: Callable[..., Any]
    effect: Effect = field(default="at_most_once", kw_only=True)
    name: str = field(default="", kw_only=True)
    description: str = field(default="", kw_only=True)
    parameters: Schema | None = field(default=None, kw_only=True)
    needs_approval: bool | Callable[[dict[str, JsonValue]], bool | Awaitable[bool]] = field(
        default=False, kw_only=True
    )
    approval_timeout_ms: int | None = field(default=None, kw_only=True)
    timeout_ms: int | None = field(default=None, kw_only=True)
    on_unfinished: Unfinished = field(default="fail", kw_only=True)
    may_repeat: bool = field(default=False, kw_only=True)
    shows_errors: bool = field(default=False, kw_only=True)
    result_bytes_max: int = field(default=RESULT_BYTES_MAX, kw_only=True)
    oversized: Oversized = field(default="error", kw_only=True)
    schema: Schema = field(init=False, repr=False)
    """The schema that arguments are checked against."""
    _signature: Signature = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise UsageError(f"a tool is a function, not {self.function!r:.60}")
        self._set("name", self.name or getattr(self.function, "__name__", ""))
        if _yields(self.function):
            raise UsageError(
                f"the tool {self.name!r} is a generator, whose values no model can be told: let it "
                "return a list"
            )
        self._set("description", self.description or _first_paragraph(self.function))
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"the name of a tool has 1 to 64 letters, digits, _ and -, not {self.name!r:.80}"
            )
        self._check_choices()
        self._set("_signature", Signature(self.function, injected_type=ToolCall))
        given = self.parameters
        if given is not None:
            self._check_schema(given)
        self._set("schema", dict(given) if given is not None else self._signature.schema())

    def definition(self) -> dict[str, JsonValue]:
        """Return the tool as a model is told of it (the shape of chat completions)."""
        function: dict[str, JsonValue] = {"name": self.name, "parameters": self.schema}
        if self.description:
            function["description"] = self.description
        return {"type": "function", "function": function}

    def problem_of(self, arguments: JsonValue) -> str | None:
        """Return why the tool cannot be called so, as the model is told it; None if it can."""
        if not isinstance(arguments, dict):
            kind = "malformed JSON" if isinstance(arguments, str) else "no JSON object"
            return f"the arguments are {kind}: {encode_value(arguments)[:200]}"
        problems = problems_of(cast("JsonValue", arguments), self.schema)
        return "; ".join(problems) or None

    async def asks_first(self, arguments: Mapping[str, JsonValue]) -> bool:
        """Return whether a human decides about a call with these arguments.

        One decides too if the function that is asked about it fails.
        """
        asked = self.needs_approval
        if isinstance(asked, bool):
            return asked
        try:
            return bool(await answer_of(asked, dict(arguments)))
        except Exception as error:
            logger.warning("needs_approval of the tool %r failed: %r", self.name, error)
            return True

    async def perform(
        self, arguments: Mapping[str, JsonValue], call: ToolCall, *, limit_ms: float | None = None
    ) -> ToolOutcome:
        """Call the function with valid arguments; whatever it raises becomes an outcome.

        `limit_ms` is a time limit from outside, beside the tool's own.
        """
        limits = [each for each in (self.timeout_ms, limit_ms) if each is not None]
        limit = asyncio.timeout(min(limits) / 1_000 if limits else None)
        try:
            async with limit:
                value = await self._called(arguments, call)
            return self._fitting(value)
        except ToolError as error:
            return ToolOutcome.failed("tool_failed", str(error))
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                return self._timed_out()
            return self._failed(error)

    async def _called(self, arguments: Mapping[str, JsonValue], call: ToolCall) -> JsonValue:
        given = self._signature.read(arguments)
        if self._signature.injected is not None:
            given[self._signature.injected] = call
        if inspect.iscoroutinefunction(self.function):
            return await self.function(**given)
        value = await asyncio.to_thread(self.function, **given)
        return await value if inspect.isawaitable(value) else value

    def _fitting(self, value: JsonValue) -> ToolOutcome:
        text = encode_value(value, name=f"the result of tool {self.name!r}")
        limit = self.result_bytes_max
        if len(text) <= limit:
            return ToolOutcome(value=value)
        if self.oversized == "error":
            return ToolOutcome.failed(
                "result_too_large",
                f"the result has {len(text)} bytes, and may have {limit}: ask for less",
            )
        kept = value if isinstance(value, str) else text
        room = limit - len(encode_value(CUT_OFF))
        while len(encode_value(kept)) > room:
            kept = kept[: len(kept) * room // (len(encode_value(kept)) + 1)]
        return ToolOutcome(value=kept + CUT_OFF)

    def _timed_out(self) -> ToolOutcome:
        told = f"the tool {self.name!r} took too long and was given up"
        if self.effect == "at_most_once":
            told = f"{told}; {_UNKNOWN_EFFECT}"
        return ToolOutcome.failed("tool_timeout", told)

    def _failed(self, error: Exception) -> ToolOutcome:
        """Return what may be told: what an exception says is for the log."""
        logger.warning("the tool %r failed: %r", self.name, error, exc_info=error)
        if isinstance(error, NotSerializableError) and not self.shows_errors:
            return ToolOutcome.failed("tool_failed", f"the tool {self.name!r} has no usable result")
        told = error_text(error)
        if not self.shows_errors:
            told = f"the tool {self.name!r} failed"
        return ToolOutcome.failed("tool_failed", told)

    def _check_schema(self, given: Schema) -> None:
        if not isinstance(cast("object", given), Mapping) or given.get("type") != "object":
            raise UsageError(f"the parameters of tool {self.name!r} must be of type object")
        try:
            check_schema(dict(given))
            encode_value(dict(given), name="parameters")
        except (UsageError, NotSerializableError) as error:
            raise UsageError(
                f"the tool {self.name!r} cannot be told to a model: {error}"
            ) from error

    def _check_choices(self) -> None:
        asked = cast("object", self.needs_approval)
        if not isinstance(asked, bool) and not callable(asked):
            raise UsageError(
                f"needs_approval of tool {self.name!r} must be True, False or a function of the "
                f"arguments, not {asked!r:.40}"
            )
        choices = (
            ("effect", get_args(Effect)),
            ("on_unfinished", get_args(Unfinished)),
            ("oversized", get_args(Oversized)),
        )
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} of tool {self.name!r} must be {' or '.join(allowed)}")
        for name in ("approval_timeout_ms", "timeout_ms"):
            length_ms = getattr(self, name)
            if length_ms is not None:
                check_length(length_ms, name=name, least=1)
        size = self.result_bytes_max
        if type(size) is not int or not 256 <= size <= RESULT_BYTES_LIMIT:
            raise UsageError(f"result_bytes_max must be an int from 256 to {RESULT_BYTES_LIMIT}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def unfinished_outcome(name: str) -> ToolOutcome:
    """Return what is told of a call that was cut off by a crash, and is not made again."""
    return ToolOutcome.failed(
        "interrupted", f"the call of {name!r} was interrupted; {_UNKNOWN_EFFECT}"
    )


def _yields(function: Callable[..., Any]) -> bool:
    return any(
        inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each)
        for each in (function, type(function).__call__)
    )


def _first_paragraph(function: Callable[..., Any]) -> str:
    text = inspect.getdoc(function) if inspect.isroutine(function) else None
    return " ".join((text or "").split("\n\n")[0].split())


def _dumps(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
