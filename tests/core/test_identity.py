"""Canonical JSON, hashes and ids against the vectors that both languages keep."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.identity import (
    canonical_hash,
    canonical_json,
    check_event_key,
    check_id,
    check_index,
    check_run_id,
    check_session_id,
    check_tenant,
    derive_worker_id,
    idempotency_key,
    logical_id,
    manifest_hash,
    step_id,
    stored_id,
    turn_run_id,
)
from perdure.core.jsonvalue import join_surrogates
from perdure.core.limits import (
    DEPTH_MAX,
    ID_BYTES_MAX,
    INTEGER_DIGITS_MAX,
    INTEGER_MAX,
    RUN_ID_BYTES_MAX,
)
from perdure.core.recordjson import manifest_from_json
from perdure.core.records import AgentTaskSpec, JsonValue, RunManifest
from perdure.errors import NotSerializableError, UsageError

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vectors.json").read_text(encoding="utf-8")
)


def vectors(kind: str) -> list[Any]:
    return [pytest.param(each, id=each["name"]) for each in VECTORS if each["kind"] == kind]


texts = st.text(st.characters(exclude_categories=())).map(join_surrogates)
keys = texts.filter(lambda key: key != "__proto__") | st.integers(0, 2**33).map(str)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner),
    max_leaves=20,
)


def backwards(value: JsonValue) -> JsonValue:
    """The same value with the keys of every dict inserted in the opposite order."""
    if isinstance(value, dict):
        return {key: backwards(item) for key, item in reversed(value.items())}
    return [backwards(item) for item in value] if isinstance(value, list) else value


def test_the_vectors_are_complete() -> None:
    kinds = [each["kind"] for each in VECTORS]
    assert (kinds.count("canonical"), kinds.count("manifest"), kinds.count("step_id")) == (
        29,
        12,
        3,
    )


@pytest.mark.parametrize("vector", vectors("canonical"))
def test_a_value_has_the_canonical_text_and_hash_of_its_vector(vector: dict[str, Any]) -> None:
    assert canonical_json(vector["value"]) == vector["canonical"]
    assert canonical_hash(vector["value"]) == vector["sha256"]


@pytest.mark.parametrize("vector", vectors("manifest"))
def test_a_manifest_has_the_hash_of_its_vector(vector: dict[str, Any]) -> None:
    assert canonical_hash(json.loads(vector["canonical"])) == vector["sha256"]
    assert manifest_hash(manifest_from_json(vector["manifest"])) == vector["sha256"]


@pytest.mark.parametrize(
    "vector", [each for each in vectors("manifest") if "chat" in each.values[0]]
)
def test_a_chat_turn_has_the_run_id_and_input_hash_of_its_vector(vector: dict[str, Any]) -> None:
    chat = vector["chat"]
    who = chat["identity"]
    assert turn_run_id(who["sessionId"], who["turnIndex"]) == chat["runId"]
    assert canonical_hash(vector["manifest"]["input"]) == chat["inputHash"]


@pytest.mark.parametrize("vector", vectors("step_id"))
def test_a_step_has_the_id_of_its_vector(vector: dict[str, Any]) -> None:
    value = vector["value"]
    assert step_id(value["runId"], value["stepIndex"], value["intent"]) == vector["sha256"]


def as_javascript_reads(text: str) -> JsonValue:
    """The value of JSON text to a reader to whom every number is a double."""
    return json.loads(
        text,
        parse_int=lambda digits: number if abs(number := int(digits)) < 2**53 else float(digits),
    )


@given(json_values)
def test_canonical_text_is_its_own_canonical_form(value: JsonValue) -> None:
    text = canonical_json(value)
    assert canonical_json(as_javascript_reads(text)) == text
    text.encode("utf-8")


@given(json_values)
def test_the_order_in_which_keys_were_inserted_does_not_matter(value: JsonValue) -> None:
    assert canonical_json(backwards(value)) == canonical_json(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_double_is_read_back_from_its_canonical_text(value: float) -> None:
    assert float(canonical_json(value)) == value


def test_a_tuple_is_hashed_as_a_list() -> None:
    assert canonical_json((1, ())) == "[1,[]]"


def test_two_surrogates_that_form_a_pair_are_one_character() -> None:
    assert canonical_json({"\ud83d\ude00": "a\ud83d\ude00\ud83d"}) == '{"😀":"a😀\\ud83d"}'


def test_an_integer_is_tagged_from_2_to_the_53_on() -> None:
    assert canonical_json([INTEGER_MAX, -INTEGER_MAX]) == f"[{INTEGER_MAX},-{INTEGER_MAX}]"
    assert canonical_json(INTEGER_MAX + 1) == '{"__bigint":"9007199254740992"}'
    assert canonical_json(-INTEGER_MAX - 1) == '{"__bigint":"-9007199254740992"}'
    assert canonical_json(float(INTEGER_MAX + 1)) == "9007199254740992"


@pytest.mark.parametrize(
    ("culprit", "reason"),
    [
        (math.nan, "is nan"),
        (-math.inf, "is -inf"),
        (b"x", "is of type bytes"),
        ({1}, "is of type set"),
        (datetime(2026, 1, 31, tzinfo=UTC), "is of type datetime.datetime"),
        (ValueError(), "is of type ValueError"),
        (AgentTaskSpec("t", "i"), "is of type perdure.core.records.AgentTaskSpec"),
        (len, "is of type builtin_function_or_method"),
        (10**INTEGER_DIGITS_MAX, f"is an integer of more than {INTEGER_DIGITS_MAX} digits"),
        ({1: 2}, "has the key 1 of type int, not str"),
        ({None: 2}, "has the key None of type NoneType, not str"),
        ({"a": 1, "__proto__": {}}, "has the key `__proto__`"),
        ({"\ud83d\ude00": 1, "😀": 2}, "has two keys that are the same text"),
    ],
    ids=range(13),
)
def test_what_has_no_canonical_form_is_refused_with_its_path(culprit: Any, reason: str) -> None:
    value = {"é": 1, "items": [{}, {"when": culprit}]}
    for refuse in (canonical_json, canonical_hash):
        with pytest.raises(NotSerializableError, match=re.escape(reason)) as caught:
            refuse(value)
        assert str(caught.value).startswith("value.items[1].when ")
        with pytest.raises(TypeError, match=f"^value {re.escape(reason)}"):
            refuse(culprit)


def test_a_canonical_value_is_at_most_as_deep_as_a_stored_one() -> None:
    value: JsonValue = []
    for _ in range(DEPTH_MAX - 1):
        value = [value]
    assert canonical_json(value) == "[" * DEPTH_MAX + "]" * DEPTH_MAX
    with pytest.raises(NotSerializableError, match=f"deeper than {DEPTH_MAX}"):
        canonical_json([value])
    value = {"a": 1}
    value["self"] = value
    with pytest.raises(NotSerializableError, match=r"^value\.self\.self"):
        canonical_json(value)


def test_a_missing_scenario_or_domain_is_not_an_empty_one() -> None:
    task = AgentTaskSpec("t", "i")
    manifests = [
        RunManifest("p", task),
        RunManifest("p", task, scenario_id=""),
        RunManifest("p", task._replace(domain="")),
    ]
    assert len({manifest_hash(manifest) for manifest in manifests}) == 3


def test_a_manifest_that_cannot_be_hashed_names_the_field() -> None:
    task = AgentTaskSpec("t", "i")
    with pytest.raises(NotSerializableError, match=r"^manifest\.input\.since is of type "):
        manifest_hash(RunManifest("p", task, {"since": datetime(2026, 1, 31, tzinfo=UTC)}))
    wrong: Any = ["x"]
    with pytest.raises(UsageError, match=r"^manifest\.input must be a Mapping"):
        manifest_hash(RunManifest("p", task, wrong))
    with pytest.raises(UsageError, match=r"^manifest must be a RunManifest"):
        manifest_hash(wrong)


def test_an_idempotency_key_tells_runs_and_parts_apart() -> None:
    made = [
        idempotency_key("chat:s:0"),
        idempotency_key("chat:s:0", 0),
        idempotency_key("chat:s:0", "0"),
        idempotency_key("chat:s:0", 0, "persist"),
        idempotency_key("@t/chat:s:0", 0),
    ]
    assert len(set(made)) == len(made)
    assert made[1] == canonical_hash(["chat:s:0", 0])


def test_a_worker_id_is_new_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "box-7")
    first, second = derive_worker_id(), derive_worker_id()
    form = re.compile(r"box-7:[1-9]\d*:[0-9a-z]{8}:([1-9]\d*)")
    found = [form.fullmatch(each) for each in (first, second)]
    assert all(found), (first, second)
    numbers = [int(each[1]) for each in found if each]
    assert numbers[1] > numbers[0]
    assert first.split(":")[2] != second.split(":")[2]


def test_a_worker_id_survives_a_host_name_that_is_missing_or_not_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HOSTNAME", raising=False)
    assert derive_worker_id().startswith("host:")
    monkeypatch.setenv("HOSTNAME", "")
    assert derive_worker_id().startswith("host:")
    monkeypatch.setenv("HOSTNAME", "box\udcff")
    assert derive_worker_id().startswith("box?:")


def test_a_turn_is_named_after_session_index_and_revision() -> None:
    assert turn_run_id("s-81", 7) == "chat:s-81:7"
    assert turn_run_id("faden:é:9", 0, revision=2) == "chat:faden:é:9:0~2"


@pytest.mark.parametrize("index", [-1, INTEGER_MAX + 1, True, 1.0, "1", None])
def test_an_index_that_is_no_position_is_refused_by_name(index: Any) -> None:
    with pytest.raises(UsageError, match=r"^turn_index must be an integer"):
        turn_run_id("s", index)
    with pytest.raises(UsageError, match=r"^revision must be an integer"):
        turn_run_id("s", 0, index)
    with pytest.raises(UsageError, match=r"^limit must be an integer"):
        check_index(index, name="limit")


def test_the_longest_session_id_makes_a_run_id_that_passes() -> None:
    run_id = turn_run_id("é" * (ID_BYTES_MAX // 2), INTEGER_MAX, INTEGER_MAX)
    assert check_run_id(run_id) == run_id


ids = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=60).filter(
    lambda text: text[0] != "@" and len(text.encode()) <= ID_BYTES_MAX
)


@given(ids)
def test_printable_text_can_be_an_id(value: str) -> None:
    checks = (check_run_id, check_session_id, check_event_key, check_tenant)
    assert [check(value) for check in checks] == [value] * 4


@given(ids | st.just(""), ids)
def test_a_stored_id_gives_tenant_and_run_id_back(tenant: str, run_id: str) -> None:
    assert logical_id(stored_id(tenant, run_id)) == (tenant, run_id)


@given(ids, ids, ids, ids)
def test_no_two_tenants_share_a_stored_id(a: str, run_a: str, b: str, run_b: str) -> None:
    assert (stored_id(a, run_a) == stored_id(b, run_b)) == ((a, run_a) == (b, run_b))
    assert stored_id("", run_a) != stored_id(b, run_b)


def test_a_stored_id_keeps_the_tenant_out_of_the_run_id() -> None:
    assert stored_id("", "chat:s:0") == "chat:s:0"
    assert stored_id("org/4 é", "a/b") == "@org%2F4%20%C3%A9/a/b"


@pytest.mark.parametrize("stored", ["@", "@a", "@/x", "@a/", "@%2f/x", "@%ff/x", "@é/x", "@%/x"])
def test_an_id_of_another_making_belongs_to_the_default_tenant(stored: str) -> None:
    assert logical_id(stored) == ("", stored)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "must not be empty"),
        (None, "must be a str, not NoneType"),
        (7, "must be a str, not int"),
        (b"x", "must be a str, not bytes"),
        (type("Name", (str,), {})("x"), "must be a str, not Name"),
        ("@a/b", "must not begin with '@'"),
        ("a\0b", r"must not contain '\x00', at position 1"),
        ("ab\n", r"must not contain '\n', at position 2"),
        ("\x7f", r"must not contain '\x7f'"),
        ("\x85", r"must not contain '\x85'"),
        ("é\ud800", r"must not contain '\ud800', at position 1"),
        ("\ud83d\ude00", r"must not contain '\ud83d'"),
        ("x" * (ID_BYTES_MAX + 1), "has 201 bytes; the limit is 200"),
        ("é" * (ID_BYTES_MAX // 2 + 1), "has 202 bytes; the limit is 200"),
    ],
    ids=range(14),
)
def test_what_cannot_be_an_id_is_refused_by_name(value: Any, reason: str) -> None:
    for check, name in ((check_session_id, "session_id"), (check_event_key, "event key")):
        with pytest.raises(UsageError, match=f"^{name} .*{re.escape(reason)}"):
            check(value)
    with pytest.raises(UsageError, match=re.escape(reason)):
        check_id(value, name="parent_run_id")


def test_each_kind_of_id_has_its_own_limits() -> None:
    assert check_tenant("") == ""
    assert check_id("x" * ID_BYTES_MAX, name="key") == "x" * ID_BYTES_MAX
    assert check_run_id("x" * RUN_ID_BYTES_MAX)
    with pytest.raises(UsageError, match=r"^run_id has 257 bytes"):
        check_run_id("x" * (RUN_ID_BYTES_MAX + 1))
    with pytest.raises(UsageError, match=r"^tenant '@org' must not begin"):
        check_tenant("@org")
