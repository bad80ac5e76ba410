"""What comes along with a user's message: references to files that are kept elsewhere."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple, cast

from perdure.core.jsonvalue import encode_value
from perdure.core.limits import ATTACHMENT_BYTES_MAX, ATTACHMENTS_MAX
from perdure.core.records import JsonValue
from perdure.errors import UsageError

_OPTIONAL: Final[dict[str, type]] = {"name": str, "sizeBytes": int, "sha256": str, "url": str}
_REQUIRED: Final[dict[str, type]] = {"id": str, "mediaType": str}
_KNOWN: Final = (*_REQUIRED, *_OPTIONAL)
URL_SCHEMES: Final = ("http", "https")
"""What the address of an attachment may begin with where nothing else is declared."""
_NEVER: Final = frozenset({"blob", "data", "javascript", "vbscript"})
"""Schemes of what carries a file or code itself, or is known to one browser only."""
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*", re.ASCII)
_UNSAFE: Final = re.compile(r"[\x00-\x20\x7f\\]")
"""A browser drops some of these, and then sees another scheme than was checked."""


class Attachment(NamedTuple):
    """A file that the user's message comes with, by reference.

    The product keeps the file, under `id`; what is stored with the turn is only this. `sha256`
    (lower-case hex) makes another file under the same id another message. `url` is for whoever
    needs one to fetch it: an engine accepts http, https and the `attachment_schemes` it was given.
    """

    id: str
    media_type: str
    name: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    url: str | None = None


def checked_schemes(schemes: Collection[str]) -> tuple[str, ...]:
    """Return http, https and the schemes that an application declares, such as "s3".

    Raises UsageError for one that is none, or that nobody may declare (`javascript`, `data`, …).
    """
    if isinstance(schemes, str):
        raise UsageError("attachment_schemes must be a list of schemes, not one text")
    known = [*URL_SCHEMES]
    for scheme in schemes:
        lower = scheme.lower()
        if not _SCHEME.fullmatch(lower):
            raise UsageError(f"{scheme!r:.60} is no scheme: name it without its colon, as 's3'")
        if lower in _NEVER:
            raise UsageError(f"addresses of attachments may never have the scheme {scheme!r}")
        known.append(lower)
    return tuple(dict.fromkeys(known))


def check_urls(attachments: Sequence[Attachment], *, schemes: Sequence[str] = URL_SCHEMES) -> None:
    """Raise UsageError for the first address that has none of the (lower-case) schemes."""
    for place, attachment in enumerate(attachments):
        url = attachment.url
        if url is None:
            continue
        name = f"attachments[{place}].url"
        if _UNSAFE.search(url):
            raise UsageError(f"{name} has a space, a control character or a backslash in it")
        scheme, colon, rest = url.partition(":")
        if not colon or scheme.lower() not in schemes:
            raise UsageError(
                f"{name} must begin with one of {', '.join(f'{each}:' for each in schemes)} "
                f"and begins with {url[:20]!r}; an application declares further schemes as "
                "`attachment_schemes` of its engine"
            )
        if scheme.lower() in URL_SCHEMES and len(rest.lstrip("/")) in (0, len(rest)):
            raise UsageError(f"{name} must name a host, as https://files.example/7 does")


def attachments_to_json(attachments: Sequence[Attachment]) -> list[JsonValue]:
    """Return attachments as they are stored. Raises UsageError that names the wrong one."""
    if len(attachments) > ATTACHMENTS_MAX:
        raise UsageError(f"a message has {ATTACHMENTS_MAX} attachments at most")
    return [_to_json(each, f"attachments[{place}]") for place, each in enumerate(attachments)]


def attachments_from_json(value: JsonValue, *, name: str = "attachments") -> list[Attachment]:
    """Return the attachments of their JSON form. Raises UsageError that names the wrong one."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise UsageError(f"`{name}` must be a list")
    found = cast("list[object]", value)
    return [_from_json(each, f"{name}[{place}]") for place, each in enumerate(found)]


def _to_json(attachment: Attachment, name: str) -> JsonValue:
    if not _is_attachment(attachment):
        raise UsageError(f"{name} must be an Attachment, not {attachment!r:.60}")
    members = {
        "id": attachment.id,
        "mediaType": attachment.media_type,
        "name": attachment.name,
        "sizeBytes": attachment.size_bytes,
        "sha256": attachment.sha256,
        "url": attachment.url,
    }
    known = {key: value for key, value in members.items() if value is not None}
    # The one check of all fields, whichever way they came.
    _from_json(known, name)
    encode_value(known, name=name, bytes_max=ATTACHMENT_BYTES_MAX)
    return known


def _is_attachment(value: object) -> bool:
    return isinstance(value, Attachment)


def _from_json(value: object, name: str) -> Attachment:
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} must be an object with `id` and `mediaType`")
    members = cast("Mapping[str, object]", value)
    for member in members:
        if member not in _KNOWN:
            raise UsageError(f"{name} has no field {member!r:.60} (known: {', '.join(_KNOWN)})")
    for member, kind in _REQUIRED.items():
        if type(members.get(member)) is not kind or not members[member]:
            raise UsageError(f"{name}.{member} must be a text that is not empty")
    for member, kind in _OPTIONAL.items():
        if members.get(member) is not None and type(members[member]) is not kind:
            raise UsageError(f"{name}.{member} must be of type {kind.__name__}")
    url = members.get("url")
    if isinstance(url, str) and url[:5].lower() == "data:":
        raise UsageError(
            f"{name}.url carries the file itself: keep it elsewhere, and attach a reference to it"
        )
    fields = [members.get(member) for member in _KNOWN]
    return Attachment._make(fields)
