"""Tools: how they are declared, and how one call of a function is made."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from perdure.agent.tools import CUT_OFF, RESULT_BYTES_LIMIT, Tool, ToolCall, ToolOutcome
from perdure.core.jsonvalue import encode_value
from perdure.core.records import JsonValue
from perdure.errors import UsageError

CALL = ToolCall("c1", "tool", "key", 1)


def search(query: str, limit: int = 10) -> list[str]:
    """Search the archive.

    Only the first paragraph is told.
    """
    return [query] * limit


def test_a_tool_is_what_its_function_says() -> None:
    function = Tool(search).definition()["function"]
    assert (function["name"], function["description"]) == ("search", "Search the archive.")
    assert function["parameters"]["required"] == ["query"]


def test_a_tool_may_say_everything_itself() -> None:
    async def remote(**arguments: JsonValue) -> JsonValue:
        return arguments

    schema = {"type": "object", "properties": {"q": {"type": "string"}}}
    tool = Tool(remote, name="find", description="Find it.", parameters=schema)
    assert tool.definition() == {
        "type": "function",
        "function": {"name": "find", "description": "Find it.", "parameters": schema},
    }
    assert tool.problem_of({"q": 1}) is not None
    assert asyncio.run(tool.perform({"q": "x"}, CALL)) == ToolOutcome(value={"q": "x"})


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"name": "no spaces"}, "1 to 64 letters"),
        ({"effect": "sometimes"}, "effect of tool 'search' must be pure or"),
        ({"on_unfinished": "shrug"}, "on_unfinished"),
        ({"oversized": "drop"}, "oversized"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"approval_timeout_ms": -1}, "approval_timeout_ms"),
        ({"result_bytes_max": RESULT_BYTES_LIMIT + 1}, "result_bytes_max"),
        ({"parameters": {"type": "array"}}, "must be of type object"),
        ({"parameters": ["query"]}, "must be of type object"),
        ({"needs_approval": "yes"}, "needs_approval of tool 'search' must be True, False or"),
        ({"parameters": {"type": "object", "properties": []}}, "properties must be an object"),
        (
            {"parameters": {"type": "object", "properties": {"n": {"minimum": "3"}}}},
            "parameters.properties.n.minimum must be a number, not '3'",
        ),
        (
            {"parameters": {"type": "object", "properties": {"n": "integer"}}},
            "parameters.properties.n must be a JSON schema, not 'integer'",
        ),
        ({"parameters": {"type": "object", "required": "n"}}, "required must be a list of texts"),
        (
            {"parameters": {"type": "object", "properties": {"n": {"enum": {1}}}}},
            "parameters.properties.n.enum must be a list",
        ),
        (
            {"parameters": {"type": "object", "properties": {"n": {"default": float("nan")}}}},
            "parameters.properties.n.default is nan",
        ),
    ],
)
def test_a_tool_that_cannot_be_used_is_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        Tool(search, **options)


def test_what_is_no_function_is_no_tool() -> None:
    nothing: Any = "search"
    with pytest.raises(UsageError, match="a tool is a function"):
        Tool(nothing)


def numbers() -> Iterator[int]:
    yield 1


async def numbers_in_time() -> AsyncIterator[int]:
    yield 1


class Counter:
    def __call__(self) -> Iterator[int]:
        yield 1


@pytest.mark.parametrize("function", [numbers, numbers_in_time, partial(numbers), Counter()])
def test_a_generator_is_refused_where_the_tool_is_made(function: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="'numbers' is a generator"):
        Tool(function, name="numbers")


async def test_a_plain_function_does_not_hold_up_the_loop() -> None:
    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert await Tool(where).perform({}, CALL) == ToolOutcome(value=False)


async def test_an_object_with_a_call_is_a_tool_too() -> None:
    class Greeter:
        async def __call__(self, name: str, call: ToolCall) -> str:
            return f"{name} {call.idempotency_key}"

    tool = Tool(Greeter(), name="greet")
    assert await tool.perform({"name": "Ada"}, CALL) == ToolOutcome(value="Ada key")


async def test_a_tool_has_so_much_time() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    twice = await Tool(hang, timeout_ms=5).perform({}, CALL)
    again = await Tool(hang, timeout_ms=5, effect="pure").perform({}, CALL)
    assert twice.error is not None
    assert again.error is not None
    assert twice.error["code"] == again.error["code"] == "tool_timeout"
    assert "not known whether it took effect" in twice.error["message"]
    assert "not known" not in again.error["message"]


async def test_a_time_out_of_the_tools_own_is_its_failure() -> None:
    async def give_up() -> None:
        raise TimeoutError("the archive is slow")

    outcome = await Tool(give_up, timeout_ms=60_000, shows_errors=True).perform({}, CALL)
    assert outcome.error == {"code": "tool_failed", "message": "the archive is slow"}


async def test_a_result_that_is_no_json_is_an_error_without_its_inside() -> None:
    outcome = await Tool(lambda: {"when": object()}, name="when").perform({}, CALL)
    assert outcome.error == {
        "code": "tool_failed",
        "message": "the tool 'when' has no usable result",
    }


@pytest.mark.parametrize("value", ["é" * 5_000, ["word"] * 5_000])
async def test_a_result_that_is_too_large_is_an_error_or_cut_off(value: JsonValue) -> None:
    refused = await Tool(lambda: value, name="big", result_bytes_max=1_000).perform({}, CALL)
    assert refused.error is not None
    assert refused.error["code"] == "result_too_large"
    tool = Tool(lambda: value, name="big", result_bytes_max=1_000, oversized="truncate")
    cut = await tool.perform({}, CALL)
    assert isinstance(cut.value, str)
    assert cut.value.endswith(CUT_OFF)
    assert 700 < len(encode_value(cut.value)) <= 1_000


def test_an_outcome_is_told_as_text() -> None:
    assert ToolOutcome(value="as it is").told() == "as it is"
    assert ToolOutcome(value={"a": "é"}).told() == '{"a":"é"}'
    assert ToolOutcome(value=None).told() == "null"
    assert ToolOutcome(value="x").told("changed") == '{"result":"x","note":"changed"}'
    error = ToolOutcome.failed("denied", "no")
    assert error.told("changed") == '{"error":{"code":"denied","message":"no"}}'


def test_a_schema_may_be_a_truth_value_where_json_schema_lets_it() -> None:
    properties: JsonValue = {"any": True, "never": False}
    tool = Tool(search, parameters={"type": "object", "properties": properties})
    assert tool.problem_of({"any": {"x": 1}}) is None
    assert tool.problem_of({"never": 1}) == "arguments.never must not be there"


async def test_whether_a_human_decides_may_be_asked_of_an_async_function() -> None:
    async def is_large(arguments: dict[str, JsonValue]) -> bool:
        return bool(arguments["limit"] > 5)

    tool = Tool(search, needs_approval=is_large)
    assert await tool.asks_first({"limit": 6})
    assert not await tool.asks_first({"limit": 5})


async def test_a_human_decides_if_the_function_that_is_asked_about_it_fails() -> None:
    tool = Tool(search, needs_approval=lambda arguments: arguments["amount"] > 5)
    assert await tool.asks_first({"query": "x"})

    async def cancels_itself(arguments: dict[str, JsonValue]) -> bool:
        raise asyncio.CancelledError

    assert await Tool(search, needs_approval=cancels_itself).asks_first({"query": "x"})
