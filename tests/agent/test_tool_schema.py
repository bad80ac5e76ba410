"""Schemas of hints, and what of arguments does not fit them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from perdure.agent.tool_schema import PROBLEMS_MAX, Signature, problems_of
from perdure.agent.tools import ToolCall
from perdure.core.records import JsonValue
from perdure.errors import UsageError


@dataclass
class Place:
    city: str
    near: list[str] = field(default_factory=list[str])


def properties_of(function: Any) -> dict[str, JsonValue]:
    properties: dict[str, JsonValue] = Signature(function, injected_type=ToolCall).schema()[
        "properties"
    ]
    return properties


def test_hints_make_a_schema() -> None:
    def tool(
        name: Annotated[str, "who it is"],
        age: int,
        height: float,
        tags: list[str],
        counts: dict[str, int],
        unit: Literal["c", "f"],
        place: Place,
        anything: Any,
    ) -> None: ...

    schema = Signature(tool, injected_type=ToolCall).schema()
    place = schema["properties"].pop("place")
    assert schema["properties"] == {
        "name": {"type": "string", "description": "who it is"},
        "age": {"type": "integer"},
        "height": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        "unit": {"enum": ["c", "f"]},
        "anything": {},
    }
    assert schema["required"][-2:] == ["place", "anything"]
    assert (place["required"], place["additionalProperties"]) == (["city"], False)


def test_what_has_a_default_is_not_required() -> None:
    def tool(note: str | None = None, loud: bool = False, place: Place | None = None) -> None: ...

    schema = Signature(tool, injected_type=ToolCall).schema()
    assert schema["required"] == []
    assert schema["properties"]["note"] == {
        "anyOf": [{"type": "string"}, {"type": "null"}],
        "default": None,
    }
    assert schema["properties"]["loud"] == {"type": "boolean", "default": False}


def test_the_call_is_no_argument() -> None:
    def tool(city: str, call: ToolCall) -> None: ...

    assert list(properties_of(tool)) == ["city"]


def test_hints_that_no_schema_describes_are_refused_by_name() -> None:
    def tool(when: complex) -> None: ...
    def positional(city: str, /) -> None: ...
    def rest(*cities: str) -> None: ...
    def anything(**arguments: Any) -> None: ...

    with pytest.raises(UsageError, match="'when' of tool 'tool' is of type complex"):
        properties_of(tool)
    for function in (positional, rest):
        with pytest.raises(UsageError, match="cannot be given by its name"):
            properties_of(function)
    with pytest.raises(UsageError, match="takes any arguments"):
        properties_of(anything)


def test_hints_that_cannot_be_resolved_are_refused() -> None:
    def tool(city: str) -> None: ...

    tool.__annotations__["city"] = "Nowhere"
    with pytest.raises(UsageError, match="hints of tool 'tool' cannot be read"):
        properties_of(tool)


@pytest.mark.parametrize(
    ("value", "schema", "problem"),
    [
        ("x", {"type": "integer"}, 'arguments must be of type integer, not "x"'),
        (True, {"type": "integer"}, "arguments must be of type integer, not true"),
        (1.5, {"type": "integer"}, "arguments must be of type integer, not 1.5"),
        (2.0, {"type": "integer"}, None),
        (1, {"type": "number"}, None),
        (None, {"type": ["string", "null"]}, None),
        (1, {"type": ["string", "null"]}, "arguments must be of type string or null, not 1"),
        ("b", {"enum": ["a"]}, 'arguments must be one of ["a"], not "b"'),
        (True, {"enum": [1]}, "arguments must be one of [1], not true"),
        (2, {"const": 1}, "arguments must be one of [1], not 2"),
        ({}, {"type": "object", "required": ["a"]}, "arguments.a is missing"),
        ({"b": 1}, {"additionalProperties": False}, "no 'b'; its properties are: none"),
        ({"b": 1}, {"additionalProperties": {"type": "string"}}, "arguments.b must be"),
        ({"a": {"b": [1]}}, {"properties": {"a": {"required": ["c"]}}}, "arguments.a.c is missing"),
        ([1, "x"], {"items": {"type": "integer"}}, 'arguments[1] must be of type integer, not "x"'),
        ("ab", {"minLength": 3}, "arguments is shorter than 3 characters"),
        ("ab", {"maxLength": 1}, "arguments is longer than 1 characters"),
        ([], {"minItems": 1}, "arguments has fewer than 1 items"),
        (11, {"maximum": 10}, "arguments is more than 10"),
        (9, {"minimum": 10}, "arguments is less than 10"),
        (1, {"anyOf": [{"type": "string"}, {"type": "integer"}]}, None),
        ([], {"anyOf": [{"type": "string"}]}, "arguments must be of type string, not []"),
        (1, {"type": "of another world"}, None),
    ],
)
def test_what_does_not_fit_is_named(
    value: JsonValue, schema: dict[str, JsonValue], problem: str | None
) -> None:
    problems = problems_of(value, schema)
    assert problems == [] if problem is None else problem in problems[0]


def test_not_more_problems_are_told_than_help() -> None:
    schema = {"items": {"type": "string"}}
    assert len(problems_of(list(range(100)), schema)) == PROBLEMS_MAX


def test_arguments_become_what_the_function_takes() -> None:
    def tool(
        place: Place,
        places: list[Place],
        named: dict[str, Place],
        count: int,
        ratio: float,
        either: Place | str | None = None,
    ) -> None: ...

    city = {"city": "Faro"}
    made = Signature(tool, injected_type=ToolCall).read(
        {
            "place": city,
            "places": [city],
            "named": {"a": city},
            "count": 2.0,
            "ratio": 1,
            "either": {"city": "Beja", "near": ["Evora"]},
        }
    )
    faro = Place("Faro")
    assert made == {
        "place": faro,
        "places": [faro],
        "named": {"a": faro},
        "count": 2,
        "ratio": 1.0,
        "either": Place("Beja", ["Evora"]),
    }
    assert (type(made["count"]), type(made["ratio"])) == (int, float)
