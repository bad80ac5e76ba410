"""The endpoint that the README and an example teach answers refusals as the service does."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import httpx2
import pytest

from perdure.store.memory import MemoryStore
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
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    store = MemoryStore()
    app, engine = load("07_chat_endpoint_starlette").create_app(store)
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
