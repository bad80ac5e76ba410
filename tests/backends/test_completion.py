"""The reader of a completion: every dialect of the providers, and bytes cut anywhere."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.backends.completion import CompletionReader
from perdure.backends.sse import EVENT_CHARS_MAX
from perdure.core.frames import (
    encode_row,
    event,
    reasoning,
    text,
    tool_call,
    upstream_end,
    usage,
)
from perdure.errors import BackendTransportError
from tests.backends.completing import calls, failure_of, fragment, read, tool_frames
from tests.backends.model_server import chunk, sse

WHOLE = b": hello\r\n\r\n" + sse(
    chunk(role="assistant", content=""),
    chunk(reasoning_content="Hm 🤔"),
    chunk(content="Grüß "),
    chunk(content="dich"),
    calls(fragment('{"a":', index=0, id="x", name="f")),
    calls(fragment(" [1]}", index=0)),
    chunk("tool_calls"),
    {"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
    "[DONE]",
).replace(b"\n", b"\r\n")
WHOLE_FRAMES = [
    reasoning("Hm 🤔"),
    text("Grüß "),
    text("dich"),
    tool_call("x", "f", {"a": [1]}),
    usage(
        provider="openai", model="model-1-0613", request_id="chatcmpl-1", tokens_in=1, tokens_out=2
    ),
    upstream_end(
        "tool_calls",
        replay={"backend": "openai/completions", "content": [{"reasoning_content": "Hm 🤔"}, {}]},
    ),
]


def test_an_answer_is_read_whole() -> None:
    assert read(WHOLE) == WHOLE_FRAMES


def test_a_cut_at_every_position_changes_nothing() -> None:
    for first in range(len(WHOLE) + 1):
        assert read(WHOLE[:first], WHOLE[first:]) == WHOLE_FRAMES


def test_a_stream_that_ends_anywhere_is_whole_only_with_its_finish_reason() -> None:
    mark = b'"finish_reason": "tool_calls"}]}'
    finished = WHOLE.index(mark) + len(mark)
    for length in range(len(WHOLE)):
        reader = CompletionReader("openai")
        frames = list(reader.feed(WHOLE[:length]))
        if length < finished:
            with pytest.raises(BackendTransportError, match="without a finish reason"):
                frames.extend(reader.close())
            assert not {"tool_call", "upstream_end"} & {frame.kind for frame in frames}
        else:
            frames.extend(reader.close())
            assert [frame for frame in frames if frame.kind != "usage"] == [
                frame for frame in WHOLE_FRAMES if frame.kind != "usage"
            ]


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(stream: bytes) -> None:
    with pytest.raises(BackendTransportError):
        read(stream)


SHAPE_KEYS = ("choices", "delta", "message", "tool_calls", "function", "index", "error", "usage")
VALUE_KEYS = ("content", "name", "arguments", "id", "model", "finish_reason", "prompt_tokens")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(SHAPE_KEYS + VALUE_KEYS), inner, max_size=4)
        | st.fixed_dictionaries({"choices": st.lists(inner, max_size=1)})
        | st.fixed_dictionaries({"delta": inner, "finish_reason": st.just("stop")})
    ),
    max_leaves=20,
)


@given(st.lists(JSON, max_size=4))
def test_no_record_breaks_the_reader(records: list[Any]) -> None:
    try:
        frames = read(sse(*records, chunk("stop")))
    except BackendTransportError:
        return
    assert frames[-1].kind == "upstream_end"
    assert encode_row(frames)


def test_the_last_blank_line_may_be_missing() -> None:
    assert read(sse(chunk("stop")).rstrip()) == [upstream_end("stop")]


def test_nothing_is_read_after_the_end() -> None:
    assert read(sse(chunk("stop"), "[DONE]", chunk(content="x"), "junk")) == [upstream_end("stop")]


def test_empty_data_and_records_without_choices_are_nothing() -> None:
    assert read(sse("", {}, {"choices": None}, {"prompt_filter_results": []}, chunk("stop"))) == [
        upstream_end("stop")
    ]


def test_a_record_without_choices_is_a_text_or_an_event_of_an_agent() -> None:
    told = {"type": "tool_call", "data": {"name": "look"}}
    unknown = {"type": "ping", "n": 1}
    assert read(sse({"text": "Hel"}, {"text": ""}, told, unknown, {"text": "lo"}, "[DONE]")) == [
        text("Hel"),
        event(told),
        text("lo"),
        upstream_end("stop"),
    ]


@pytest.mark.parametrize("records", [[{"text": "Hel"}], [chunk(content="Hel"), "[DONE]"]])
def test_only_an_answer_without_choices_ends_without_a_reason(records: list[Any]) -> None:
    assert "without a finish reason" in str(failure_of(*records))


def test_a_whole_message_counts_like_a_delta() -> None:
    message = {"content": "Hi", "tool_calls": [fragment("{}", id="x", name="f")]}
    record = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    assert read(sse(record)) == [text("Hi"), tool_call("x", "f", {}), upstream_end("tool_calls")]


def test_only_the_first_choice_is_read() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": "stop"}]}
    assert read(sse(other, chunk(content="yes"), chunk("length"))) == [
        text("yes"),
        upstream_end("length"),
    ]


def test_a_refusal_is_text() -> None:
    assert read(sse(chunk(refusal="I will not."), chunk("stop")))[0] == text("I will not.")


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_reasoning_is_read_in_both_dialects(key: str) -> None:
    assert read(sse(chunk("stop", **{key: "Hm"})))[0] == reasoning("Hm")


def test_reasoning_that_comes_in_both_dialects_counts_once() -> None:
    frames = read(sse(chunk("stop", reasoning="Hm", reasoning_content="Hm")))
    assert frames == [reasoning("Hm"), upstream_end("stop")]


def test_9_6_r3_interleaved_calls_come_in_the_order_of_their_index() -> None:
    assert tool_frames(
        calls(fragment("[", index=1, id="b", name="g")),
        calls(fragment("{", index=0, id="a", name="f")),
        calls(fragment("]", index=1), fragment("}", index=0)),
    ) == [tool_call("a", "f", {}), tool_call("b", "g", [])]


def test_id_and_name_may_come_late_and_again() -> None:
    assert tool_frames(
        calls(fragment("{}", index=0)),
        calls(fragment("", index=0, id="a")),
        calls(fragment(None, index=0, id="a", name="f")),
        calls(fragment(None, index=0, id="a", name="f")),
    ) == [tool_call("a", "f", {})]


def test_calls_that_share_an_index_are_told_apart_by_their_ids() -> None:
    assert tool_frames(
        calls(fragment("1", index=0, id="a", name="f")),
        calls(fragment("2", index=0, id="b", name="f")),
    ) == [tool_call("a", "f", 1), tool_call("b", "f", 2)]


def test_calls_without_an_index_are_told_apart_by_their_place() -> None:
    assert tool_frames(
        calls(fragment("1", id="a", name="f"), fragment("2", id="b", name="g")),
    ) == [tool_call("a", "f", 1), tool_call("b", "g", 2)]


def test_a_call_without_an_id_gets_one_of_its_own() -> None:
    first, second = tool_frames(
        calls(fragment("{}", index=0, name="f"), fragment("{}", index=1, name="g"))
    )
    assert first.data["call"]
    assert first.data["call"] != second.data["call"]


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ("", {}),
        ("  ", {}),
        (None, {}),
        ('{"a": 1.5}', {"a": 1.5}),
        ('"a"', "a"),
        ('{"a": ', '{"a": '),
        ("NaN", "NaN"),
        ("[-Infinity]", "[-Infinity]"),
        ("1e999", "1e999"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_9_6_r3_arguments_are_json_or_what_was_written(written: str | None, arguments: Any) -> None:
    (call,) = tool_frames(calls(fragment(written, index=0, id="a", name="f")))
    assert call.data["args"] == arguments


def test_9_6_r3_a_call_is_complete_only_when_the_provider_says_so() -> None:
    reader = CompletionReader("openai")
    assert list(reader.feed(sse(calls(fragment("{}", index=0, id="a", name="f"))))) == []
    assert list(reader.feed(sse(chunk("tool_calls")))) == [tool_call("a", "f", {})]


def test_a_call_that_follows_the_finish_reason_is_not_lost() -> None:
    late = calls(fragment("{}", index=0, id="a", name="f"))
    assert read(sse(chunk("tool_calls"), late)) == [
        tool_call("a", "f", {}),
        upstream_end("tool_calls"),
    ]


def test_a_call_without_a_name_is_a_failure() -> None:
    failure = failure_of(calls(fragment("{}", index=0, id="a")), chunk("tool_calls"))
    assert "without naming it" in str(failure)


@pytest.mark.parametrize(
    ("counted", "known"),
    [
        ({"prompt_tokens": 1, "completion_tokens": 0}, {"in": 1, "out": 0}),
        ({"input_tokens": 1, "output_tokens": 2}, {"in": 1, "out": 2}),
        ({"prompt_tokens": 1, "prompt_cache_hit_tokens": 1}, {"in": 1, "cached": 1}),
        ({"output_tokens_details": {"reasoning_tokens": 3}}, {"reasoning": 3}),
        ({"input_tokens_details": {"cached_tokens": 3}}, {"cached": 3}),
        ({"prompt_tokens_details": {"cache_write_tokens": 3}}, {"cache_written": 3}),
        ({"input_tokens_details": {"cache_write_tokens": 3}}, {"cache_written": 3}),
        ({"prompt_tokens": 1, "completion_tokens": None}, {"in": 1}),
        ({"prompt_tokens": 1, "completion_tokens": -2}, {"in": 1}),
        ({"prompt_tokens": 1, "completion_tokens": True}, {"in": 1}),
        ({"prompt_tokens": 1, "completion_tokens": "2"}, {"in": 1}),
        ({"prompt_tokens": 1, "prompt_tokens_details": None}, {"in": 1}),
    ],
)
def test_usage_has_what_was_counted_and_no_invented_zeros(
    counted: dict[str, Any], known: dict[str, int]
) -> None:
    frame, _ = read(sse({**chunk("stop"), "usage": counted}))
    named = {"provider": "openai", "model": "model-1-0613", "request": "chatcmpl-1"}
    assert frame.data == {**named, **known}


@pytest.mark.parametrize("counted", [None, {}, [], "5", {"prompt_tokens": None}, {"total": 5}])
def test_without_a_count_there_is_no_usage(counted: Any) -> None:
    assert read(sse({**chunk("stop"), "usage": counted})) == [upstream_end("stop")]


def test_running_usage_is_told_once_with_its_last_counts() -> None:
    running = [{**chunk(content="a"), "usage": {"completion_tokens": n}} for n in (1, 2)]
    frames = read(sse(*running, chunk("stop")))
    assert [frame.data["out"] for frame in frames if frame.kind == "usage"] == [2]


@pytest.mark.parametrize(
    "record",
    [
        "{broken",
        "null",
        "[]",
        '"text"',
        "[" * 100_000,
        {"choices": {}},
        {"choices": ["x"]},
        {"choices": [{"delta": "x"}]},
        chunk(content=["x"]),
        chunk(content=5),
        chunk(tool_calls={}),
        chunk(tool_calls=[{"function": {"arguments": {}}}]),
        {"choices": [{"finish_reason": 5}]},
    ],
)
def test_a_record_of_another_shape_is_a_failure(record: Any) -> None:
    failure = failure_of(chunk(content="a"), record, chunk("stop"))
    assert "no chat completion" in str(failure)
    assert (failure.status, failure.retryable) == (200, True)


def test_a_record_over_the_limit_is_a_failure_for_good() -> None:
    failure = failure_of(chunk(content="x" * EVENT_CHARS_MAX))
    assert not failure.retryable
    assert not failure.body


def test_an_error_event_is_a_failure_whatever_its_data() -> None:
    reader = CompletionReader("openai")
    with pytest.raises(BackendTransportError) as caught:
        list(reader.feed(b'event: error\ndata: {"code": "invalid_api_key"}\n\n'))
    assert not caught.value.retryable
    assert "invalid_api_key" in str(caught.value)


def test_an_error_after_the_finish_reason_is_a_failure() -> None:
    assert "within its answer" in str(failure_of(chunk("stop"), {"error": {"message": "x"}}))


def test_an_error_as_finish_reason_is_a_failure() -> None:
    assert "ended its answer with an error" in str(failure_of(chunk("error")))


def test_an_empty_error_is_none() -> None:
    assert read(sse({**chunk("stop"), "error": None})) == [upstream_end("stop")]


def test_words_of_the_provider_are_in_the_body_only() -> None:
    failure = failure_of({"error": {"message": "canary", "code": "see canary here"}})
    assert "canary" in failure.body
    assert "canary" not in str(failure)


COUNTED = {"prompt_tokens": 7, "completion_tokens": 2}


@pytest.mark.parametrize(
    "records",
    [
        [{**chunk("stop"), "x_groq": {"id": "req_1", "usage": COUNTED}}],
        [
            {"type": "message_start", "message": {"usage": {"input_tokens": 7}}},
            {"type": "message_delta", "usage": {"output_tokens": 2}},
            chunk("stop"),
        ],
        [{**chunk("stop"), "usage": COUNTED, "x_groq": {"usage": {"prompt_tokens": 1}}}],
    ],
    ids=["Groq", "the other protocol", "both"],
)
def test_9_6_r2_usage_is_read_wherever_a_provider_has_it(records: list[Any]) -> None:
    [frame] = [each for each in read(sse(*records)) if each.kind == "usage"]
    assert (frame.data["in"], frame.data["out"]) == (7, 2)


def test_an_answer_that_groq_stops_early_is_a_failure() -> None:
    stopped = {**chunk("stop"), "x_groq": {"id": "req_1", "error": "over capacity"}}
    failure = failure_of(chunk(content="Hel"), stopped)
    assert "over capacity" in failure.body
    assert failure.retryable


def test_thoughts_as_ollama_and_groq_tell_them_go_back_by_their_name() -> None:
    thought = [chunk(role="assistant", content="", reasoning=each) for each in ("Hm", ", well")]
    called = chunk("tool_calls", tool_calls=[fragment("{}", index=0, id="x", name="f")])
    frames = read(sse(*thought, called))
    assert frames[:2] == [reasoning("Hm"), reasoning(", well")]
    assert frames[-1].data["replay"]["content"] == [{"reasoning": "Hm, well"}, {}]
