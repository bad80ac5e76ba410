"""Each backend beside the provider's own client, on the wire of one server: the same is read."""

from __future__ import annotations

import pytest

from perdure.backends.protocol import Prompt
from perdure.backends.retry import BackendRetry
from perdure.errors import BackendTimeoutError, BackendTransportError
from tests.backends import messaging
from tests.backends.aimock import Aimock
from tests.backends.model_server import ModelServer, reply
from tests.backends.official import APIS, KEY, Api, Failed, Told, backend_of, ours, theirs

pytestmark = pytest.mark.node


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "words",
    ["hello", "what is the weather", "two cities", "count the tokens", "be short", "think"],
)
async def test_both_read_the_same_answer(aimock: Aimock, api: Api, words: str) -> None:
    found = await ours(api, aimock.base_url, words)
    assert isinstance(found, Told)
    assert found == await theirs(api, aimock.base_url, words)
    assert len(aimock.journal()) == 2


@pytest.mark.parametrize("api", APIS)
async def test_the_usage_is_that_of_the_provider(aimock: Aimock, api: Api) -> None:
    found = await ours(api, aimock.base_url, "count the tokens")
    assert isinstance(found, Told)
    assert found.tokens == (9, 4)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("words", "status"), [("who am I", 401), ("too many", 429), ("too busy", 529)]
)
async def test_both_fail_with_the_same_status(
    aimock: Aimock, api: Api, words: str, status: int
) -> None:
    assert await ours(api, aimock.base_url, words) == Failed(status)
    assert await theirs(api, aimock.base_url, words) == Failed(status)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("fault", "status"), [("drop", 500), ("ratelimit", 429), ("disconnect", 0)]
)
async def test_both_fail_alike_at_a_fault(
    aimock: Aimock, api: Api, fault: str, status: int
) -> None:
    headers = {f"x-aimock-chaos-{fault}": "1"}
    assert await ours(api, aimock.base_url, "hello", headers=headers) == Failed(status)
    assert await theirs(api, aimock.base_url, "hello", headers=headers) == Failed(status)


# Where ours is stricter.


@pytest.mark.parametrize("api", APIS)
async def test_a_character_that_the_server_cuts_in_two_is_read_whole(
    aimock: Aimock, api: Api
) -> None:
    found = await ours(api, aimock.base_url, "wave")
    assert isinstance(found, Told)
    assert found.text == "1234567👋 and 1234👋"


async def failure_of(
    aimock: Aimock, api: Api, words: str, **options: object
) -> tuple[list[str], BackendTransportError]:
    """Return the kinds of the frames before a failure, and the failure."""
    backend = backend_of(api, aimock.base_url, **options)
    kinds: list[str] = []
    try:
        async for frame in backend.stream(Prompt([{"role": "user", "content": words}])):
            kinds.append(frame.kind)  # noqa: PERF401 - what came before the failure counts
    except BackendTransportError as error:
        failure = error
    else:
        pytest.fail(f"no failure after {kinds}")
    finally:
        await backend.aclose()
    assert KEY not in f"{failure}{failure.body}"
    return kinds, failure


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("count", range(2, 8))
async def test_an_answer_cut_off_behind_any_event_is_never_whole(
    aimock: Aimock, api: Api, count: int
) -> None:
    kinds, failure = await failure_of(aimock, api, f"break off behind {count}")
    assert "upstream_end" not in kinds
    # This server keeps no response, so there is nothing to join.
    assert (failure.status, failure.retryable) == (200, True)


@pytest.mark.parametrize("api", APIS)
async def test_what_is_malformed_is_a_failure(aimock: Aimock, api: Api) -> None:
    headers = {"x-aimock-chaos-malformed": "1"}
    kinds, failure = await failure_of(aimock, api, "hello", headers=headers)
    assert kinds == []
    assert failure.status == 200
    assert "chaos" in failure.body


@pytest.mark.parametrize("api", APIS)
async def test_a_wait_that_is_asked_for_is_told(aimock: Aimock, api: Api) -> None:
    _, failure = await failure_of(aimock, api, "too many")
    assert (failure.retryable, failure.retry_after_ms) == (True, 7_000)


@pytest.mark.parametrize("api", APIS)
async def test_a_slow_beginning_is_a_time_out_only_where_it_is_limited(
    aimock: Aimock, api: Api
) -> None:
    slow = {"x-aimock-chaos-latency": "400"}
    hasty = BackendRetry(tries_max=1, request_timeout_ms=100)
    _, failure = await failure_of(aimock, api, "hello", headers=slow, retry=hasty)
    assert isinstance(failure, BackendTimeoutError)
    assert failure.retryable
    assert isinstance(await ours(api, aimock.base_url, "hello", headers=slow), Told)


# What that server does not say.


async def test_both_count_what_the_cache_was_given(server: ModelServer) -> None:
    server.will(*[reply(messaging.wire(*messaging.HELLO))] * 2)
    found = await ours("messages", server.base_url, "hello")
    assert found == await theirs("messages", server.base_url, "hello")
    assert found == Told("Hello", [], (15, 7), "stop")


async def test_both_fail_at_an_error_within_an_answer(server: ModelServer) -> None:
    wire = messaging.wire(messaging.begun(), messaging.refused("overloaded_error"))
    server.will(*[reply(wire)] * 2)
    assert await ours("messages", server.base_url, "hello") == Failed(529)
    assert isinstance(await theirs("messages", server.base_url, "hello"), Failed)
