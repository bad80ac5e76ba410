"""D1Api: a D1 database over Cloudflare's HTTP API, with the surface of a Worker's binding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from ssl import SSLContext
from typing import Any, Final, NamedTuple, cast

from perdure.errors import UsageError
from perdure.store.sql.d1.binding import Connecting
from perdure.store.sql.d1.failures import D1Failure

try:
    import httpx2
except ImportError as error:
    raise ImportError("D1 over HTTP needs the package httpx2: pip install 'perdure[d1]'") from error

BASE_URL: Final = "https://api.cloudflare.com/client/v4"
TIMEOUT_S: Final = 30.0
"""So long may one batch take: D1 itself allows no longer."""
CONNECT_TIMEOUT_S: Final = 5.0
BODY_CHARS_MAX: Final = 200
"""So much of an answer that is no JSON is repeated."""

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e]+")

Sent = tuple[str, Sequence[str | None]]


class D1Api(Connecting):
    """One database, reached with an API token that may read and write D1.

    `base_url` is where the API is. `client`, an `httpx2.AsyncClient`, replaces the HTTP client
    and stays the caller's to close. Cloudflare's documents do not say that a batch of this API is
    one transaction; what perdure writes is safe where it is cut after any statement.

    Raises UsageError for an id or a token that cannot be one.
    """

    def __init__(
        self,
        account_id: str,
        database_id: str,
        token: str,
        *,
        base_url: str = BASE_URL,
        client: httpx2.AsyncClient | None = None,
    ) -> None:
        for name, value in (("account", account_id), ("database", database_id)):
            if not _ID.fullmatch(value):
                raise UsageError(f"{value!r:.80} is no id of a Cloudflare {name}")
        if not _HEADER_VALUE.fullmatch(token):
            raise UsageError("the Cloudflare API token is empty, or holds what no token holds")
        if not base_url.startswith(("https://", "http://")):
            raise UsageError(f"{base_url!r:.80} is no address of an HTTP API")
        self.target = f"D1 {database_id}"
        self._url = f"{base_url.rstrip('/')}/accounts/{account_id}/d1/database/{database_id}/query"
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._owns_client = client is None
        self._client = client or httpx2.AsyncClient(verify=_trusted())

    def prepare(self, sql: str) -> ApiStatement:
        return ApiStatement(self, sql, ())

    async def batch(self, statements: Sequence[ApiStatement]) -> Sequence[Mapping[str, Any]]:
        """Run the statements in one request; return one result for each. Raises D1Failure."""
        sent = [(statement.sql, statement.values) for statement in statements]
        try:
            response = await self._client.post(
                self._url, headers=self._headers, json=_body(sent), timeout=_timeout()
            )
        except httpx2.RequestError as error:
            raise _failed(error) from error
        return _results_of(response, len(sent))

    def connect(self) -> ApiConnection:
        """Return a connection of its own, for one thread that is not the loop's."""
        return ApiConnection(self._url, self._headers)

    async def aclose(self) -> None:
        """Close the HTTP client, unless it was the caller's."""
        if self._owns_client:
            await self._client.aclose()


class ApiStatement(NamedTuple):
    """A statement with its parameters."""

    api: D1Api
    sql: str
    values: tuple[Any, ...]

    def bind(self, *values: Any) -> ApiStatement:
        return self._replace(values=values)

    async def first(self) -> Mapping[str, Any] | None:
        """Return the first row by column; None if there is none."""
        found: Sequence[Mapping[str, Any]] = (await self.all())["results"]
        return found[0] if found else None

    async def all(self) -> Mapping[str, Any]:
        (result,) = await self.api.batch([self])
        return result

    async def run(self) -> Mapping[str, Any]:
        return await self.all()


class ApiConnection:
    """The same for one thread that is not the loop's, which it blocks."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url = url
        self._client = httpx2.Client(headers=headers, timeout=_timeout(), verify=_trusted())

    def batch(self, statements: Sequence[Sent]) -> Sequence[Any]:
        """Run the statements in one request; return one result for each. Raises D1Failure."""
        try:
            response = self._client.post(self._url, json=_body(statements))
        except httpx2.RequestError as error:
            raise _failed(error) from error
        return _results_of(response, len(statements))

    def close(self) -> None:
        self._client.close()


@cache
def _trusted() -> SSLContext:
    """Return whom all clients trust: to read that takes longer than a call."""
    return httpx2.create_ssl_context()


def _timeout() -> httpx2.Timeout:
    return httpx2.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)


def _body(statements: Sequence[Sent]) -> dict[str, Any]:
    return {"batch": [{"sql": sql, "params": list(values)} for sql, values in statements]}


def _failed(error: httpx2.RequestError) -> D1Failure:
    return D1Failure(f"{type(error).__name__}: {error}".rstrip(": "))


def _results_of(response: httpx2.Response, count: int) -> Sequence[Mapping[str, Any]]:
    """Return the results of an answer; D1Failure for one that says no, or too little."""
    status = response.status_code
    try:
        answer = response.json()
    except ValueError as error:
        # Whatever stood between has answered: it cannot know what D1 did.
        text = f"status {status}: {response.text:.{BODY_CHARS_MAX}}"
        raise D1Failure(text, status=status if status >= 400 else 0) from error
    known = _fields(answer)
    if not known.get("success"):
        raise D1Failure(_message_of(known, status), status=max(status, 400))
    results = _items(known.get("result"))
    if len(results) != count:
        raise D1Failure(f"{len(results)} results for {count} statements")
    return [_fields(result) for result in results]


def _message_of(answer: Mapping[str, Any], status: int) -> str:
    errors = map(_fields, _items(answer.get("errors")))
    told = [f"{error.get('message')} (code {error.get('code')})" for error in errors]
    return "; ".join(told) or f"status {status}"


def _fields(value: Any) -> Mapping[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _items(value: Any) -> Sequence[Any]:
    return cast("Sequence[Any]", value) if isinstance(value, list) else ()
