"""The address of a PostgreSQL store, and what of it is for us."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from perdure.errors import UsageError
from perdure.store.sql.postgres.dialect import check_schema_name

SCHEMA: Final = "perdure"
"""The schema of a store that names none."""

_TRUE: Final = frozenset({"1", "true", "yes"})
_FALSE: Final = frozenset({"", "0", "false", "no"})


class Address(NamedTuple):
    """Where a store lies. `target` is for messages: it has no password."""

    conninfo: str
    schema: str
    is_pooled: bool
    target: str


def read_address(url: str) -> Address:
    """Return the parts of `url`. Raises UsageError that names what is wrong."""
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise UsageError(f"{url!r:.40} is no address of PostgreSQL: it begins with postgresql://")
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    schema = check_schema_name(parameters.pop("schema", SCHEMA))
    pooled = parameters.pop("pooled", "").lower()
    if pooled not in _TRUE | _FALSE:
        raise UsageError(f"pooled={pooled!r:.20} in the address is neither 1 nor 0")
    conninfo = urlunsplit(parts._replace(scheme="postgresql", query=urlencode(parameters)))
    where = f"{parts.hostname or 'localhost'}{f':{parts.port}' if parts.port else ''}{parts.path}"
    return Address(conninfo, schema, pooled in _TRUE, f"postgresql://{where}, schema {schema}")
