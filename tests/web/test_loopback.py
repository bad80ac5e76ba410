"""An anonymous service on loopback answers programs and its own page, and no other site."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from starlette.types import Message, Receive, Scope, Send

from perdure.store.memory import MemoryStore
from perdure.web.app import LOOPBACK_CALLER
from perdure.web.loopback import LoopbackGuard, is_loopback
from tests.web.asking import JSON, TURNS, Answer, Service, serve

HOST = "127.0.0.1:8765"
Headers = Sequence[tuple[str, str]]


@pytest.fixture
def service() -> Service:
    inner = serve(MemoryStore(), authorize=lambda _: LOOPBACK_CALLER)
    return inner._replace(app=LoopbackGuard(inner.app))


async def submit(service: Service, headers: Headers) -> Answer:
    return await service.submit(headers=headers, caller=None)


async def is_refused(service: Service, answer: Answer) -> bool:
    """Return whether the answer is a refusal; then nothing may be recorded."""
    if answer.status != 403:
        return False
    assert answer.error["code"] == "forbidden"
    assert await service.store.list_runs() == []
    return True


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", HOST, "localhost", "localhost:8765", "LocalHost:1", "[::1]", "[::1]:8765",
     "127.0.0.2:8765", "[0:0:0:0:0:0:0:1]:80"],
)  # fmt: skip
async def test_a_name_of_this_machine_is_served(service: Service, host: str) -> None:
    for more in ([], [("Origin", f"http://{host}")]):
        answer = await service.submit(headers=[("Host", host), *more], index=len(more), caller=None)
        assert answer.status == 201, host


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.evil.example",
     "evil.localhost", "192.168.1.5:8765", "0.0.0.0:8765", "[::]:8765", "[::1]evil.example",
     "[::1", "::1", "127.0.0.1@evil.example", "evil.example@127.0.0.1", "127.0.0.1:x",
     "127.0.0.1:8765:1", "127.0.0.1/", " 127.0.0.1", "127.1", "2130706433", "[evil]", "\x7f"],
)  # fmt: skip
async def test_a_name_that_was_rebound_to_this_machine_is_refused(
    service: Service, host: str
) -> None:
    assert await is_refused(service, await submit(service, [("Host", host)]))


async def test_no_host_and_two_hosts_are_refused(service: Service) -> None:
    assert await is_refused(service, await submit(service, []))
    two = [("Host", HOST), ("Host", "evil.example")]
    assert await is_refused(service, await submit(service, two))
    assert await is_refused(service, await submit(service, two[::-1]))


@pytest.mark.parametrize(
    "origin",
    ["null", "", "http://evil.example", "https://evil.example:8765", "http://127.0.0.1",
     "http://127.0.0.1:3000", "http://localhost:8765", "http://127.0.0.1:8765.evil.example",
     "http://127.0.0.1:8765@evil.example", "http://evil@127.0.0.1:8765", "http://[::1",
     "http://[::1]:8765", "file://", "127.0.0.1:8765", "http://127.0.0.1:8765/", "é"],
)  # fmt: skip
async def test_a_page_of_another_origin_is_refused(service: Service, origin: str) -> None:
    headers = [("Host", HOST), ("Origin", origin)]
    assert await is_refused(service, await submit(service, headers))
    assert await is_refused(
        service, await submit(service, [*headers, ("Origin", f"http://{HOST}")])
    )


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "x"])
async def test_a_fetch_from_another_site_is_refused(service: Service, site: str) -> None:
    headers = [("Host", HOST), ("Sec-Fetch-Site", site)]
    assert await is_refused(service, await submit(service, headers))
    for target in ("/", "/static/app.js", "/healthz", "/v1/sessions/s"):
        answer = await service.ask("GET", target, headers=headers)
        assert await is_refused(service, answer)


@pytest.mark.parametrize("site", ["same-origin", "none"])
async def test_a_fetch_of_the_page_itself_is_served(service: Service, site: str) -> None:
    headers = [("Host", HOST), ("Sec-Fetch-Site", site), ("Origin", f"http://{HOST}")]
    assert (await submit(service, headers)).status == 201


async def test_a_link_on_another_site_may_lead_to_the_page(service: Service) -> None:
    link = [("Host", HOST), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")]
    document = [*link, ("Sec-Fetch-Dest", "document")]
    page = await service.ask("GET", "/", headers=document)
    assert page.status == 200
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    for answer in (
        await service.ask("GET", "/", headers=[*link, ("Sec-Fetch-Dest", "iframe")]),
        await service.ask("GET", "/", headers=link),
        await service.ask("POST", f"{TURNS}/0/stop", headers=document),
        await submit(service, document),
    ):
        assert await is_refused(service, answer)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_what_a_form_of_another_site_can_send_is_not_json(
    service: Service, content_type: str
) -> None:
    headers = [("Host", HOST), ("Content-Type", content_type)]
    answer = await submit(service, headers)
    assert answer.status == 415
    assert await service.store.list_runs() == []


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "",
     "text/plain; application/json"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "target"),
    [("POST", f"{TURNS}/0/stop"), ("DELETE", "/v1/sessions/s"), ("DELETE", "/v1/me")],
)
async def test_no_change_is_made_by_what_a_form_can_send(
    service: Service, method: str, target: str, content_type: str
) -> None:
    host = ("Host", HOST)
    await submit(service, [host])
    headers = [host, ("Content-Type", content_type)]
    answer = await service.ask(method, target, headers=headers, caller=None)
    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")
    twice = [host, ("Content-Type", JSON), ("Content-Type", content_type)]
    assert (await service.ask(method, target, headers=twice, caller=None)).status == 415
    (run,) = await service.store.list_runs()
    assert run.state == "completed"


@pytest.mark.parametrize("header", ["Origin", "Sec-Fetch-Site"])
@pytest.mark.parametrize("target", ["/v1/sessions/s", "/v1/me?stop=1"])
async def test_no_other_site_deletes_anything(service: Service, header: str, target: str) -> None:
    await submit(service, [("Host", HOST)])
    value = "http://evil.example" if header == "Origin" else "cross-site"
    headers = [("Host", HOST), (header, value)]
    answer = await service.ask("DELETE", target, headers=headers, caller=None)
    assert (answer.status, answer.error["code"]) == (403, "forbidden")
    assert len(await service.store.list_runs()) == 1
    own = [("Host", HOST), ("Origin", f"http://{HOST}"), ("Sec-Fetch-Site", "same-origin")]
    assert (await service.ask("DELETE", target, headers=own, caller=None)).status == 200
    assert await service.store.list_runs() == []


async def test_a_preflight_of_another_site_allows_nothing(service: Service) -> None:
    headers = [
        ("Host", HOST),
        ("Origin", "http://evil.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type"),
    ]
    answer = await service.ask("OPTIONS", TURNS, headers=headers)
    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_programs_need_no_more_than_a_host(service: Service) -> None:
    headers = [("Host", HOST), ("Content-Type", JSON), ("User-Agent", "curl/8")]
    assert (await submit(service, headers)).status == 201


async def test_what_is_no_request_is_left_alone() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(_: Message) -> None:
        return None

    await LoopbackGuard(app)({"type": "lifespan"}, receive, send)
    assert seen == ["lifespan"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("", False), ("10.0.0.1", False), ("example.org", False)],
)  # fmt: skip
def test_loopback_is_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
