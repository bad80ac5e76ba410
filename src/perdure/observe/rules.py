"""The rules that a table of `sanitize` is made of: what becomes of one field, said in one word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, cast

from perdure.core.records import JsonValue
from perdure.core.secret import REDACTED
from perdure.observe.telemetry import RuntimeTelemetryOptions

Record = Mapping[str, JsonValue]


class _Absent:
    """What a field is that is not there; None is a value."""


ABSENT: Final = _Absent()
Apply = Callable[[JsonValue, RuntimeTelemetryOptions], JsonValue]


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of one field: `apply` gets its value, and may give ABSENT.

    `path` leads to the value from the record (None: the field of the rule's own name). `unless`
    is a field and a value of it with which the rule leaves its field out.
    """

    apply: Apply
    path: tuple[str, ...] | None = None
    unless: tuple[str, str] | None = None
    even_absent: bool = False


Part = Mapping[str, Rule]


def sanitize_part(part: Part, record: Record, options: RuntimeTelemetryOptions) -> JsonValue:
    """Return what `part` lets through of `record`: the fields it names, and no other."""
    kept: dict[str, JsonValue] = {}
    for name, rule in part.items():
        if rule.unless is not None and record.get(rule.unless[0]) == rule.unless[1]:
            continue
        value = _value_at(record, rule.path or (name,))
        if value is ABSENT and not rule.even_absent:
            continue
        result = rule.apply(value, options)
        if result is not ABSENT:
            kept[name] = result
    return kept


def _value_at(record: Record, path: tuple[str, ...]) -> JsonValue:
    value: JsonValue = record
    for name in path:
        if not isinstance(value, Mapping):
            return ABSENT
        value = cast("Record", value).get(name, ABSENT)
    return ABSENT if value is None else value


def is_on(options: RuntimeTelemetryOptions, *switches: str) -> bool:
    """Return whether one of the named switches is on."""
    return any(getattr(options, switch) for switch in switches)


def keep(*path: str) -> Rule:
    """The field leaves as it is."""
    return Rule(lambda value, options: value, path or None)


def only_with(
    *switches: str, path: tuple[str, ...] = (), unless: tuple[str, str] | None = None
) -> Rule:
    """The field leaves if one of the switches is on; else it is not there."""
    return Rule(
        lambda value, options: value if is_on(options, *switches) else ABSENT,
        path or None,
        unless,
    )


def redacted_without(switch: str) -> Rule:
    """The field leaves if the switch is on; else it is seen that there was one, not which."""
    return Rule(lambda value, options: value if is_on(options, switch) else REDACTED)


def text(*switches: str, path: tuple[str, ...] = ()) -> Rule:
    """A free text: redacted without one of the switches (`include_text`), cut with it."""

    def apply(value: JsonValue, options: RuntimeTelemetryOptions) -> JsonValue:
        if not is_on(options, *(switches or ("include_text",))):
            return REDACTED
        return cut(value, options)

    return Rule(apply, path or None)


def text_with(*switches: str) -> Rule:
    """A free text that leaves, cut, if one of the switches is on; else it is not there."""
    return Rule(lambda value, options: cut(value, options) if is_on(options, *switches) else ABSENT)


def cut(value: JsonValue, options: RuntimeTelemetryOptions) -> JsonValue:
    """Return a text no longer than the options allow; anything else as it is."""
    most = options.text_characters_max
    if isinstance(value, str) and most is not None and len(value) > most:
        return f"{value[:most]}…"
    return value


def part(rules: Part, *path: str) -> Rule:
    """The field is a record of which `rules` says what leaves."""

    def apply(value: JsonValue, options: RuntimeTelemetryOptions) -> JsonValue:
        if not isinstance(value, Mapping):
            return ABSENT
        return sanitize_part(rules, cast("Record", value), options)

    return Rule(apply, path or None)


def each(rules: Part, *path: str) -> Rule:
    """The field is a list of records of which `rules` says what leaves."""

    def apply(value: JsonValue, options: RuntimeTelemetryOptions) -> JsonValue:
        return [sanitize_part(rules, item, options) for item in _records(value)]

    return Rule(apply, path or None)


def count(*path: str) -> Rule:
    """The field is how many items are at `path`; 0 where there are none."""
    return Rule(lambda value, options: len(_items(value)), path, even_absent=True)


def ids(*path: str) -> Rule:
    """The field is the ids of the records at `path`."""
    return Rule(lambda value, options: [item.get("id") for item in _records(value)], path)


def is_there(*path: str) -> Rule:
    """The field is whether there is something at `path`."""
    return Rule(lambda value, options: value is not ABSENT, path, even_absent=True)


def values_with(switch: str) -> Rule:
    """The field is a mapping whose keys leave, and whose values do if the switch is on."""

    def apply(value: JsonValue, options: RuntimeTelemetryOptions) -> JsonValue:
        if not isinstance(value, Mapping):
            return ABSENT
        entries = cast("Record", value).items()
        return {key: item if is_on(options, switch) else REDACTED for key, item in entries}

    return Rule(apply)


def _items(value: object) -> list[JsonValue]:
    items: list[JsonValue] = []
    if isinstance(value, list):
        items.extend(cast("list[object]", value))
    return items


def _records(value: object) -> list[Record]:
    return [cast("Record", item) for item in _items(value) if isinstance(item, Mapping)]
