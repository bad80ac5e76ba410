"""The value policy: which values may be stored, and how JSON text is written and read.

Plain JSON only, so that a value read back equals the value written: None, bool, int, float, str,
list (a plain tuple counts as one and comes back as a list) and dict with str keys. Subclasses
are refused, enums and named tuples among them: they would come back as something else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from perdure.core.limits import (
    BODY_BYTES_MAX,
    DEPTH_MAX,
    INTEGER_DIGITS_MAX,
    VALUE_BYTES_MAX,
)
from perdure.core.records import JsonValue
from perdure.errors import NotSerializableError, StoreCorruptError, UsageError, ValueTooLargeError

_PATH_CHARACTERS_MAX: Final = 200
_ATOMS: Final = frozenset({str, bool, int, type(None)})
_INFINITY: Final = math.inf
_SPACE: Final = " \t\n\r"
_INTEGER_END: Final[int] = 10**INTEGER_DIGITS_MAX
_TOGETHER_BYTES_MAX: Final = 1024 * 1024
_LONG_NUMBER: Final = re.compile(rf"\d{{{INTEGER_DIGITS_MAX + 1}}}")

kind_of: Callable[[object], type[object]] = type
"""`type` of one argument, with a type of its own: checkers take the type of an Any for unknown."""


def _encoder() -> Callable[[object], str]:
    """Return what writes compact ASCII JSON.

    `JSONEncoder.encode` makes the encoder in C anew for every value, which takes longer than a
    small value does; here it is made once.
    """
    # The depth limit finds cycles, so the encoder need not look for them a second time.
    plain = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)
    make: Callable[..., Callable[[object, int], Sequence[str]]] | None
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return plain.encode
    quote = json.encoder.encode_basestring_ascii
    pieces = make(None, plain.default, quote, None, ":", ",", False, False, False)
    return lambda value: "".join(pieces(value, 0))


dumps: Final = _encoder()
"""Writes plain JSON compactly, in ASCII, without a check of what it is given."""


class Refusal(Exception):
    """Why a value is refused; the path of the culprit grows while the walk unwinds."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str | int] = []

    def message(self, name: str) -> str:
        """Return the reason behind the path, such as `value.items[3].when is a datetime`."""
        return f"{format_path(name, self.path[::-1])} {self.reason}"


def format_path(name: str, path: Sequence[str | int]) -> str:
    """Return `path` below `name` as one would write it: `value.items[3]["due date"]`."""
    pieces = [name]
    for part in path:
        if isinstance(part, int):
            pieces.append(f"[{part}]")
        elif part.isascii() and part.isidentifier():
            pieces.append(f".{part}")
        else:
            pieces.append(f"[{json.dumps(part)}]")
    text = "".join(pieces)
    return text if len(text) <= _PATH_CHARACTERS_MAX else f"{text[:_PATH_CHARACTERS_MAX]}…"


def refuse_type(value: object) -> NoReturn:
    """Raise the Refusal of a value that is of no JSON type."""
    kind = type(value)
    known = kind.__module__ in ("builtins", "__main__")
    name = kind.__qualname__ if known else f"{kind.__module__}.{kind.__qualname__}"
    raise Refusal(f"is of type {name}, not plain JSON")


def check_integer(value: int) -> None:
    """Raise Refusal if `value` has more digits than Python reads back."""
    if not -_INTEGER_END < value < _INTEGER_END:
        raise Refusal(f"is an integer of more than {INTEGER_DIGITS_MAX} digits")


def check_float(value: float) -> None:
    """Raise Refusal if `value` is NaN or an infinity."""
    if not -_INFINITY < value < _INFINITY:
        raise Refusal(f"is {value!r}, which JSON does not have")


def check_key(key: object) -> None:
    """Raise Refusal if `key` is not a str."""
    if type(key) is not str:
        raise Refusal(f"has the key {key!r:.60} of type {type(key).__qualname__}, not str")


def refuse_depth() -> NoReturn:
    """Raise the Refusal of a value that goes deeper than any value may."""
    raise Refusal(f"is nested deeper than {DEPTH_MAX} levels, or contains itself")


def encode_value(
    value: JsonValue,
    *,
    name: str = "value",
    bytes_max: int = VALUE_BYTES_MAX,
    depth_max: int = DEPTH_MAX,
) -> str:
    """Return `value` as compact ASCII JSON with its keys in the order given.

    `name` is what the messages call the value. Raises NotSerializableError with the path of the
    culprit, and ValueTooLargeError if the text would have more than `bytes_max` bytes.
    """
    try:
        _check(value, depth_max, bytes_max)
        text = dumps(value)
        if "\\ud" in text:
            _look_closer(value, _check_merging_keys)
        if len(text) > INTEGER_DIGITS_MAX and _LONG_NUMBER.search(text):
            _look_closer(value, _check_number)
    except Refusal as refusal:
        raise NotSerializableError(refusal.message(name)) from None
    except _TooManyItems:
        size = f"more than {bytes_max:,}"
    except ValueError as error:
        raise _not_written(value, name, error) from error
    else:
        if len(text) <= bytes_max:
            return text
        size = f"{len(text):,}"
    raise ValueTooLargeError(f"{name} has {size} bytes of JSON; the limit is {bytes_max:,}")


def _not_written(value: JsonValue, name: str, error: ValueError) -> NotSerializableError:
    """Return why a value of plain JSON could not be written: one of its integers is too long."""
    try:
        _look_closer(value, _check_number)
    except Refusal as refusal:
        return NotSerializableError(refusal.message(name))
    # Only a lowered `sys.set_int_max_str_digits` leads here.
    return NotSerializableError(f"{name} cannot be written as JSON: {error}")


class _TooManyItems(Exception):
    """A value has more items than its text may have bytes."""


def _check(value: JsonValue, room: int, items_max: int) -> int:
    """Return how many items are in `value`; raise Refusal at the first that is not plain.

    Items are counted because a small value whose parts are shared can stand for a huge text.
    """
    kind = kind_of(value)
    if kind is dict:
        return _check_dict(value, room, items_max)
    if kind is list or kind is tuple:
        return _check_list(value, room, items_max)
    if kind is float:
        check_float(value)
    elif kind not in _ATOMS:
        refuse_type(value)
    return 0


def _check_dict(value: dict[str, JsonValue], room: int, items_max: int) -> int:
    if not room:
        refuse_depth()
    count = len(value)
    for key, item in value.items():
        if kind_of(key) is not str:
            check_key(key)
        kind = kind_of(item)
        if kind not in _ATOMS:
            try:
                walk = _check_dict if kind is dict else _check
                count += walk(item, room - 1, items_max)
            except Refusal as refusal:
                refusal.path.append(key)
                raise
            if count > items_max:
                raise _TooManyItems
    return count


def _check_list(value: Sequence[JsonValue], room: int, items_max: int) -> int:
    if not room:
        refuse_depth()
    count = len(value)
    for index, item in enumerate(value):
        kind = kind_of(item)
        if kind not in _ATOMS:
            try:
                walk = _check_dict if kind is dict else _check
                count += walk(item, room - 1, items_max)
            except Refusal as refusal:
                refusal.path.append(index)
                raise
            if count > items_max:
                raise _TooManyItems
    return count


def join_surrogates(text: str) -> str:
    """Return `text` with every two surrogates that form a pair as the one character they mean."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _check_merging_keys(value: JsonValue) -> None:
    """Raise Refusal where two keys differ in memory and are the same key once read back."""
    if kind_of(value) is dict and len({join_surrogates(key) for key in value}) < len(value):
        raise Refusal("has two keys that are the same text in JSON")


def _check_number(value: JsonValue) -> None:
    """Raise Refusal for an integer that has more digits than Python reads back."""
    if kind_of(value) is int:
        check_integer(value)


def _look_closer(value: JsonValue, check: Callable[[JsonValue], None]) -> None:
    """Have every part of a value of plain JSON checked for what is seldom wrong with it."""
    check(value)
    kind = kind_of(value)
    if kind is dict:
        parts = value.items()
    elif kind is list or kind is tuple:
        parts = enumerate(value)
    else:
        return
    for part, item in parts:
        try:
            _look_closer(item, check)
        except Refusal as refusal:
            refusal.path.append(part)
            raise


def decode_value(text: str) -> JsonValue:
    """Return the value of stored JSON text; StoreCorruptError if it is not JSON."""
    try:
        # `decode` looks for white space with patterns, which takes as long as a small value does.
        text = text.strip(_SPACE)
        value, end = _stored.raw_decode(text)
        if end != len(text):
            raise ValueError(f"extra data at character {end}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StoreCorruptError(f"stored JSON cannot be read: {error}") from error
    return value


def decode_values(texts: Sequence[str | None]) -> list[JsonValue]:
    """Return the value of each stored JSON text, None of one that is not there.

    Small values are read in one go, which takes half as long; what is wrong with one of them is
    told as `decode_value` does.
    """
    try:
        joined = ",".join(["null" if text is None else text for text in texts])
        if len(joined) <= _TOGETHER_BYTES_MAX:
            values: list[JsonValue]
            values, end = _stored.raw_decode(f"[{joined}]")
            if end == len(joined) + 2 and len(values) == len(texts):
                return values
    except (ValueError, TypeError, RecursionError):
        pass  # One of them is no JSON, and will be found.
    return [None if text is None else decode_value(text) for text in texts]


def parse_json(
    data: bytes | str, *, name: str = "body", bytes_max: int = BODY_BYTES_MAX
) -> JsonValue:
    """Return the value of JSON that somebody sent, read with suspicion.

    Raises UsageError that names the place: text that is not JSON or not UTF-8, a key that appears
    twice in one object, NaN, a number beyond a double's range, an integer of more than
    INTEGER_DIGITS_MAX digits, more than DEPTH_MAX levels. Raises ValueTooLargeError for more than
    `bytes_max` bytes (characters, where `data` is a str).
    """
    if len(data) > bytes_max:
        raise ValueTooLargeError(f"{name} has {len(data):,} bytes; the limit is {bytes_max:,}")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = _sent.decode(text)
        _check(value, DEPTH_MAX, bytes_max)
    except Refusal as refusal:
        raise UsageError(refusal.message(name)) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise UsageError(f"{name} is not JSON at {place}: {error.msg}") from error
    except RecursionError:
        raise UsageError(f"{name} is nested deeper than {DEPTH_MAX} levels") from None
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _sent_constant(constant: str) -> NoReturn:
    raise Refusal(f"holds {constant}, which JSON does not have")


def _sent_float(text: str) -> float:
    value = float(text)
    if not -_INFINITY < value < _INFINITY:
        raise Refusal(f"holds the number {text:.40}, which is out of range")
    return value


def _sent_integer(text: str) -> int:
    if len(text.lstrip("-")) > INTEGER_DIGITS_MAX:
        raise Refusal(f"holds an integer of more than {INTEGER_DIGITS_MAX} digits")
    return int(text)


def _sent_object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Refusal(f"has the key {json.dumps(key):.60} twice in one object")
            seen.add(key)
    return value


_stored = json.JSONDecoder(parse_constant=_refuse_constant)
_sent = json.JSONDecoder(
    parse_constant=_sent_constant,
    parse_float=_sent_float,
    parse_int=_sent_integer,
    object_pairs_hook=_sent_object,
)
