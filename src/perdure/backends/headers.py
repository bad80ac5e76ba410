"""The headers of a request: what may stand in them, and what of them is secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from perdure.errors import UsageError

if TYPE_CHECKING:
    import httpx2

SECRET_CHARS_MIN: Final = 8
"""A shorter value of a header is no secret: to blank it would make errors unreadable."""
PLAIN_HEADERS: Final = frozenset({"accept", "anthropic-version", "content-type"})
"""Headers that hold no secret, whatever their length."""

_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise UsageError for a header that cannot be sent; its value is not shown."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise UsageError(f"{name[:40]!r} cannot be the name of a header")
        if not _HEADER_VALUE.fullmatch(value):
            raise UsageError(f"the value of the header {name} must be printable ASCII")


def merged(headers: httpx2.Headers, more: Mapping[str, str]) -> httpx2.Headers:
    """Return the headers with more of them, which count before those of the same name."""
    found = headers.copy()
    for name, value in more.items():
        found[name] = value
    return found


def secrets_in(url: httpx2.URL, headers: Mapping[str, str]) -> list[str]:
    """Return what nobody may see of an address and its headers, the longest first."""
    secret = (value for name, value in headers.items() if name.lower() not in PLAIN_HEADERS)
    values = [value.rpartition(" ")[2] for value in secret]
    values += [url.username, url.password, *url.params.values()]
    found = {value for value in values if len(value) >= SECRET_CHARS_MIN}
    # One may be a part of another.
    return sorted(found, key=lambda value: (-len(value), value))
