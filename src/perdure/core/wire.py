"""The wire form of records: plain JSON under camelCase names, and the way back.

It serves every record whose fields say all there is to say, frozen dataclasses and named tuples.
The keys of mappings belong to the user and stay as they are. An absent value (None) is left out,
save where the field says that it is written as null.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from perdure.core.records import JsonValue
from perdure.core.secret import REDACTED, Secret
from perdure.errors import UsageError

T = TypeVar("T")

WIRE: Final = "wire"
"""The key of a field's metadata that gives it another name than its own in camelCase."""
NULL: Final = "null"
"""The key of a field's metadata that, if true, writes an absent value as null."""


class Field:
    """One field of a record: its own name, its name on the wire, its type, whether it may lack.

    `null`: an absent value is written, as null.
    """

    __slots__ = ("kind", "name", "null", "optional", "wire")

    def __init__(
        self, name: str, wire: str, kind: Any, *, optional: bool, null: bool = False
    ) -> None:
        self.name = name
        self.wire = wire
        self.kind = kind
        self.optional = optional
        self.null = null


_known: Final[dict[type[Any], tuple[Field, ...]]] = {}


def camel(name: str) -> str:
    """Return `snake_case` as `snakeCase`."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def to_wire(value: object) -> JsonValue:
    """Return `value` with every record in it as a dict, and every Secret as `[redacted]`.

    What is no record, mapping or sequence is returned as it is.
    """
    if isinstance(value, Secret):
        return REDACTED
    if _is_record(type(value)):
        items = ((field, getattr(value, field.name)) for field in fields_of(type(value)))
        return {f.wire: to_wire(item) for f, item in items if item is not None or f.null}
    if isinstance(value, Mapping):
        entries = cast("Mapping[str, object]", value)
        return {key: to_wire(item) for key, item in entries.items()}
    if isinstance(value, list | tuple):
        return [to_wire(item) for item in cast("Sequence[object]", value)]
    return value


def from_wire(kind: type[T], value: JsonValue) -> T:
    """Return the record of type `kind` whose wire form is `value`; unknown keys are ignored.

    Raises UsageError that names the first place which does not fit.
    """
    return cast(T, _read(kind, value, kind.__name__))


def fields_of(kind: type[Any]) -> tuple[Field, ...]:
    """Return the fields of a record type, in the order of their definition."""
    known = _known.get(kind)
    if known is None:
        known = _known[kind] = tuple(_fields(kind, get_type_hints(kind)))
    return known


def _fields(kind: type[Any], hints: Mapping[str, Any]) -> Iterator[Field]:
    if dataclasses.is_dataclass(kind):
        missing = dataclasses.MISSING
        for field in dataclasses.fields(kind):
            wire = str(field.metadata.get(WIRE, camel(field.name)))
            optional = field.default is not missing or field.default_factory is not missing
            null = bool(field.metadata.get(NULL))
            yield Field(field.name, wire, hints[field.name], optional=optional, null=null)
    else:
        defaults: Mapping[str, object] = kind._field_defaults
        for name in cast("tuple[str, ...]", kind._fields):
            yield Field(name, camel(name), hints[name], optional=name in defaults)


def _is_record(kind: type[Any]) -> bool:
    return dataclasses.is_dataclass(kind) or (
        issubclass(kind, tuple) and hasattr(cast("Any", kind), "_field_defaults")
    )


def _read(kind: Any, value: JsonValue, place: str) -> object:
    """Return what `value` is as a `kind`: an annotation, resolved."""
    if kind is Any or kind is object or isinstance(kind, TypeVar):
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and _is_record(kind):
        return _read_record(kind, value, place)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _read_union(get_args(kind), value, place)
    if origin is Literal:
        if value not in get_args(kind):
            raise UsageError(f"{place} is {value!r:.60}, none of {get_args(kind)}")
        return value
    if isinstance(origin, type) and _is_record(origin):
        return _read_record(origin, value, place)
    if origin is not None:
        return _read_collection(origin, get_args(kind), value, place)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UsageError(f"{place} must be a {kind.__name__}, not {value!r:.60}")
    return value


def _read_record(kind: type[Any], value: JsonValue, place: str) -> object:
    members = _object(value, place)
    found: dict[str, object] = {}
    for field in fields_of(kind):
        member = members.get(field.wire)
        if member is not None:
            found[field.name] = _read(field.kind, member, f"{place}.{field.wire}")
        elif not field.optional:
            if not _takes_none(field.kind):
                raise UsageError(f"{place} has no {field.wire}")
            found[field.name] = None
    return kind(**found)


def _read_union(kinds: Sequence[Any], value: JsonValue, place: str) -> object:
    """Return `value` as the first of `kinds` that fits; a record is told by its `type`."""
    if value is None and type(None) in kinds:
        return None
    refusal: UsageError | None = None
    for kind in kinds:
        if kind is type(None) or kind is Secret:
            continue
        try:
            return _read(kind, value, place)
        except UsageError as error:
            refusal = refusal or error
    raise refusal or UsageError(f"{place} is {value!r:.60}, which it cannot be")


def _read_collection(origin: Any, kinds: Sequence[Any], value: object, place: str) -> object:
    if issubclass(origin, Mapping):
        members = _object(value, place).items()
        return {key: _read(kinds[1], item, f"{place}.{key}") for key, item in members}
    if not isinstance(value, list):
        raise UsageError(f"{place} must be a list, not {value!r:.60}")
    items = cast("list[object]", value)
    return tuple(_read(kinds[0], item, f"{place}[{at}]") for at, item in enumerate(items))


def _object(value: JsonValue, place: str) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise UsageError(f"{place} must be an object, not {value!r:.60}")
    return cast("dict[str, JsonValue]", value)


def _takes_none(kind: Any) -> bool:
    return kind is Any or isinstance(kind, TypeVar) or type(None) in get_args(kind)
