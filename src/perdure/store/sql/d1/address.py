"""The address of a D1 store, and what of it comes from the environment."""

from __future__ import annotations

import os
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from perdure.errors import UsageError

FORM: Final = "d1:ACCOUNT_ID/DATABASE_ID"
TOKEN_VARIABLE: Final = "CLOUDFLARE_API_TOKEN"
BASE_URL_VARIABLE: Final = "CLOUDFLARE_API_BASE_URL"


class Address(NamedTuple):
    """Where a store lies. `base_url` None: where Cloudflare's API is."""

    account_id: str
    database_id: str
    token: str
    base_url: str | None


def read_address(url: str) -> Address:
    """Return the parts of `url`, with the token of the environment.

    A token has no place in an address, which is logged and shown. Raises UsageError that names
    what is wrong.
    """
    rest, _, query = url.removeprefix("d1:").partition("?")
    account_id, slash, database_id = rest.removeprefix("//").strip("/").partition("/")
    if not slash or not account_id or not database_id or "/" in database_id:
        raise UsageError(f"{url.partition('?')[0]!r:.80} is no address of D1: write {FORM}")
    if "@" in account_id:
        raise UsageError(f"a token has no place in an address of D1: set {TOKEN_VARIABLE}")
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    base_url = parameters.pop("base_url", None) or os.environ.get(BASE_URL_VARIABLE) or None
    if parameters:
        raise UsageError(
            f"{next(iter(parameters))!r:.40} in the address of D1 is not understood: it knows "
            "base_url only"
        )
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        missing = UsageError(f"a D1 database over HTTP needs a token: set {TOKEN_VARIABLE}")
        missing.hint = "Create an API token with the permission to edit D1, and set the variable."
        raise missing
    return Address(account_id, database_id, token, base_url)
