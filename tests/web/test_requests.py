"""Input that is wrong in every way we could think of: a 4xx that names it, and nothing recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.limits import BODY_BYTES_MAX
from perdure.store.memory import MemoryStore
from tests.web.asking import JSON, TURNS, Answer, Service, serve

GOOD = b'{"turnIndex":0,"message":"Hi"}'
INDICES = "turnIndex"


async def refused(answer: Answer, service: Service, status: int, *, names: str) -> None:
    """Check that the answer is a refusal that names its reason, and that nothing is left."""
    assert answer.status == status, answer
    assert names in answer.error["message"], answer.error
    assert len(answer.body) < 1_000
    assert await service.store.list_runs() == []
    assert service.script.calls == 0


def fresh() -> Service:
    return serve(MemoryStore())


def body(**fields: Any) -> bytes:
    return json.dumps({"turnIndex": 0, "message": "Hi", **fields}).encode()


def raw(field: str, text: str) -> bytes:
    """Return a body with a field that no JSON library writes."""
    fields = {"turnIndex": "0", "message": '"Hi"', field: text}
    return ("{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}").encode()


BODIES: Sequence[tuple[bytes, int, str]] = [
    # No JSON, or no object.
    (b" ", 400, "body"),
    (b"{", 400, "body"),
    (b"null", 400, "body"),
    (b"true", 400, "body"),
    (b"0", 400, "body"),
    (b'"text"', 400, "body"),
    (b"[]", 400, "body"),
    (b"[" + GOOD + b"]", 400, "body"),
    (GOOD + GOOD, 400, "body"),
    (GOOD + b",", 400, "body"),
    (GOOD[:-1], 400, "body"),
    (b"{'turnIndex':0,'message':'Hi'}", 400, "body"),
    (b"turnIndex=0&message=Hi", 400, "body"),
    (b"\xef\xbb\xbf" + GOOD, 400, "body"),
    (GOOD.decode().encode("utf-16"), 400, "body"),
    (b"\x00" + GOOD, 400, "body"),
    (b'{"turnIndex":0,"message":"\xff"}', 400, "UTF-8"),
    (b'{"turnIndex":0,"message":"\xed\xa0\x80"}', 400, "UTF-8"),
    (b'{"turnIndex":0,"message":"\xc0\xaf"}', 400, "UTF-8"),
    (b'{"turnIndex":0,"message":"a\nb"}', 400, "body"),
    (b'{"turnIndex":0,"message":"\\x41"}', 400, "body"),
    # Fields that lack, or that nobody knows.
    (b"{}", 400, "`turnIndex`"),
    (b'{"message":"Hi"}', 400, "`turnIndex`"),
    (b'{"turnIndex":0}', 400, "`message`"),
    (body(extra=1), 400, "extra"),
    (body(Message="Hi"), 400, "Message"),
    (body(turn_index=0), 400, "turn_index"),
    (body(sessionId="s"), 400, "sessionId"),
    (body(**{"": 1}), 400, "''"),
    (body(__proto__={}), 400, "__proto__"),
    (body(**{"x" * 500: 1}), 400, "xxx"),
    (body(**{"\ud800": 1}), 400, "field"),
    # Fields that come twice.
    (b'{"turnIndex":0,"message":"Hi","message":"Ho"}', 400, "message"),
    (b'{"turnIndex":0,"turnIndex":0,"message":"Hi"}', 400, "turnIndex"),
    (b'{"turnIndex":0,"message":"Hi","m\\u0065ssage":"Ho"}', 400, "message"),
    # The index.
    *((raw(INDICES, text), 400, INDICES) for text in ("null", "true", "false", '"0"', "[]", "{}")),
    *((raw(INDICES, text), 400, INDICES) for text in ("-1", "0.5", "1.0", "1e0", "-0.0", "1e308")),
    *((raw(INDICES, text), 400, INDICES) for text in (str(2**53), str(2**63), "9" * 400)),
    (raw(INDICES, "-" + "9" * 30), 400, INDICES),
    *((raw(INDICES, text), 400, "body") for text in ("NaN", "Infinity", "-Infinity", "1e400")),
    *((raw(INDICES, text), 400, "body") for text in ("9" * 5_000, "01", "+1", ".5", "0x1", "١")),
    # The message.
    *((raw("message", text), 400, "`message`") for text in ("null", "true", "0", "[]", "{}", '""')),
    *((raw("message", text), 400, "body") for text in ("NaN", "[1e999]", "'Hi'", "undefined")),
    (raw("message", '{"text":"Hi"}'), 400, "`message`"),
    # Model and retry.
    *((raw("model", text), 400, "`model`") for text in ("true", "0", "[]", "{}", '""')),
    *((raw("model", text), 400, "body") for text in ("NaN", "-Infinity")),
    *((raw("retry", text), 400, "`retry`") for text in ("null", "0", "1", '"true"', "[]", "{}")),
    # Depth.
    (raw("model", "[" * 65 + "]" * 65), 400, "nested"),
    (raw("model", '{"a":' * 65 + "1" + "}" * 65), 400, "nested"),
    (raw("model", "[" * 100_000 + "]" * 100_000), 400, "nested"),
    (b"[" * 500_000, 400, "body"),
    (b'{"a":' * 100_000, 400, "body"),
]


@pytest.mark.parametrize(
    ("sent", "status", "names"), BODIES, ids=[f"{n}-{b[:40]!r}" for n, (b, *_) in enumerate(BODIES)]
)
async def test_a_bad_body_is_refused_by_name(sent: bytes, status: int, names: str) -> None:
    service = fresh()
    await refused(await service.ask("POST", TURNS, body=sent), service, status, names=names)


async def test_an_empty_body_is_refused() -> None:
    service = fresh()
    answer = await service.ask("POST", TURNS, headers=[("Content-Type", JSON)])
    await refused(answer, service, 400, names="body")


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
     "text/json", "application/json5", "application/jsonp", "application/x-ndjson", "json",
     "*/*", ";application/json", "text/plain; application/json"],
)  # fmt: skip
async def test_a_body_of_another_type_is_refused(content_type: str) -> None:
    service = fresh()
    answer = await service.ask("POST", TURNS, body=GOOD, headers=[("Content-Type", content_type)])
    await refused(answer, service, 415, names="content type")
    assert answer.error["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", " application/json ;x"]
)
async def test_json_may_be_named_in_other_ways(content_type: str) -> None:
    service = fresh()
    answer = await service.ask("POST", TURNS, body=GOOD, headers=[("Content-Type", content_type)])
    assert answer.status == 201


# Bodies over the limit.


async def test_a_body_that_declares_to_be_too_long_is_not_even_read() -> None:
    service = fresh()
    length = [("Content-Length", str(BODY_BYTES_MAX + 1)), ("Content-Type", JSON)]
    read: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def counted() -> Any:
            read.append(None)
            return await receive()

        await service.app(scope, counted, send)

    answer = await service._replace(app=app).ask("POST", TURNS, body=GOOD, headers=length)
    await refused(answer, service, 413, names="body")
    assert read == []


@pytest.mark.parametrize("length", [None, "1", "-1", "abc", "1e9", "٣", "9" * 400])
async def test_a_body_over_the_limit_is_refused_whatever_its_length_says(
    length: str | None,
) -> None:
    service = fresh()
    chunk = b'{"turnIndex":0,"message":"' + b"x" * 1_000
    headers = [("Content-Length", length.encode().decode("latin-1"))] if length else []
    pieces = [chunk, *([b"x" * 64_000] * 20)]
    answer = await service.ask(
        "POST", TURNS, body=pieces, headers=[*headers, ("Content-Type", JSON)]
    )
    await refused(answer, service, 413, names="body")
    assert answer.error["code"] == "value_too_large"


async def test_a_body_in_many_pieces_is_one_body() -> None:
    service = fresh()
    pieces = [bytes([byte]) for byte in GOOD]
    answer = await service.ask("POST", TURNS, body=pieces, headers=[("Content-Type", JSON)])
    assert answer.status == 201


async def test_a_message_of_which_the_record_would_be_too_long_is_refused_by_name() -> None:
    service = fresh()
    sent = json.dumps({"turnIndex": 0, "message": "é" * 300_000}, ensure_ascii=False).encode()
    assert len(sent) < BODY_BYTES_MAX
    await refused(await service.ask("POST", TURNS, body=sent), service, 413, names="message")


async def test_a_message_just_under_the_limit_is_accepted() -> None:
    service = fresh()
    sent = b'{"turnIndex":0,"message":"' + b"x" * 1_000_000 + b'"}'
    assert (await service.ask("POST", TURNS, body=sent)).status == 201


@pytest.mark.parametrize(
    "message",
    [" ", "\u0000", "\u2028", "\U0001f600", "\ud800", "\x7f", "é", "a\r\nb", "</script>"],
    ids=ascii,
)
async def test_a_message_may_hold_any_character(message: str) -> None:
    service = fresh()
    answer = await service.submit(message)
    assert answer.status == 201
    assert service.script.turns[0].user_message == message
    assert (await service.ask("GET", f"{TURNS}/0")).json["message"] == message


# Paths.

BAD_IDS = [
    "%2F", "a%2Fb", "..%2F..%2Fetc%2Fpasswd", "a%2fturns%2f0", "%00", "a%0Ab", "%0D%0A", "%7F",
    "%C2%80", "%C2%9F", "%E2%80%A8", "%E2%80%8B", "%C2%A0", "%EF%BB%BF", "@a", "@", "%40acme",
    "%ff", "%C3", "%ED%A0%80", "%F5%80%80%80", "%C0%AF", "%", "%z", "%zz", "%1", "a%", "%%30",
    "a%u0041", "x" * 201, "%C3%A9" * 101, "%F0%9F%98%80" * 51, "%F3%A0%80%81", "%EE%80%80",
]  # fmt: skip


@pytest.mark.parametrize("session", BAD_IDS)
@pytest.mark.parametrize(
    ("method", "rest"),
    [("POST", "/turns"), ("GET", "/turns/0"), ("GET", "/turns/0/stream"),
     ("POST", "/turns/0/stop"), ("GET", "")],
)  # fmt: skip
async def test_a_bad_session_id_is_refused(method: str, rest: str, session: str) -> None:
    service = fresh()
    sent = GOOD if rest == "/turns" else b""
    answer = await service.ask(method, f"/v1/sessions/{session}{rest}", body=sent)
    await refused(answer, service, 400, names="session")


@pytest.mark.parametrize("session", ["", ".", ".."])
async def test_ids_that_are_no_ids_do_not_reach_another_route(session: str) -> None:
    service = fresh()
    answer = await service.ask("POST", f"/v1/sessions/{session}/turns", body=GOOD)
    assert answer.status in (201, 400, 404)
    runs = await service.store.list_runs()
    assert [run.session_id for run in runs] == ([session] if answer.status == 201 else [])


@pytest.mark.parametrize(
    "session",
    ["a", "x" * 200, "%C3%A9" * 100, "a%20b", "a%3Ab", "a:1", "a~1", "100%25", "%252F", "a@b",
     "%F0%9F%98%80", "turns", "sessions", "v1", "%73essions", "a+b", "a%3Fb", "a%23b", "'", "-"],
)  # fmt: skip
async def test_a_good_session_id_is_kept_as_it_is(session: str) -> None:
    service = fresh()
    answer = await service.ask("POST", f"/v1/sessions/{session}/turns", body=GOOD)
    assert answer.status == 201
    for rest in ("/turns/0", "/turns/0/stream", ""):
        assert (await service.ask("GET", f"/v1/sessions/{session}{rest}")).status == 200
    assert len(await service.store.list_runs()) == 1


async def test_a_route_written_with_escapes_is_the_same_route() -> None:
    service = fresh()
    answer = await service.ask("POST", "/%76%31/%73essions/%73/turns", body=GOOD)
    assert answer.status == 201
    assert answer.events[0]["data"]["sessionId"] == "s"


@pytest.mark.parametrize(
    "index",
    ["-1", "+1", "1.0", "1e3", "0x1", "a", "%20", "1%20", "%D9%A1", "%C2%B2", "NaN", "null",
     str(2**53), str(2**63), "9" * 16, "9" * 17, "9" * 5_000, "%00", "%FF", "0%0A", "~0", "0~1",
     "00", "01", "007"],
)  # fmt: skip
@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("GET", "/stream"), ("POST", "/stop")])
async def test_a_bad_index_is_refused(method: str, rest: str, index: str) -> None:
    service = fresh()
    answer = await service.ask(method, f"{TURNS}/{index}{rest}")
    await refused(answer, service, 400, names="turn index")


@pytest.mark.parametrize("path", ["0%2Fstream", "0%2fstop", "0/stream%2F", "%2F0", "0%2F"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_encoded_slash_is_no_slash_of_a_route(method: str, path: str) -> None:
    service = fresh()
    await refused(await service.ask(method, f"{TURNS}/{path}"), service, 400, names="%2F")


SSE, LINES = "text/event-stream", "application/x-ndjson"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [([SSE], SSE), (["Text/Event-Stream"], SSE), (["text/event-stream;charset=utf-8"], SSE),
     (["text/html, text/event-stream;q=0.5"], SSE), (["text/html", SSE], SSE),
     (["text/event-stream; Q=1.000"], SSE), ([f"{LINES};q=0.3, {SSE};q=0.4"], SSE),
     ([], LINES), (["*/*"], LINES), (["text/*"], LINES), ([LINES], LINES), ([""], LINES),
     (["text/event-stream;q=0"], LINES), (["text/event-stream; q=0.000, */*"], LINES),
     ([f"{LINES}, {SSE};q=0.9"], LINES), (["text/event-stream-x"], LINES)],
)  # fmt: skip
async def test_the_header_accept_chooses_the_wire(accept: list[str], expected: str) -> None:
    service = fresh()
    answer = await service.submit(headers=[("Accept", value) for value in accept])
    assert answer.headers["content-type"].partition(";")[0] == expected


@pytest.mark.parametrize("quality", ["2", "-1", "1.5", "x", "", "0.1234", "1.001", "٠"])
async def test_a_wrong_quality_is_refused_by_name(quality: str) -> None:
    service = fresh()
    value = f"text/event-stream;q={quality}".encode().decode("latin-1")
    answer = await service.submit(headers=[("Accept", value)])
    await refused(answer, service, 400, names="Accept")


@pytest.mark.parametrize(
    ("query", "names"),
    [("wire=", "wire"), ("wire=sse", "wire"), ("wire=Reference", "wire"), ("envelope=", "envelope"),
     ("envelope=2", "envelope"), ("envelope=true", "envelope"), ("envelope=-1", "envelope"),
     ("wire=%00", "wire"), ("wire=" + "x" * 5_000, "wire"), ("envelope=%FF", "envelope")],
)  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_bad_query_is_refused(method: str, query: str, names: str) -> None:
    service = fresh()
    target = TURNS if method == "POST" else f"{TURNS}/0/stream"
    sent = GOOD if method == "POST" else b""
    answer = await service.ask(method, f"{target}?{query}", body=sent)
    await refused(answer, service, 400, names=f"`{names}`")


# Whatever else.


@given(sent=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8")))
async def test_no_body_of_random_bytes_is_an_error_of_ours(sent: bytes) -> None:
    service = fresh()
    answer = await service.ask("POST", TURNS, body=sent, headers=[("Content-Type", JSON)])
    assert answer.status == 400
    assert await service.store.list_runs() == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.fixed_dictionaries({}, optional={
    "turnIndex": st.just(0) | VALUES, "message": st.just("Hi") | VALUES,
    "model": VALUES, "retry": VALUES,
}))  # fmt: skip
async def test_no_mixture_of_fields_is_an_error_of_ours(fields: dict[str, Any]) -> None:
    service = fresh()
    answer = await service.ask("POST", TURNS, body=json.dumps(fields).encode())
    assert answer.status in (201, 400)
    assert len(await service.store.list_runs()) == (answer.status == 201)


@given(path=st.text(max_size=30), query=st.text(max_size=20))
async def test_no_path_is_an_error_of_ours(path: str, query: str) -> None:
    service = fresh()
    target = f"/v1/sessions/{path}?{query}".encode().decode("latin-1")
    answer = await service.ask("GET", target)
    assert answer.status in (400, 404, 405), target
