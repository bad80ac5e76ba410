"""JSON schemas of tools: derived from the hints of a function, and checked against arguments."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    TypeGuard,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from perdure.core.jsonvalue import encode_value
from perdure.core.records import JsonValue
from perdure.errors import NotSerializableError, UsageError

Schema = Mapping[str, JsonValue]

PROBLEMS_MAX: Final = 8
"""So many problems of one call are told; more would not help a model."""

_SIMPLE: Final[Mapping[Any, str]] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}
_JSON_TYPES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: _is_number(value) and value == int(value),
    "number": lambda value: _is_number(value),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_SIZES: Final = {
    "minLength": ("string", "is shorter than {0} characters", False),
    "maxLength": ("string", "is longer than {0} characters", True),
    "minItems": ("array", "has fewer than {0} items", False),
    "maxItems": ("array", "has more than {0} items", True),
    "minimum": ("number", "is less than {0}", False),
    "maximum": ("number", "is more than {0}", True),
}


_KEYWORDS: Final[Mapping[str, tuple[Any, str]]] = {
    "properties": (dict, "an object of schemas"),
    "anyOf": ((list, tuple), "a list of schemas"),
    "enum": ((list, tuple), "a list"),
    **dict.fromkeys(_SIZES, ((int, float), "a number")),
}
"""The type of each keyword that is checked against."""


class Signature:
    """The parameters of a tool's function that a model fills in, with their types.

    `injected` names the parameter of type `injected_type`, which the loop fills in itself.
    Raises UsageError for what no simple schema can describe.
    """

    def __init__(self, function: Callable[..., Any], *, injected_type: type) -> None:
        self.hints: dict[str, Any] = {}
        self.injected: str | None = None
        self._defaults: dict[str, Any] = {}
        self._takes_any = False
        self._name = getattr(function, "__name__", type(function).__name__)
        hints = self._hints_of(function)
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                self._takes_any = True
                continue
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise UsageError(
                    f"the parameter {name!r} of tool {self._name!r} cannot be given by its name"
                )
            if hints.get(name) is injected_type:
                self.injected = name
                continue
            self.hints[name] = hints.get(name, Any)
            if parameter.default is not parameter.empty:
                self._defaults[name] = parameter.default

    def schema(self) -> dict[str, JsonValue]:
        """Return the schema of the arguments, an object."""
        if self._takes_any:
            raise UsageError(
                f"the tool {self._name!r} takes any arguments: give it its `parameters` as a JSON "
                "schema"
            )
        properties: dict[str, JsonValue] = {}
        for name, hint in self.hints.items():
            try:
                properties[name] = _schema_of(hint)
            except UsageError as error:
                raise UsageError(
                    f"the parameter {name!r} of tool {self._name!r} {error}: give the tool its "
                    "`parameters` as a JSON schema"
                ) from error
            if name in self._defaults and _is_json(self._defaults[name]):
                properties[name]["default"] = self._defaults[name]
        required = [name for name in self.hints if name not in self._defaults]
        return _object_of(properties, required)

    def read(self, arguments: Mapping[str, JsonValue]) -> dict[str, Any]:
        """Return valid arguments as the function takes them, dataclasses made of their fields."""
        return {name: _read(self.hints.get(name, Any), value) for name, value in arguments.items()}

    def _hints_of(self, function: Callable[..., Any]) -> dict[str, Any]:
        hinted = function if inspect.isroutine(function) else type(function).__call__
        try:
            return get_type_hints(hinted, include_extras=True)
        except (NameError, TypeError) as error:
            raise UsageError(f"the hints of tool {self._name!r} cannot be read: {error}") from error


def check_schema(schema: object, *, path: str = "parameters") -> None:
    """Raise UsageError, which names the place, for a schema whose keywords have wrong types."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise UsageError(f"{path} must be a JSON schema, not {schema!r:.60}")
    every = cast("dict[str, object]", schema)
    given = {word: value for word, value in every.items() if value is not None}
    for word, (kind, wanted) in _KEYWORDS.items():
        if word in given and not isinstance(given[word], kind):
            raise UsageError(f"{path}.{word} must be {wanted}, not {given[word]!r:.60}")
    kinds = given.get("type", [])
    if not isinstance(kinds, str) and not _are_texts(kinds):
        raise UsageError(f"{path}.type must be a text or a list of texts, not {kinds!r:.60}")
    if not _are_texts(given.get("required", [])):
        raise UsageError(f"{path}.required must be a list of texts")
    if "anyOf" in given and not given["anyOf"]:
        raise UsageError(f"{path}.anyOf must not be empty")
    for place, each in _below(given):
        check_schema(each, path=f"{path}.{place}")


def problems_of(value: JsonValue, schema: Schema, *, path: str = "arguments") -> list[str]:
    """Return what does not fit, each as a sentence that names its place; nothing if all does.

    Checks types, enumerations, sizes, properties, items and `anyOf`; other keywords of JSON
    Schema are the model's business.
    """
    found: list[str] = []
    for problem in _problems(value, schema, path):
        found.append(problem)
        if len(found) == PROBLEMS_MAX:
            break
    return found


def _below(schema: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the schemas within a schema that are checked against, each behind its place."""
    for name, each in cast("dict[str, object]", schema.get("properties", {})).items():
        yield f"properties.{name}", each
    for place, each in enumerate(cast("list[object]", schema.get("anyOf", []))):
        yield f"anyOf[{place}]", each
    if isinstance(schema.get("items"), dict):
        yield "items", schema["items"]
    if "additionalProperties" in schema:
        yield "additionalProperties", schema["additionalProperties"]


def _problems(value: JsonValue, schema: Schema | bool, path: str) -> Iterator[str]:
    if isinstance(schema, bool):
        if not schema:
            yield f"{path} must not be there"
        return
    choices: list[Schema] | None = schema.get("anyOf")
    if choices is not None:
        every = [list(_problems(value, choice, path)) for choice in choices]
        if all(every):
            yield from min(every, key=len)
        return
    named: str | list[str] = schema.get("type", [])
    kinds = [named] if isinstance(named, str) else named
    if kinds and not any(_JSON_TYPES.get(kind, _anything)(value) for kind in kinds):
        yield f"{path} must be of type {' or '.join(kinds)}, not {_shown(value)}"
        return
    for word, allowed in (("enum", schema.get("enum")), ("const", [schema.get("const")])):
        if word in schema and not any(_is_same(value, each) for each in allowed or []):
            yield f"{path} must be one of {_shown(allowed)}, not {_shown(value)}"
            return
    yield from _problems_of_size(value, schema, path)
    if _is_object(value):
        yield from _problems_of_object(value, schema, path)
    elif _is_list(value) and isinstance(schema.get("items"), dict):
        for place, item in enumerate(value):
            yield from _problems(item, schema["items"], f"{path}[{place}]")


def _problems_of_object(value: dict[str, JsonValue], schema: Schema, path: str) -> Iterator[str]:
    properties: dict[str, Schema] = schema.get("properties") or {}
    for name in schema.get("required") or ():
        if name not in value:
            yield f"{path}.{name} is missing"
    others = schema.get("additionalProperties", True)
    for name, each in value.items():
        if name in properties:
            yield from _problems(each, properties[name], f"{path}.{name}")
        elif others is False:
            known = ", ".join(properties) or "none"
            yield f"{path} has no {name!r:.60}; its properties are: {known}"
        elif _is_object(others):
            yield from _problems(each, others, f"{path}.{name}")


def _problems_of_size(value: JsonValue, schema: Schema, path: str) -> Iterator[str]:
    for word, (kind, told, is_most) in _SIZES.items():
        limit = schema.get(word)
        if limit is None or not _JSON_TYPES[kind](value):
            continue
        size = value if kind == "number" else len(value)
        if (size > limit) if is_most else (size < limit):
            yield f"{path} {told.format(limit)}"


# Schemas of hints.


def _schema_of(hint: Any) -> dict[str, JsonValue]:
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if hint is Any or hint is object:
        return {}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        described = next((note for note in arguments[1:] if isinstance(note, str)), None)
        schema = _schema_of(arguments[0])
        return schema if described is None else {**schema, "description": described}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema_of(each) for each in arguments]}
    if hint is list or origin is list:
        return {"type": "array", "items": _schema_of(arguments[0]) if arguments else {}}
    if hint is dict or (origin is dict and arguments[0] is str):
        others = _schema_of(arguments[1]) if arguments else True
        return {"type": "object", "additionalProperties": others}
    if dataclasses.is_dataclass(hint):
        return _schema_of_dataclass(cast("type[Any]", hint))
    raise UsageError(f"is of type {getattr(hint, '__name__', hint)!s:.80}")


def _schema_of_dataclass(kind: type[Any]) -> dict[str, JsonValue]:
    hints = get_type_hints(kind, include_extras=True)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    missing = dataclasses.MISSING
    required = [
        field.name
        for field in fields
        if field.default is missing and field.default_factory is missing
    ]
    return _object_of({field.name: _schema_of(hints[field.name]) for field in fields}, required)


def _object_of(properties: dict[str, JsonValue], required: list[str]) -> dict[str, JsonValue]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _read(hint: Any, value: object) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _read(arguments[0], value)
    if hint is int and isinstance(value, float):
        return int(value)
    if hint is float and isinstance(value, int):
        return float(value)
    if origin in (Union, types.UnionType):
        fitting = (each for each in arguments if _fits(value, each))
        return _read(next(fitting, Any), value)
    if _is_list(value) and origin is list:
        return [_read(arguments[0], each) for each in value]
    if _is_object(value):
        if origin is dict:
            return {name: _read(arguments[1], each) for name, each in value.items()}
        if dataclasses.is_dataclass(hint):
            hints = get_type_hints(hint, include_extras=True)
            made = {name: _read(hints[name], each) for name, each in value.items()}
            return cast("type[Any]", hint)(**made)
    return value


def _fits(value: object, hint: Any) -> bool:
    try:
        return not problems_of(value, _schema_of(hint))
    except UsageError:
        return False


def _is_list(value: object) -> TypeGuard[list[JsonValue]]:
    return isinstance(value, list)


def _is_object(value: object) -> TypeGuard[dict[str, JsonValue]]:
    return isinstance(value, dict)


def _are_texts(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return False
    return all(isinstance(each, str) for each in cast("Sequence[object]", value))


def _is_json(value: object) -> bool:
    try:
        encode_value(value)
    except NotSerializableError:
        return False
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_same(value: JsonValue, allowed: JsonValue) -> bool:
    """Compare as JSON does, where true is not 1."""
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


def _anything(value: object) -> bool:
    """Let pass what a schema calls by a type that JSON does not have."""
    return True


def _shown(value: JsonValue) -> str:
    text = encode_value(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
