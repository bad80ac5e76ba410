"""The value policy: what is refused and where, and what comes back as it was."""

from __future__ import annotations

import enum
import json
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core import jsonvalue
from perdure.core.jsonvalue import (
    decode_value,
    decode_values,
    encode_value,
    join_surrogates,
    parse_json,
)
from perdure.core.limits import BODY_BYTES_MAX, DEPTH_MAX, INTEGER_DIGITS_MAX, VALUE_BYTES_MAX
from perdure.core.records import JsonValue
from perdure.errors import NotSerializableError, StoreCorruptError, UsageError, ValueTooLargeError

texts = st.text(st.characters(exclude_categories=())).map(join_surrogates)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20
)


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int
    y: int


class Half(float):
    pass


def nested(levels: int) -> JsonValue:
    value: JsonValue = 0
    for level in range(levels):
        value = [value] if level % 2 else {"d": value}
    return value


def exactly(value: JsonValue) -> str:
    """A text that tells 1 from 1.0 and from True, and 0.0 from -0.0."""
    return repr(value)


@given(json_values)
def test_a_value_is_read_back_as_it_was_written(value: JsonValue) -> None:
    assert exactly(decode_value(encode_value(value))) == exactly(value)


@given(json_values)
def test_text_is_compact_ascii_in_the_order_given(value: JsonValue) -> None:
    text = encode_value(value)
    assert text.isascii()
    assert text == json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize(
    "text",
    ["\0", "a\u2028b\u2029c", "\ud800", "\udfff\ud800", "\x7f\x85", "\r\n", "😀", '"\\/'],
)
def test_model_text_survives_and_never_breaks_a_line(text: str) -> None:
    stored = encode_value({text: text})
    assert len(stored.splitlines()) == 1
    assert decode_value(stored) == {text: text}


def test_a_tuple_comes_back_as_a_list() -> None:
    assert decode_value(encode_value({"pair": (1, (2, 3))})) == {"pair": [1, [2, 3]]}


REFUSED: list[tuple[JsonValue, str]] = [
    (math.nan, "nan"),
    (math.inf, "inf"),
    (-math.inf, "-inf"),
    (b"x", "bytes"),
    (bytearray(b"x"), "bytearray"),
    ({1, 2}, "set"),
    (frozenset(), "frozenset"),
    (datetime(2026, 1, 31, tzinfo=UTC), "datetime.datetime"),
    (Decimal("1.5"), "decimal.Decimal"),
    (1j, "complex"),
    (ValueError("x"), "ValueError"),
    (object(), "object"),
    (..., "ellipsis"),
    (int, "type"),
    (len, "builtin_function_or_method"),
    (lambda: 0, "function"),
    (range(3), "range"),
    (iter([]), "list_iterator"),
    (Colour.RED, "Colour"),
    (Level.LOW, "Level"),
    (Point(1, 2), "Point"),
    (Half(0.5), "Half"),
    (OrderedDict(a=1), "OrderedDict"),
    (MappingProxyType({}), "mappingproxy"),
    (10**INTEGER_DIGITS_MAX, "digits"),
    (-(10**INTEGER_DIGITS_MAX), "digits"),
]


@pytest.mark.parametrize(("culprit", "word"), REFUSED, ids=[word for _, word in REFUSED])
def test_what_is_not_plain_json_is_refused_with_its_path(culprit: JsonValue, word: str) -> None:
    with pytest.raises(NotSerializableError, match=rf"^value is .*{word}"):
        encode_value(culprit)
    value = {"id": 7, "items": [None, "x", 2.5, {"ok": True, "when": culprit}]}
    with pytest.raises(TypeError, match=rf"^value\.items\[3\]\.when is .*{word}"):
        encode_value(value)
    with pytest.raises(NotSerializableError, match=r"^result\[1\]\[0\] is "):
        encode_value(["x", (culprit,)], name="result")


@pytest.mark.parametrize("key", [1, None, True, 1.5, b"k", ("a", "b"), Colour.RED])
def test_keys_that_are_not_str_are_refused_with_the_path_of_their_dict(key: Any) -> None:
    with pytest.raises(NotSerializableError, match=r"^value\.rows\[0\] has the key .* not str"):
        encode_value({"rows": [{"a": 1, key: 2}]})


def test_a_path_quotes_keys_that_are_not_names() -> None:
    with pytest.raises(NotSerializableError) as caught:
        encode_value({"due date": {"é": {"": [b""]}}})
    assert str(caught.value) == (
        'value["due date"]["\\u00e9"][""][0] is of type bytes, not plain JSON'
    )


def test_a_long_path_is_cut() -> None:
    with pytest.raises(NotSerializableError) as caught:
        encode_value({"k" * 5_000: b""})
    assert len(str(caught.value)) < 300


def test_depth_up_to_the_limit_is_accepted_and_beyond_it_refused() -> None:
    value = nested(DEPTH_MAX)
    assert decode_value(encode_value(value)) == value
    with pytest.raises(NotSerializableError, match=f"deeper than {DEPTH_MAX}"):
        encode_value(nested(DEPTH_MAX + 1))


def test_a_value_that_contains_itself_is_refused() -> None:
    items: list[Any] = [1]
    items.append({"again": items})
    with pytest.raises(NotSerializableError, match=r"^value\[1\]\.again\[1\].* contains itself"):
        encode_value(items)


def test_the_limit_counts_bytes_of_the_text() -> None:
    assert len(encode_value("x" * 8, bytes_max=10)) == 10
    with pytest.raises(ValueTooLargeError, match=r"^reply has 11 bytes of JSON; the limit is 10"):
        encode_value("x" * 9, name="reply", bytes_max=10)
    with pytest.raises(ValueTooLargeError, match="has 14 bytes"):
        encode_value("éé", bytes_max=10)
    assert len(encode_value("x" * (VALUE_BYTES_MAX - 2))) == VALUE_BYTES_MAX
    with pytest.raises(ValueTooLargeError):
        encode_value("x" * (VALUE_BYTES_MAX - 1))


def test_shared_parts_that_stand_for_a_huge_text_are_refused_before_it_is_written() -> None:
    value: JsonValue = ["x"] * 10
    for _ in range(DEPTH_MAX - 2):
        value = [value] * 10
    with pytest.raises(ValueTooLargeError):
        encode_value(value)
    with pytest.raises(ValueTooLargeError):
        encode_value({"a": value})


def test_keys_that_would_become_one_are_refused_with_the_path_of_their_dict() -> None:
    with pytest.raises(NotSerializableError, match=r"^value\[1\]\.a has two keys"):
        encode_value([0, {"a": {"\ud83d\ude00": 1, "😀": 2}}])
    halves = dict.fromkeys(["\ud83d", "\ude00", "😀"])
    assert decode_value(encode_value(halves)) == halves


@pytest.fixture
def few_digits() -> Iterator[None]:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    yield
    sys.set_int_max_str_digits(before)


@pytest.mark.usefixtures("few_digits")
def test_an_integer_that_this_process_cannot_write_is_refused() -> None:
    with pytest.raises(NotSerializableError, match=r"^value cannot be written"):
        encode_value([10**1_000])


def test_a_small_value_is_walked_once_and_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(jsonvalue, name)

        def call(*arguments: Any) -> Any:
            calls.append(name)
            return real(*arguments)

        return call

    for name in ("_check", "_check_dict", "_check_list", "_check_merging_keys", "dumps"):
        monkeypatch.setattr(jsonvalue, name, counted(name))
    assert encode_value({"status": "ok", "done": True, "i": None}) == (
        '{"status":"ok","done":true,"i":null}'
    )
    assert calls == ["_check", "_check_dict", "dumps"]


@pytest.mark.parametrize(
    "text", ["", "{", "NaN", "[Infinity]", '{"a":-Infinity}', "01", "[1] 2", "'x'", "[" * 100_000]
)
def test_stored_text_that_is_not_json_is_a_corrupt_store(text: str) -> None:
    with pytest.raises(StoreCorruptError, match=r"^stored JSON cannot be read"):
        decode_value(text)


@given(st.lists(json_values))
def test_stored_texts_are_read_together_as_each_alone(values: list[JsonValue]) -> None:
    stored = [None if value is None else encode_value(value) for value in values]
    assert exactly(decode_values(stored)) == exactly(values)


@pytest.mark.parametrize("wrong", ["", "1,2", "1],[2", "[1", "NaN", 5, b"1"])
def test_one_that_is_not_json_among_stored_texts_is_a_corrupt_store(wrong: Any) -> None:
    with pytest.raises(StoreCorruptError):
        decode_values(['{"a":1}', wrong, "2"])


def test_a_stored_number_in_the_place_of_text_is_a_corrupt_store() -> None:
    wrong: Any = 5
    with pytest.raises(StoreCorruptError):
        decode_value(wrong)


@given(json_values)
def test_sent_json_is_read_as_it_was_meant(value: JsonValue) -> None:
    text = json.dumps(value)
    assert exactly(parse_json(text)) == exactly(value)
    assert exactly(parse_json(text.encode())) == exactly(value)


@given(st.binary() | st.text(alphabet='{}[]",:.0123456789eE+-\\utrfalsn é😀'))
def test_whatever_is_sent_is_read_or_refused_and_can_be_stored_when_read(
    data: bytes | str,
) -> None:
    try:
        value = parse_json(data)
    except UsageError:
        return
    assert exactly(decode_value(encode_value(value))) == exactly(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a":"\xff"}', "^body is not UTF-8 at byte 6"),
        (b"\xed\xa0\x80", "^body is not UTF-8 at byte 0"),
        ('{"a":1}'.encode("utf-16"), "^body is not UTF-8 at byte 0"),
        (b"", "^body is not JSON at line 1 column 1"),
        (b'{"a":1,\n "b" 2}', "^body is not JSON at line 2 column 6"),
        (b"\xef\xbb\xbf{}", "^body is not JSON at line 1 column 1"),
        (b'{"a":1}x', "^body is not JSON at line 1 column 8"),
        (b'["\n"]', "^body is not JSON at line 1 column 3"),
        (b'{"a":{"turnIndex":1,"b":2,"turnIndex":2}}', '^body has the key "turnIndex" twice'),
        (b'{"\\u0061":1,"a":2}', '^body has the key "a" twice'),
        (b'{"\\ud83d\\ude00":1,"\xf0\x9f\x98\x80":2}', "twice"),
        (b'{"a":NaN}', "^body holds NaN"),
        (b"[-Infinity]", "^body holds -Infinity"),
        (b"[1e400]", "^body holds the number 1e400, which is out of range"),
        (b"[-1e309]", "out of range"),
        (b"1" * (INTEGER_DIGITS_MAX + 1), "^body holds an integer of more than"),
        (b"[-" + b"1" * 100_000 + b"]", "^body holds an integer of more than"),
        (b"[" * 65 + b"]" * 65, r"^body\[0\]\[0\].* is nested deeper than 64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, r"^body\.a\.a.* is nested deeper than 64"),
        (b"[" * 500_000 + b"]" * 500_000, "^body is nested deeper than 64"),
        (b"[" * BODY_BYTES_MAX, "^body is nested deeper than 64"),
        (b'{"a":' * 200_000, "^body is nested deeper than 64"),
    ],
    ids=range(22),
)
def test_hostile_json_is_refused_and_the_place_named(data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_json(data)


def test_the_edge_accepts_what_is_unusual_and_harmless() -> None:
    assert parse_json(b"[" * 64 + b"]" * 64)
    assert parse_json(b' {"n": 18446744073709551616, "z": -0.0, "e": 1e-400} ') == {
        "n": 2**64,
        "z": 0.0,
        "e": 0.0,
    }
    assert parse_json(b"-" + b"9" * INTEGER_DIGITS_MAX) == -(10**INTEGER_DIGITS_MAX - 1)
    assert parse_json(b'"\\ud800\\u0000"') == "\ud800\0"


def test_a_body_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(ValueTooLargeError, match=r"^message has 4 bytes; the limit is 3"):
        parse_json(b"\xff" * 4, name="message", bytes_max=3)
    with pytest.raises(ValueTooLargeError, match=r"^body has 1,048,577 bytes"):
        parse_json(b" " * (BODY_BYTES_MAX + 1))
