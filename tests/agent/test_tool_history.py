"""Every history becomes one that the strictest provider accepts; a valid one stays as it is."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from perdure.agent.tool_history import NO_ANSWER, call_message, repaired, result_message
from tests.agent.strict_provider import fault_of

ASKED = {"role": "user", "content": "Hi"}


def call(id: str, name: str = "look", arguments: Any = "{}") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*made: dict[str, Any], text: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "tool_calls": list(made)}


def test_a_valid_history_stays_as_it_is() -> None:
    history = [
        {"role": "system", "content": "Be brief."},
        ASKED,
        calling(call("a"), call("b"), text="Let me look."),
        result_message("a", "1"),
        result_message("b", "2"),
        {"role": "assistant", "content": "Done."},
        ASKED,
    ]
    assert repaired(history) == history
    assert fault_of({"messages": history}) is None


def test_a_call_without_a_result_gets_one() -> None:
    history = [ASKED, calling(call("a"), call("b")), result_message("b", "2"), ASKED]
    assert repaired(history)[2:4] == [result_message("a", NO_ANSWER), result_message("b", "2")]


def test_results_are_put_in_order_behind_their_calls() -> None:
    history = [
        ASKED,
        calling(call("a"), call("b")),
        result_message("b", "2"),
        ASKED,
        result_message("a", "1"),
    ]
    assert repaired(history) == [
        *history[:2],
        result_message("a", "1"),
        result_message("b", "2"),
        ASKED,
    ]


def test_results_without_calls_and_second_results_are_left_out() -> None:
    history = [
        result_message("a", "too early"),
        ASKED,
        calling(call("a")),
        result_message("a", "1"),
        result_message("a", "again"),
        result_message("b", "stray"),
    ]
    assert repaired(history) == [ASKED, calling(call("a")), result_message("a", "1")]


def test_a_result_belongs_to_the_nearest_call_of_its_id() -> None:
    history = [ASKED, calling(call("0")), ASKED, calling(call("0")), result_message("0", "late")]
    mended = repaired(history)
    assert mended[2] == result_message("0", NO_ANSWER)
    assert mended[4:] == [calling(call("0_2")), result_message("0_2", "late")]


def test_two_calls_of_one_id_keep_a_result_each() -> None:
    both = [result_message("a", "1"), result_message("a", "2")]
    [_, message, first, second] = repaired([ASKED, calling(call("a"), call("a")), *both])
    assert [each["id"] for each in message["tool_calls"]] == ["a", "a_2"]
    assert [first, second] == [result_message("a", "1"), result_message("a_2", "2")]


def test_what_a_model_invented_is_made_acceptable() -> None:
    made = [
        call("", "functions.look at!", '{"broken'),
        call("x", "", [1]),
        call("y", "look", {"a": 1}),
    ]
    history = [ASKED, calling(*made)]
    [_, message, *results] = repaired(history)
    functions = [each["function"] for each in message["tool_calls"]]
    assert [function["name"] for function in functions] == ["functions_look_at_", "unnamed", "look"]
    assert [function["arguments"] for function in functions] == ["{}", "{}", '{"a":1}']
    assert [result["tool_call_id"] for result in results] == ["call_1", "x", "y"]
    assert fault_of({"messages": repaired(history)}) is None


def test_messages_that_say_nothing_are_left_out() -> None:
    history = [ASKED, {"role": "assistant", "content": ""}, calling(text="Hm."), ASKED]
    assert repaired(history) == [ASKED, {"role": "assistant", "content": "Hm."}, ASKED]


def test_an_answer_with_calls_is_written_as_providers_read_it() -> None:
    message = call_message("", [{"id": "a", "name": "look", "arguments": {"at": "é"}}])
    assert message == calling(call("a", "look", '{"at":"é"}'))
    broken = call_message("Hm", [{"id": "a", "name": "look", "arguments": '{"br'}])
    assert broken["tool_calls"][0]["function"]["arguments"] == "{}"


IDS: Any = st.sampled_from(["", "a", "b", "c", 0, None])
ARGUMENTS: Any = st.sampled_from(["{}", "", "[", None, '{"a":NaN}', {"a": 1}, 7])
CALLS = st.builds(call, IDS, st.sampled_from(["look", "", "no.name"]), ARGUMENTS)
CONTENTS: Any = st.sampled_from([None, "r", {"a": 1}, 7, True])
TEXTS = st.none() | st.just("t")
MESSAGES = st.one_of(
    st.just(ASKED),
    st.builds(
        lambda made, text: calling(*made, text=text), st.lists(CALLS), st.none() | st.just("t")
    ),
    st.builds(result_message, IDS, CONTENTS),
    st.just({"role": "assistant", "content": None}),
)


@given(st.lists(MESSAGES, max_size=12))
def test_whatever_is_broken_is_repaired_for_good(messages: list[dict[str, Any]]) -> None:
    history = [ASKED, *messages, ASKED]
    before = json.dumps(history)
    mended = repaired(history)
    assert fault_of({"messages": mended}) is None
    assert repaired(mended) == mended
    assert json.dumps(history) == before


def test_arguments_that_only_python_calls_json_become_none() -> None:
    made = [
        call("a", arguments='{"at": NaN}'),
        call("b", arguments='{"at": -Infinity}'),
        call("c", arguments={"at": float("nan")}),
        call("d", arguments={"at": {1}}),
    ]
    [_, message, *_] = repaired([ASKED, calling(*made)])
    assert [each["function"]["arguments"] for each in message["tool_calls"]] == ["{}"] * 4


def test_ids_that_are_numbers_and_none_at_all_belong_together() -> None:
    made: Any = [call("x"), call("y")]
    made[0]["id"] = 0
    del made[1]["id"]
    history = [
        ASKED,
        calling(*made),
        {"role": "tool", "tool_call_id": 0, "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    mended = repaired(history)
    assert mended[2:] == [result_message("0", "1"), result_message("call_1", "2")]
    assert fault_of({"messages": mended}) is None


def test_a_result_that_is_no_text_becomes_one() -> None:
    told: list[Any] = [{"degrees": 21}, 7, True, None]
    made = [call(f"c{place}") for place in range(len(told))]
    results = [result_message(f"c{place}", each) for place, each in enumerate(told)]
    mended = repaired([ASKED, calling(*made), *results])
    assert [each["content"] for each in mended[2:]] == ['{"degrees":21}', "7", "true", ""]
    parts: Any = [{"type": "text", "text": "as parts"}]
    shown = [ASKED, calling(call("a")), result_message("a", parts)]
    assert repaired(shown) == shown


def test_calls_in_a_tuple_are_calls() -> None:
    history: Any = [ASKED, {"role": "assistant", "content": None, "tool_calls": (call("a"),)}]
    mended = repaired(history)
    assert mended[2] == result_message("a", NO_ANSWER)
    assert list(mended[1]["tool_calls"]) == [call("a")]
