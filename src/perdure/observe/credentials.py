"""The last pass over what leaves: texts that look like credentials are masked, wherever they are.

It is a net under the table of `sanitize`, not a substitute for it: a credential of a shape that
is not listed here, or one that two texts share between them, falls through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, cast

from perdure.core.records import JsonValue
from perdure.core.secret import REDACTED, redacted

_QUOTE: Final = r"(?:\\*[\"'])?"
"""Also as it stands in a JSON text within a JSON text, where it is behind backslashes."""
_NEXT: Final = rf"{_QUOTE}\s*(?:=>|[=:]|%3[DA]|,(?=\s*b[\"']))\s*b?"
"""What leads from a name to its value: in a header, a mapping, a pair, a call, an address."""
_VALUE: Final = (
    r"(?:\"(?:\\.|[^\"\\\r\n]){6,}(?:\"|\Z)|'(?:\\.|[^'\\\r\n]){6,}(?:'|\Z)"
    r"|\\+\"[^\"\r\n]{6,}\"|\\+'[^'\r\n]{6,}'|(?:\\*[\"'])?[^\s\"',;&}]{6,})"
)
_NAME: Final = (
    r"(?=[acepst_-])(?:password|passwd|passphrase|passcode|[_-]pass"
    r"|(?<![a-z])(?:pwd|secret|credential|token)"
    r"|(?-i:(?<=[a-z])(?:Secret|Credential|Token|Pwd)(?![a-z]))"
    r"|(?:api|access|private|account|secret|signing|encryption)[_-]?key)s?"
)

SHAPES: Final[tuple[tuple[str, str], ...]] = (
    (
        "private key",
        r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END [A-Z ]*-----|\Z)",
    ),
    (
        "header of a request",
        rf"(?i:\bauthorization{_NEXT}{_QUOTE}(?:[a-z0-9-]{{3,20}}\s+)?)[^\s\"',;&}}\]]+",
    ),
    ("cookie", rf"(?i:\bcookie(?:: |{_NEXT}{_QUOTE}(?=[^\s\"'=;]+=)))[^\r\n\"']{{6,}}"),
    ("bearer token", r"(?i:\b(?:bearer|basic) )[A-Za-z0-9._~+/=-]{12,}"),
    ("JSON web token", r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*)?"),
    (
        "key of a model provider",
        r"(?:\b(?:sk|pk|rk|xai|gsk|csk|pplx|nvapi|whsec|r8)|(?<=_)sk|(?<=%3[AD])sk)"
        r"[-_][A-Za-z0-9_-]{16,}",
    ),
    ("key of Google", r"\bAIza[A-Za-z0-9_-]{30,}|\bya29\.[A-Za-z0-9_-]{20,}"),
    ("key of AWS", r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b"),
    ("token of GitHub", r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}"),
    ("token of GitLab", r"\bglpat-[A-Za-z0-9_-]{16,}"),
    ("token of Slack", r"\b(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{10,}"),
    ("token of npm, PyPI or Hugging Face", r"\b(?:npm_|pypi-|hf_)[A-Za-z0-9_-]{20,}"),
    (
        "password or token in an address",
        r"(?<=://)(?:[^\s/:@]*:[^\s/]+|[A-Za-z0-9_~-]{16,})(?=@)",
    ),
    (
        "signature of an address",
        r"[?&](?i:key|sig|(?:x-(?:amz|goog)-)?signature|x-amz-security-token)="
        r"(?!\[redacted\])[^\s&\"'#]{6,}",
    ),
    (
        "option of a command",
        r"--(?<![\w-]--)(?i:(?:[a-z]+-){0,4}"
        rf"{_NAME}[\"']?,?\s+[\"']?(?=[^\s\"']*\d)[^\s\"']{{6,}})",
    ),
    (
        "named value",
        rf"(?i:{_NAME}(?:[_-]access)?(?:[_-](?:key|value|\d))?)(?i:{_NEXT})"
        rf"(?!{_QUOTE}\[redacted\]){_VALUE}",
    ),
)
"""What a credential looks like: its kind, and the pattern that finds it."""

_ANY: Final = re.compile("|".join(f"(?:{pattern})" for _, pattern in SHAPES))
_NAMES: Final = re.compile(
    r"(?i:.*(?:passwords?|passwd|passphrase|passcode|pwd|[_-]pass|secrets?|credentials?"
    r"|(?:api|access|private|account|secret|signing|encryption)[_-]?keys?"
    r"|token|authorization|cookies?|[_-]jwt|connection[_-]?string)(?:[_-]?(?:value|pem|\d+))?"
    r"|pass|pwd|jwt|bearer|dsn)"
)


def mask_text(text: str) -> str:
    """Return `text` with every part that looks like a credential as `[redacted]`."""
    return _ANY.sub(REDACTED, text)


def mask_credentials(value: JsonValue) -> JsonValue:
    """Return `value` with every text in it masked, keys of objects included.

    What stands under a key that names a credential, such as `password`, is masked whole: a text,
    and also an object or a list, whatever is in it.
    """
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        entries = cast("Mapping[str, JsonValue]", value)
        return {mask_text(key): _mask_member(key, item) for key, item in entries.items()}
    if isinstance(value, list | tuple):
        return [mask_credentials(item) for item in cast("list[JsonValue]", value)]
    return value


def shown(value: JsonValue) -> JsonValue:
    """Return a stored value for who looks at it: no marked secret, and nothing like a credential.

    Every view of stored values passes here, whatever the viewer may see.
    """
    return mask_credentials(redacted(value))


def as_asked(given: JsonValue, asked: JsonValue) -> JsonValue:
    """Return what somebody gave back who saw `shown(asked)`, with what was masked put in again.

    What was not changed is what was asked; what was changed stays as it was given.
    """
    if given == shown(asked):
        return asked
    if isinstance(given, Mapping) and isinstance(asked, Mapping):
        news = cast("Mapping[str, JsonValue]", given)
        known = cast("Mapping[str, JsonValue]", asked)
        return {
            key: as_asked(item, known[key]) if key in known else item for key, item in news.items()
        }
    if isinstance(given, list) and isinstance(asked, list | tuple):
        items = cast("Sequence[JsonValue]", given)
        were = cast("Sequence[JsonValue]", asked)
        if len(items) == len(were):
            return [as_asked(item, was) for item, was in zip(items, were, strict=True)]
    return cast("JsonValue", given)


def _mask_member(key: str, value: JsonValue) -> JsonValue:
    if value and isinstance(value, str | Mapping | list | tuple) and _NAMES.fullmatch(key):
        return REDACTED
    return mask_credentials(value)
