"""The JSON forms of records: names, absent values, and what a step leaves of its exception."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.jsonvalue import decode_value, encode_value
from perdure.core.limits import ERROR_TEXT_BYTES_MAX
from perdure.core.recordjson import (
    manifest_from_json,
    manifest_to_json,
    outcome_from_json,
    outcome_to_json,
    step_error_from_json,
    step_error_of,
    step_error_to_json,
)
from perdure.core.records import AgentTaskSpec, RunManifest, RunOutcome, StepError
from perdure.errors import LeaseLostError, StoreCorruptError, UsageError

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vectors.json").read_text(encoding="utf-8")
)

TASK = AgentTaskSpec(
    "t-1",
    "Sort the inbox",
    domain="support",
    inputs={"a": 1},
    required_knowledge=({"id": "k1"},),
    budget={"maxSteps": 3},
    metadata={"owner": "mira"},
)
MANIFEST = RunManifest(
    "intake-desk", TASK, {"limit": 25}, scenario_id="room-12", tags={"run": "nightly"}
)
MANIFEST_JSON = {
    "projectId": "intake-desk",
    "scenarioId": "room-12",
    "task": {
        "id": "t-1",
        "intent": "Sort the inbox",
        "domain": "support",
        "inputs": {"a": 1},
        "requiredKnowledge": [{"id": "k1"}],
        "budget": {"maxSteps": 3},
        "metadata": {"owner": "mira"},
    },
    "input": {"limit": 25},
    "tags": {"run": "nightly"},
}

objects = st.dictionaries(st.text(), st.none() | st.booleans() | st.text() | st.integers())
manifests = st.builds(
    RunManifest,
    project_id=st.text(),
    task=st.builds(
        AgentTaskSpec,
        id=st.text(),
        intent=st.text(),
        domain=st.none() | st.text(),
        inputs=st.none() | objects,
        required_knowledge=st.lists(objects).map(tuple),
        budget=st.none() | objects,
        metadata=st.none() | objects,
    ),
    input=objects,
    scenario_id=st.none() | st.text(),
    tags=st.none() | st.dictionaries(st.text(), st.text()),
)
outcomes = st.builds(
    RunOutcome,
    passed=st.none() | st.booleans(),
    score=st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    notes=st.none() | st.text(),
    metadata=st.none() | objects,
)
optional_texts = st.none() | st.text()
errors = st.builds(
    StepError, message=st.text(), code=optional_texts, stack=optional_texts, type=optional_texts
)


@given(manifests)
def test_a_manifest_is_read_back_as_it_was_written(manifest: RunManifest) -> None:
    text = encode_value(manifest_to_json(manifest))
    assert manifest_from_json(decode_value(text)) == manifest


@given(outcomes)
def test_an_outcome_is_read_back_as_it_was_written(outcome: RunOutcome) -> None:
    text = encode_value(outcome_to_json(outcome))
    assert outcome_from_json(decode_value(text)) == outcome


@given(errors)
def test_a_step_error_is_read_back_as_it_was_written(error: StepError) -> None:
    text = encode_value(step_error_to_json(error))
    assert step_error_from_json(decode_value(text)) == error


def test_json_names_and_their_order_are_those_of_the_reference() -> None:
    assert list(manifest_to_json(MANIFEST)) == list(MANIFEST_JSON)
    assert manifest_to_json(MANIFEST) == MANIFEST_JSON
    assert manifest_from_json(MANIFEST_JSON) == MANIFEST
    assert outcome_to_json(RunOutcome(True, 0.5, "ok", {"chars": 2})) == {
        "pass": True,
        "score": 0.5,
        "notes": "ok",
        "metadata": {"chars": 2},
    }


def test_what_is_absent_is_left_out_and_what_is_empty_stays() -> None:
    assert manifest_to_json(RunManifest("p", AgentTaskSpec("t", "i"))) == {
        "projectId": "p",
        "task": {"id": "t", "intent": "i", "requiredKnowledge": []},
        "input": {},
    }
    sparse = RunManifest("", AgentTaskSpec("", "", domain=""), scenario_id="", tags={})
    assert manifest_from_json(manifest_to_json(sparse)) == sparse
    assert outcome_to_json(RunOutcome()) == {}
    assert outcome_to_json(RunOutcome(False, 0)) == {"pass": False, "score": 0}
    assert step_error_to_json(StepError("")) == {"message": ""}


def test_mappings_of_any_kind_are_written_as_objects() -> None:
    manifest = MANIFEST._replace(input=MappingProxyType({"limit": 25}))
    assert encode_value(manifest_to_json(manifest)) == encode_value(MANIFEST_JSON)


@pytest.mark.parametrize(
    "value", [each["manifest"] for each in VECTORS if each["kind"] == "manifest"]
)
def test_manifests_of_a_typescript_worker_are_read(value: dict[str, Any]) -> None:
    manifest = manifest_from_json(value)
    assert manifest.project_id == value["projectId"]
    assert manifest.scenario_id == value.get("scenarioId")
    assert manifest.task.id == value["task"]["id"]
    assert manifest.input == value["input"]
    assert manifest.tags == value.get("tags")


def test_reading_ignores_unknown_members_and_takes_null_for_absent() -> None:
    assert outcome_from_json({"pass": None, "verdict": 1}) == RunOutcome()
    assert step_error_from_json({"message": "m", "code": 404, "cause": {}}) == StepError(
        "m", code="404"
    )


@pytest.mark.parametrize(
    ("value", "culprit"),
    [
        ([], "manifest is not"),
        (None, "manifest is not"),
        ({**MANIFEST_JSON, "projectId": 5}, r"manifest\.projectId is 5"),
        ({**MANIFEST_JSON, "tags": []}, r"manifest\.tags is"),
        ({**MANIFEST_JSON, "task": "t"}, r"manifest\.task is 't'"),
        ({**MANIFEST_JSON, "task": {"id": "t"}}, r"manifest\.task has no intent"),
        ({"projectId": "p", "task": MANIFEST_JSON["task"]}, "manifest has no input"),
    ],
    ids=range(7),
)
def test_a_stored_manifest_that_is_none_is_a_corrupt_store(value: Any, culprit: str) -> None:
    with pytest.raises(StoreCorruptError, match=f"^the stored {culprit}"):
        manifest_from_json(value)


def test_stored_outcomes_and_errors_that_are_none_are_a_corrupt_store() -> None:
    with pytest.raises(StoreCorruptError, match=r"^the stored outcome\.pass is 'yes'"):
        outcome_from_json({"pass": "yes"})
    with pytest.raises(StoreCorruptError, match=r"^the stored outcome is not a JSON object"):
        outcome_from_json("x")
    with pytest.raises(StoreCorruptError, match=r"^the stored error has no message"):
        step_error_from_json({})


def wrong_manifests() -> list[tuple[Any, str]]:
    wrong: Any = 5
    pairs: list[tuple[Any, str]] = [
        ({}, "manifest"),
        (MANIFEST._replace(task=wrong), "manifest.task"),
    ]
    fields = ("project_id", "scenario_id", "input", "tags")
    pairs += [(MANIFEST._replace(**{name: wrong}), f"manifest.{name}") for name in fields]
    pairs += [
        (MANIFEST._replace(task=TASK._replace(**{name: wrong})), f"manifest.task.{name}")
        for name in TASK._fields
    ]
    return pairs


@pytest.mark.parametrize(
    ("manifest", "name"), wrong_manifests(), ids=[name for _, name in wrong_manifests()]
)
def test_a_manifest_with_a_wrong_field_is_refused_by_name(manifest: Any, name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} must be a "):
        manifest_to_json(manifest)


@pytest.mark.parametrize("name", RunOutcome._fields)
def test_an_outcome_with_a_wrong_field_is_refused_by_name(name: str) -> None:
    wrong: Any = b""
    with pytest.raises(UsageError, match=rf"^outcome\.{name} must be a "):
        outcome_to_json(RunOutcome(**{name: wrong}))


def caught(exception: BaseException) -> BaseException:
    try:
        raise exception
    except BaseException as error:
        return error


def test_an_exception_leaves_its_message_code_stack_and_type() -> None:
    class RateLimitError(Exception):
        code = "rate_limited"

    error = step_error_of(caught(RateLimitError("slow down")))
    assert error.message == "slow down"
    assert error.code == "rate_limited"
    assert error.type is not None
    assert error.type.endswith("RateLimitError")
    assert error.stack is not None
    assert error.stack.startswith("Traceback")
    assert "raise exception" in error.stack
    assert step_error_of(LeaseLostError("gone")).code == "lease_lost"


@pytest.mark.parametrize("code", [404, None, b"x"])
def test_a_code_that_is_no_text_is_left_out(code: Any) -> None:
    class CodedError(Exception):
        def __init__(self) -> None:
            self.code = code

    assert step_error_of(CodedError()).code is None


def test_an_exception_without_a_traceback_or_a_readable_text_is_recorded() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert step_error_of(Mute()).message == "<exception str() failed>"
    assert step_error_of(ValueError()) == StepError("", None, "ValueError\n", "ValueError")
    assert step_error_of(KeyError("x")).message == "'x'"


def test_message_and_stack_are_cut_where_they_say_least() -> None:
    error = step_error_of(caught(ValueError("é" * ERROR_TEXT_BYTES_MAX)))
    assert error.message.startswith("éé")
    assert error.message.endswith("é…")
    assert ERROR_TEXT_BYTES_MAX - 3 < len(error.message.encode()) <= ERROR_TEXT_BYTES_MAX
    assert error.stack is not None
    assert error.stack.startswith("…é")
    assert error.stack.endswith("é\n")
    assert len(error.stack.encode()) <= ERROR_TEXT_BYTES_MAX
    whole = "x" * ERROR_TEXT_BYTES_MAX
    assert step_error_of(ValueError(whole)).message == whole


def test_what_is_recorded_of_any_exception_can_be_stored() -> None:
    for text in ("\ud800" * ERROR_TEXT_BYTES_MAX, "\0", "a\u2028b"):
        error = step_error_of(caught(ValueError(text)))
        stored = encode_value(step_error_to_json(error))
        assert step_error_from_json(decode_value(stored)) == error
