"""Thousands of requests that are wrong in some way: never a 5xx, never a hang, nothing recorded."""

from __future__ import annotations

import json
import random
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from perdure.core.jsonvalue import encode_value
from perdure.store.memory import MemoryStore
from tests.web.asking import JSON, TURNS, Service, in_time, serve

"""Ten times what an answer may take on a machine of one's own: the tests share theirs."""
GOOD: dict[str, Any] = {"turnIndex": 0, "message": "Hi"}
FIELDS = ["turnIndex", "message", "model", "revision", "regenerate", "retry", "attachments", "busy"]
ODD_TEXTS = [
    "",
    "\x00",
    "\ud800",
    "\u2028",
    "é" * 300,
    "x" * 5_000,
    "__proto__",
    "-0",
    "NaN",
    "null",
]
ODD_NUMBERS = [
    "1e400",
    "-1",
    "0.5",
    "1e0",
    "9007199254740993",
    "1" * 5_000,
    "-0",
    "NaN",
    "Infinity",
]
ODD_BYTES = [
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"{",
    b"]",
    b'"',
]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "get", "X" * 50]
HEADERS = [
    "accept", "content-type", "content-length", "authorization", "last-event-id", "expect", "range",
    "transfer-encoding", "content-encoding", "if-none-match", "origin", "cookie", "x-forwarded-for",
]  # fmt: skip


class Request(NamedTuple):
    """What is sent, and the kind of fault that was planted in it."""

    kind: str
    method: str
    target: str
    body: bytes
    headers: Sequence[tuple[str, str]] = ()


def odd_value(dice: random.Random, depth: int = 0) -> Any:
    """Return a value that a client might send, and that no field takes."""
    kind = dice.randrange(7 if depth < 3 else 5)
    if kind == 0:
        return dice.choice(ODD_TEXTS)
    if kind == 1:
        return dice.choice([True, False, None])
    if kind == 2:
        return dice.choice([-1, 2**53, 2**64, 1.5, -0.0, 10**40])
    if kind in (3, 4):
        return "".join(dice.choices(string.printable, k=dice.randrange(20)))
    inner = [odd_value(dice, depth + 1) for _ in range(dice.randrange(4))]
    return inner if kind == 5 else {dice.choice(ODD_TEXTS + FIELDS): each for each in inner}


def submit(kind: str, body: bytes, **more: Any) -> Request:
    return Request(kind, "POST", TURNS, body, **more)


def wrong_field(dice: random.Random) -> Request:
    body = {**GOOD, dice.choice(FIELDS): odd_value(dice)}
    if dice.random() < 0.3:
        body["".join(dice.choices(string.ascii_letters, k=5))] = odd_value(dice)
    return submit("wrong field", json.dumps(body).encode())


def missing_field(dice: random.Random) -> Request:
    body = {field: odd_value(dice) for field in dice.sample(FIELDS[2:], dice.randrange(4))}
    return submit("missing field", json.dumps(body).encode())


def odd_number(dice: random.Random) -> Request:
    text = f'{{"turnIndex":{dice.choice(ODD_NUMBERS)},"message":"Hi"}}'
    return submit("odd number", text.encode())


def twice(dice: random.Random) -> Request:
    field = dice.choice(FIELDS)
    value = json.dumps(odd_value(dice))
    return submit("twice", f'{{"turnIndex":0,"{field}":{value},"{field}":{value}}}'.encode())


def mangled(dice: random.Random) -> Request:
    """Return a good body with some bytes of it gone, doubled, or others."""
    body = bytearray(json.dumps(GOOD).encode())
    for _ in range(dice.randrange(1, 5)):
        at = dice.randrange(len(body)) if body else 0
        body[at : at + dice.randrange(3)] = dice.choice([*ODD_BYTES, bytes(dice.randbytes(2)), b""])
    return submit("mangled", bytes(body))


def noise(dice: random.Random) -> Request:
    return submit("noise", dice.randbytes(dice.randrange(200)))


def deep(dice: random.Random) -> Request:
    depth = dice.choice([65, 100, 1_000, 20_000])
    opening, closing = dice.choice([("[", "]"), ('{"a":', "}")])
    inner = opening * depth + "1" + closing * depth * dice.randrange(2)
    return submit("deep", f'{{"turnIndex":0,"message":{inner}}}'.encode())


def path(dice: random.Random) -> Request:
    pieces = [
        "v1",
        "sessions",
        "s",
        "turns",
        "0",
        "stream",
        "stop",
        "me",
        "..",
        ".",
        "",
        "%2F",
        "%00",
    ]
    pieces += ["%", "%ff", "%E2%80%A8", "-1", "00", "1e3", "9" * 40, "x" * 300, "@acme", "chat:s:0"]
    target = "/" + "/".join(dice.choices(pieces, k=dice.randrange(1, 8)))
    return Request("path", dice.choice(METHODS), target, b"")


def query(dice: random.Random) -> Request:
    names = ["after", "envelope", "wire", "revision", "stop", "x", "%00", "after[]"]
    values = [
        "",
        "1",
        "2",
        "-1",
        "e1_1_x",
        "e9999999999999999999_1_x",
        "%00",
        "%ff",
        "sse",
        "x" * 999,
    ]
    parts = [f"{dice.choice(names)}={dice.choice(values)}" for _ in range(dice.randrange(1, 5))]
    place = dice.choice([f"{TURNS}/0/stream", f"{TURNS}/0", "/v1/sessions/s", "/v1/sessions/none"])
    return Request("query", "GET", f"{place}?{'&'.join(parts)}", b"")


def header(dice: random.Random) -> Request:
    values = [
        "",
        "x",
        "-1",
        "9" * 30,
        "a" * 9_000,
        "text/event-stream;q=2",
        "*/*;q=",
        ",",
        "gzip",
        "\xff",
    ]
    chosen = [(dice.choice(HEADERS), dice.choice(values)) for _ in range(dice.randrange(1, 4))]
    body = json.dumps(GOOD | {"message": odd_value(dice)}).encode()
    return submit("header", body, headers=chosen)


KINDS: Sequence[Callable[[random.Random], Request]] = [
    wrong_field, missing_field, odd_number, twice, mangled, noise, deep, path, query, header,
]  # fmt: skip


def is_asked_well(request: Request) -> bool:
    """Return whether a body, against all odds, is one that a client may send."""
    try:
        fields = json.loads(request.body)
        encode_value(fields)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict)


async def check(service: Service, request: Request, seed: str) -> int:
    """Send a request; return its status, which is no 5xx, and comes soon."""
    sent = {name for name, _ in request.headers}
    headers = (
        [*request.headers] if "content-type" in sent else [*request.headers, ("content-type", JSON)]
    )
    body = request.body or b""
    answer = await in_time(
        lambda: service.ask(request.method, request.target, body=body, headers=headers)
    )
    where = f"{seed}: {request!r:.500} -> {answer!r:.300}"
    assert answer.status < 500, where
    assert answer.is_whole, where
    if answer.status >= 400 and request.method not in ("HEAD", "head"):
        assert answer.error["message"], where
        assert "Traceback" not in answer.body.decode(), where
    if request.target == TURNS and answer.status < 300:
        assert is_asked_well(request), where
    return answer.status


async def send_many(count: int, seed: int) -> Counter[str]:
    """Send that many requests; each service gets a hundred of them."""
    dice, statuses = random.Random(seed), Counter[str]()
    for number in range(0, count, 100):
        service = serve(MemoryStore())
        for _ in range(min(100, count - number)):
            request = dice.choice(KINDS)(dice)
            status = await check(service, request, f"seed {seed}")
            statuses[f"{request.kind} {status}"] += 1
        runs = await service.store.list_runs()
        assert len(runs) <= sum(count for name, count in statuses.items() if name[-3] == "2")
        await service.engine.aclose(drain_ms=0)
    return statuses


async def test_five_hundred_wrong_requests_are_refused_in_time() -> None:
    statuses = await send_many(500, random.randrange(2**32))
    assert sum(statuses.values()) == 500
    refused = sum(count for name, count in statuses.items() if name[-3] == "4")
    assert refused > 300, statuses


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(4))
async def test_ten_thousand_wrong_requests_are_refused_in_time(
    seed: int, record_property: Callable[[str, object], None]
) -> None:
    statuses = await send_many(10_000, seed)
    record_property("statuses", dict(statuses))
