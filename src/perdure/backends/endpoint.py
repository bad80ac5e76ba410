"""The HTTP side of a backend: streamed calls with retries, time limits and safe error texts."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final, TypeVar

from perdure.backends.headers import check_headers, merged, secrets_in
from perdure.backends.provider_error import read_error
from perdure.backends.retry import BackendRetry, RetryReserve, retry_after_ms
from perdure.core import billing
from perdure.core.effects import random_float, system_clock
from perdure.core.secret import REDACTED
from perdure.core.wording import cut_body
from perdure.errors import BackendTimeoutError, BackendTransportError, UsageError

try:
    import httpx2
except ImportError as error:
    raise ImportError(
        "this backend needs the package httpx2: "
        "pip install 'perdure[openai]' or pip install 'perdure[anthropic]'"
    ) from error

T = TypeVar("T")

ERROR_BODY_BYTES_MAX: Final = 16 * 1024
ERROR_BODY_WAIT_MS: Final = 2_000
KEPT_CONNECTIONS_MAX: Final = 100

_NO_STREAM_TYPES = ("application/json", "text/html")
_NEVER_ASKED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_LOST_STATUSES = frozenset({0, 408, 502, 504})
"""None at all, and what somebody on the way says of a provider that he no longer waits for."""
_SHOULD_RETRY = {"true": True, "false": False}
_REQUEST_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)


def stream_headers(api_key: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers of a request whose answer is streamed; the caller's own win."""
    authorization = {"Authorization": f"Bearer {api_key.strip()}"} if api_key else {}
    return {
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        **authorization,
        **(headers or {}),
    }


class Endpoint:
    """One address of a provider, and how it is called.

    `client` replaces the HTTP client and stays the caller's to close. `refuse_first` raises
    BackendTransportError for first bytes that are an error: then a POST is tried again, as after
    a status. Raises UsageError for an address, a header or a limit that cannot be used.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        path: str,
        headers: Mapping[str, str],
        retry: BackendRetry,
        idle_timeout_ms: float,
        client: httpx2.AsyncClient | None,
        refuse_first: Callable[[bytes], None] | None = None,
    ) -> None:
        if not 0 <= idle_timeout_ms < math.inf:
            raise UsageError(
                f"idle_timeout_ms is {idle_timeout_ms}, but must be 0 or more, and finite"
            )
        check_headers(headers)
        base = _address(base_url)
        self.name = name
        self.retry = retry
        self._reserve = RetryReserve(retry.reserve_max)
        self.idle_timeout_ms = idle_timeout_ms
        self._url = base.copy_with(path=base.path.removesuffix("/") + path)
        self._headers = merged(httpx2.Headers(), headers)
        self._secrets = secrets_in(base, headers)
        self._refuse_first = refuse_first
        self._owns_client = client is None
        self._client = client or httpx2.AsyncClient(
            timeout=None,
            limits=httpx2.Limits(
                max_connections=None, max_keepalive_connections=KEPT_CONNECTIONS_MAX
            ),
        )

    async def post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Return the answer once its first bytes are here; the caller closes it.

        Tries again, as the policy says, after a status that may pass, a lost connection, or too
        long a silence; a try that may be billed is recorded before. Raises BackendTransportError.
        """
        check_headers(headers)
        return await self._begun("POST", self._url, headers, body)

    async def get(self, below: str, params: Mapping[str, str]) -> Answer:
        """Return, like `post`, the answer of the address `below` this one."""
        url = self._below(below)
        return await self._begun("GET", url.copy_merge_params(params), {}, b"")

    async def call(self, method: str, below: str) -> str:
        """Return the whole answer of the address `below` this one, which is tried as `get` is."""

        headers = merged(self._headers, {"Accept": "application/json"})

        async def attempt() -> str:
            async with self._in_time():
                response = await self._client.request(
                    method, self._below(below), headers=headers, timeout=None
                )
            if not response.is_success:
                raise BackendTransportError(
                    f"{self} answered with status {response.status_code}",
                    backend=self.name,
                    status=response.status_code,
                    body=self.quote(response.text),
                    retryable=response.status_code in self.retry.retry_statuses,
                    retry_after_ms=retry_after_ms(response.headers, now_ms=system_clock()),
                )
            return response.text

        return await self._tried(attempt)

    async def _begun(
        self, method: str, url: httpx2.URL, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        async def attempt() -> Answer:
            sent = merged(self._headers, headers)
            request = self._client.build_request(
                method, url, content=body, headers=sent, timeout=None
            )
            return await self._attempt(request)

        return await self._tried(attempt, is_billed=method == "POST")

    async def _tried(self, attempt: Callable[[], Awaitable[T]], *, is_billed: bool = False) -> T:
        """Return what an attempt comes to, made again as the policy says."""
        self._check_open()
        tries = 0
        while True:
            tries += 1
            try:
                found = await attempt()
                self._reserve.answered(tries=tries)
                return found
            except BackendTransportError as failure:
                self.hide_secrets(failure)
                is_over = not failure.retryable or tries >= self.retry.tries_max
                if is_over or not self._reserve.take():
                    raise
                if is_billed and _may_be_billed(failure):
                    await billing.request_lost(self.name)
                wait_ms = self.retry.wait_ms(
                    tries, chance=random_float(), retry_after_ms=failure.retry_after_ms
                )
            await asyncio.sleep(wait_ms / 1_000)

    async def aclose(self) -> None:
        """Close the connections, if the HTTP client is not the caller's."""
        if self._owns_client:
            await self._client.aclose()

    def quote(self, words: str) -> str:
        """Return what of a provider's words may be kept: no secrets, and 2,048 characters.

        Where there was more stands an ellipsis behind them.
        """
        for secret in self._secrets:
            words = words.replace(secret, REDACTED)
        return cut_body(words)

    def hide_secrets(self, failure: BackendTransportError) -> None:
        """Take what the provider gave back of our secrets out of a failure: text and body."""
        failure.args = tuple(self.quote(text) for text in failure.args)
        failure.body = self.quote(failure.body)

    def lost(self, error: httpx2.RequestError, *, status: int = 0) -> BackendTransportError:
        """Return the failure that stands for `error` of the HTTP client."""
        ours = isinstance(error, httpx2.LocalProtocolError | httpx2.UnsupportedProtocol)
        reason = self.quote(f"{type(error).__name__}: {error}".removesuffix(": "))
        what = "broke off its answer" if status else "could not be asked"
        return BackendTransportError(
            f"{self} {what} ({reason})", backend=self.name, status=status, retryable=not ours
        )

    def __str__(self) -> str:
        return f"{self.name} at {self._url.netloc.decode('ascii')}"

    def _check_open(self) -> None:
        if self._client.is_closed:
            raise UsageError(f"the backend {self.name!r} is closed")

    def _below(self, path: str) -> httpx2.URL:
        return self._url.copy_with(path=self._url.path + path)

    def _too_late(self) -> BackendTimeoutError:
        return BackendTimeoutError(
            f"{self} did not begin to answer within {self.retry.request_timeout_ms:g} ms",
            backend=self.name,
        )

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncGenerator[None, None]:
        """Limit one try in time; what it fails by is a BackendTransportError."""
        try:
            async with asyncio.timeout(self.retry.request_timeout_ms / 1_000 or None):
                yield
        except TimeoutError as error:
            raise self._too_late() from error
        except httpx2.RequestError as error:
            raise self.lost(error) from error

    async def _attempt(self, request: httpx2.Request) -> Answer:
        async with self._in_time():
            response = await self._client.send(request, stream=True)
            answer = Answer(self, response)
            try:
                await self._check(answer)
                first = await answer.begin()
                if self._refuse_first is not None and request.method == "POST":
                    self._refuse_first(first)
            except BaseException:
                await answer.aclose()
                raise
            return answer

    async def _check(self, answer: Answer) -> None:
        status, kind = answer.status, answer.content_type
        if answer.is_success and kind not in _NO_STREAM_TYPES:
            return
        body = await answer.read_error_body()
        error = read_error(body)
        if answer.is_success:
            what = f"answered with {kind}, not with a stream of events"
            retryable = error is not None and error.may_pass(self.retry.retry_statuses)
            status = error.status or status if error is not None else status
        else:
            what = f"answered with status {status}"
            # Too many requests: for now, or because nobody has paid?
            refused = status == HTTPStatus.TOO_MANY_REQUESTS and error and error.permanent
            retryable = status in self.retry.retry_statuses and not refused
            if answer.should_retry is not None:
                retryable = answer.should_retry
        code = f" ({error.code})" if error is not None and error.code else ""
        request = f" [{answer.request_id}]" if answer.request_id else ""
        raise BackendTransportError(
            f"{self} {what}{code}{request}",
            backend=self.name,
            status=status,
            body=self.quote(body),
            retryable=retryable,
            retry_after_ms=answer.retry_after_ms,
        )


class Answer:
    """A response whose body is being read."""

    def __init__(self, endpoint: Endpoint, response: httpx2.Response) -> None:
        self._endpoint = endpoint
        self._response = response
        self._chunks = response.aiter_bytes()
        self._first: bytes | None = None

    @property
    def status(self) -> int:
        """The status of the response."""
        return self._response.status_code

    @property
    def is_success(self) -> bool:
        """Whether the status is one of success."""
        return self._response.is_success

    @property
    def content_type(self) -> str:
        """The media type, in lower case and without parameters."""
        return self._response.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def request_id(self) -> str | None:
        """The id by which the provider finds this call, if it gave one."""
        headers = self._response.headers
        id = headers.get("request-id", headers.get("x-request-id", ""))
        return id if _REQUEST_ID.fullmatch(id) and self._endpoint.quote(id) == id else None

    @property
    def should_retry(self) -> bool | None:
        """What the provider itself says of a further try, None if it does not."""
        return _SHOULD_RETRY.get(self._response.headers.get("x-should-retry", ""))

    @property
    def retry_after_ms(self) -> float | None:
        """How long the provider asks to wait, None if it does not."""
        return retry_after_ms(self._response.headers, now_ms=system_clock())

    async def begin(self) -> bytes:
        """Wait for the first bytes and return them; the next `chunk` returns them again."""
        self._first = await anext(self._chunks, b"")
        return self._first

    async def chunk(self, limit_ms: float) -> bytes:
        """Return the next bytes, none at the end of the response.

        Raises BackendTimeoutError after `limit_ms` (0: never) without a byte, and
        BackendTransportError when the connection is lost.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            async with asyncio.timeout(limit_ms / 1_000 or None):
                return await anext(self._chunks, b"")
        except TimeoutError as error:
            raise BackendTimeoutError(
                f"{self._endpoint} sent nothing for {limit_ms:g} ms within its answer",
                backend=self._endpoint.name,
                status=self.status,
            ) from error
        except httpx2.RequestError as error:
            raise self._endpoint.lost(error, status=self.status) from error

    async def read_error_body(self) -> str:
        """Return the beginning of the body, as much as comes soon."""
        body = b""
        # The status is known: that its explanation cannot be read must not hide it.
        with contextlib.suppress(TimeoutError, httpx2.RequestError):
            async with asyncio.timeout(ERROR_BODY_WAIT_MS / 1_000):
                while len(body) < ERROR_BODY_BYTES_MAX:
                    chunk = await anext(self._chunks, b"")
                    if not chunk:
                        break
                    body += chunk
        return body[:ERROR_BODY_BYTES_MAX].decode("utf-8", "replace")

    async def aclose(self) -> None:
        """End the response; a connection with an unread rest is closed."""
        try:
            await self._chunks.aclose()
        finally:
            await self._response.aclose()


def _address(base_url: str) -> httpx2.URL:
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:
        url = httpx2.URL()
    if url.scheme not in ("http", "https") or not url.host:
        # The address is not shown: it may hold a password or a key.
        raise UsageError("base_url must be an address such as https://api.openai.com/v1")
    return url


def _may_be_billed(failure: BackendTransportError) -> bool:
    """Return whether the provider may have answered, and only its answer was lost."""
    if isinstance(failure.__cause__, _NEVER_ASKED):
        return False
    return failure.status in _LOST_STATUSES
