"""Requests that schemathesis makes out of the OpenAPI document: answered as it says, and soon."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from tests.web.asking import Answer, Service, in_time
from tests.web.routing import document_of, routed

EXAMPLES, EXAMPLES_MANY = 15, 1_000
DOCUMENT = document_of(routed())
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [(path, method) for path, item in DOCUMENT["paths"].items() for method in item]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
STREAMS = ("application/x-ndjson", "text/event-stream")


async def ask(service: Service, case: schemathesis.Case[Any]) -> Answer:
    """Send what schemathesis has made up, and what its own client would not send too."""
    sent = case.as_transport_kwargs(base_url="http://test")
    target = urlsplit(sent["url"]).path
    if query := urlencode(sent.get("params") or {}, doseq=True, errors="surrogatepass"):
        target += f"?{query}"
    body = _body_of(sent)
    headers = [(name, str(value)) for name, value in sent["headers"].items()]
    return await in_time(lambda: service.ask(sent["method"], target, body=body, headers=headers))


def _body_of(sent: dict[str, Any]) -> bytes:
    if "json" in sent:
        return json.dumps(sent["json"]).encode()
    data = sent.get("data") or b""
    return data if isinstance(data, bytes) else str(data).encode("utf-8", "surrogatepass")


def response_of(answer: Answer, case: schemathesis.Case[Any]) -> schemathesis.Response:
    request = requests.Request(case.method, "http://test/").prepare()
    headers = {name: [value] for name, value in answer.headers.items()}
    return schemathesis.Response(answer.status, headers, answer.body, request, 0.1, False)


def check_operation(path: str, method: str, examples: int) -> None:
    operation = SCHEMA[path][method]
    cases = st.one_of(
        operation.as_strategy(schemathesis.GenerationMode.POSITIVE),
        operation.as_strategy(schemathesis.GenerationMode.NEGATIVE),
    )
    with asyncio.Runner() as runner:
        service = runner.run(_serve())

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
        @given(cases)
        def check(case: schemathesis.Case[Any]) -> None:
            answer = runner.run(ask(service, case))
            assert answer.is_whole
            checks = CHECKS[:-1] if answer.headers.get("content-type") in STREAMS else CHECKS
            case.validate_response(response_of(answer, case), checks=checks)

        check()
        runner.run(service.engine.aclose(drain_ms=0))


async def _serve() -> Service:
    """Return a service that knows one finished turn."""
    service = routed()
    await service.submit()
    return service


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_what_the_document_allows_and_forbids_is_answered_as_it_says(
    path: str, method: str
) -> None:
    check_operation(path, method, EXAMPLES)


@pytest.mark.campaign
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_thousands_of_requests_are_answered_as_the_document_says(path: str, method: str) -> None:
    check_operation(path, method, EXAMPLES_MANY)
