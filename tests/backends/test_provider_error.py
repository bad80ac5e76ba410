"""What is read out of the error objects of the providers."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from openai.types.responses import ResponseError

from perdure.backends.provider_error import ProviderError, provider_error, read_error
from perdure.backends.retry import RETRY_STATUSES


@pytest.mark.parametrize(
    ("document", "read"),
    [
        (
            {"error": {"code": "rate_limit_exceeded"}},
            ProviderError("rate_limit_exceeded", 0, False),
        ),
        ({"error": {"type": "insufficient_quota"}}, ProviderError("insufficient_quota", 0, True)),
        (
            {"error": {"code": "unknown_parameter", "type": "invalid_request_error"}},
            ProviderError("unknown_parameter", 0, True),
        ),
        ({"error": {"code": 429}}, ProviderError("", 429, False)),
        ({"error": {"code": "503"}}, ProviderError("", 503, False)),
        ({"error": {"code": 7, "status": 502}}, ProviderError("", 502, False)),
        ({"error": "text", "error_type": "overloaded"}, ProviderError("overloaded", 0, False)),
        ({"error": {"code": "two words"}}, ProviderError("", 0, False)),
        ({"error": ["x"]}, ProviderError("", 0, False)),
        ({"error": None}, None),
        ({"error": {}}, None),
        ({}, None),
        ([], None),
        (None, None),
    ],
)
def test_an_error_object_is_read(document: Any, read: ProviderError | None) -> None:
    assert provider_error(document) == read


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (ProviderError("", 0, False), True),
        (ProviderError("", 503, False), True),
        (ProviderError("", 400, False), False),
        (ProviderError("", 429, True), False),
    ],
)
def test_it_tells_whether_trying_again_can_help(error: ProviderError, may_pass: bool) -> None:
    assert error.may_pass(RETRY_STATUSES) is may_pass


@pytest.mark.parametrize("body", ["", "<html>", "[" * 100_000, "5"])
def test_a_body_without_an_error_is_none(body: str) -> None:
    assert read_error(body) is None


MAY_PASS = {
    "server_error",
    "rate_limit_exceeded",
    "vector_store_timeout",
    "failed_to_download_image",
}


@pytest.mark.parametrize("code", get_args(ResponseError.model_fields["code"].annotation))
def test_of_every_code_of_a_failed_response_it_is_known_whether_it_may_pass(code: str) -> None:
    error = provider_error({"error": {"code": code, "message": "no"}})
    assert error is not None
    assert error.may_pass(RETRY_STATUSES) is (code in MAY_PASS)
