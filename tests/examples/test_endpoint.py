"""The endpoint that the README and an example teach answers refusals as the service does."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx2
import pytest
from starlette.requests import Request

from perdure.core.limits import BODY_BYTES_MAX
from perdure.store.memory import MemoryStore
from perdure.web.responses import answer_error
from tests.examples.test_examples import ROOT

URL = "http://service/chats/garden/turns"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def example() -> ModuleType:
    return load("07_chat_endpoint_starlette")


@pytest.fixture
async def client(example: ModuleType) -> AsyncIterator[httpx2.AsyncClient]:
    store = MemoryStore()
    app, engine = example.create_app(store)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, headers={"x-user": "ada"}) as client:
        yield client
    await engine.aclose()
    await store.close()


async def code_of(answer: httpx2.Response) -> tuple[int, Any]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_what_is_not_there_or_not_yours_is_not_found(client: httpx2.AsyncClient) -> None:
    assert await code_of(await client.get(f"{URL}/0")) == (404, "not_found")
    assert (await client.post(f"{URL}/0", json={"message": "Hi"})).status_code == 201
    others = await client.get(f"{URL}/0", headers={"x-user": "eve"})
    assert await code_of(others) == (404, "not_found")


async def test_another_message_is_a_conflict_and_a_wrong_cursor_a_bad_request(
    client: httpx2.AsyncClient,
) -> None:
    await client.post(f"{URL}/0", json={"message": "Hi"})
    other = await client.post(f"{URL}/0", json={"message": "Hello"})
    assert await code_of(other) == (409, "manifest_mismatch")
    wrong = await client.get(f"{URL}/0", headers={"last-event-id": "nonsense"})
    assert await code_of(wrong) == (400, "bad_cursor")
    not_text = await client.post(f"{URL}/1", json={"message": 5})
    assert await code_of(not_text) == (400, "bad_request")


async def test_a_busy_session_is_a_conflict_that_says_when_to_come_back(
    client: httpx2.AsyncClient, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def held(_seconds: float) -> None:
        begun.set()
        await may_end.wait()

    monkeypatch.setattr(example, "asyncio", SimpleNamespace(sleep=held))
    first = asyncio.create_task(client.post(f"{URL}/0", json={"message": "Hi"}))
    await begun.wait()
    busy = await client.post(f"{URL}/1", json={"message": "And"})
    assert await code_of(busy) == (409, "session_busy")
    assert int(busy.headers["retry-after"]) > 0
    may_end.set()
    assert (await first).status_code == 201
    assert (await client.post(f"{URL}/1", json={"message": "And"})).status_code == 201


JSON = {"content-type": "application/json"}
BAD_BODIES = [
    (b"", 400, "body is not JSON"),
    (b"no JSON", 400, "body is not JSON"),
    (b"\xff", 400, "body is not UTF-8"),
    (b"[" * 100_000, 400, "body is nested"),
    (b'["message"]', 400, "body must be an object"),
    (b"null", 400, "body must be an object"),
    (b"{}", 400, "`message` is missing"),
    (b'{"message":null}', 400, "`message` is missing"),
    (b'{"message":""}', 400, "`message` must be a text"),
    (b'{"message":["Hi"]}', 400, "`message` must be a text"),
    (b'{"message":"Hi","message":"Ho"}', 400, "message"),
    (b'{"message":"' + b"x" * BODY_BYTES_MAX + b'"}', 413, "body"),
]


@pytest.mark.parametrize(("body", "status", "names"), BAD_BODIES)
async def test_a_wrong_body_is_refused_by_a_name(
    body: bytes, status: int, names: str, client: httpx2.AsyncClient
) -> None:
    answer = await client.post(f"{URL}/0", content=body, headers=JSON)
    assert answer.status_code == status
    assert names in answer.json()["error"]["message"]
    assert (await client.get(f"{URL}/0")).status_code == 404


async def test_other_fields_of_a_body_are_the_products_own(client: httpx2.AsyncClient) -> None:
    answer = await client.post(f"{URL}/0", json={"message": "Hi", "folder": {"id": 5}})
    assert answer.status_code == 201


async def test_whoever_is_nobody_and_what_is_no_address_are_refused(
    client: httpx2.AsyncClient,
) -> None:
    form = await client.post(f"{URL}/0", data={"message": "Hi"})
    assert await code_of(form) == (415, "unsupported_media_type")
    del client.headers["x-user"]
    for method, url in (("GET", f"{URL}/0"), ("POST", f"{URL}/0"), ("POST", f"{URL}/0/stop")):
        nobody = await client.request(method, url, json={"message": "Hi"})
        assert await code_of(nobody) == (401, "unauthorized")
        assert "x-user" in nobody.json()["error"]["message"]
    client.headers["x-user"] = "ada"
    for index in ("-1", "x", "01", "9" * 5_000):
        wrong = await client.post(f"{URL}/{index}", json={"message": "Hi"})
        assert await code_of(wrong) == (400, "bad_request")
        assert "turn index" in wrong.json()["error"]["message"]


async def test_what_is_no_error_of_ours_is_answered_with_a_reference_only() -> None:
    answer = await answer_error(Request({"type": "http"}), RuntimeError("a secret"))
    assert answer.status_code == 500
    assert b"reference" in bytes(answer.body)
    assert b"secret" not in bytes(answer.body)
