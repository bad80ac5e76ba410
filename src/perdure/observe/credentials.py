"""The last pass over what leaves: texts that look like credentials are masked, wherever they are.

It is a net under the table of `sanitize`, not a substitute for it: a credential of a shape that
is not among the `shapes`, or one of which a text has a part only, falls through.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, cast

from perdure.core.records import JsonValue
from perdure.core.secret import REDACTED, redacted
from perdure.observe.shapes import SHAPES

_HINTS: Final = tuple(tuple(shape.hints.split()) for shape in SHAPES)
_NAMES: Final = re.compile(
    r"(?i:.*(?:passwords?|passwd|passphrase|passcode|pwd|[_-]pass|secrets?|credentials?"
    r"|(?:api|access|private|account|secret|signing|encryption)[ _-]?keys?"
    r"|token|authorization|cookies?|[_-]jwt|connection[_-]?string)(?:[_-]?(?:value|pem|\d+))?"
    r"|pass|pwd|jwt|bearer|dsn)"
)
_PAIR: Final = 2
_LOGIN_NAMES: Final = re.compile(r"(?i:(?:basic|http|proxy)?[_-]?auth|userpwd)")
_LOGIN_OPTIONS: Final = frozenset({"-u", "-U", "--user", "--proxy-user"})
_LOGIN: Final = re.compile(r"(?!\d+:\d)[^\s:/]{1,80}:(?![\\/])\S+")


def mask_text(text: str) -> str:
    """Return `text` with every part that looks like a credential as `[redacted]`."""
    kept: list[str] = []
    at = 0
    for begin, end in credentials_in(text):
        kept += (text[at:begin], REDACTED)
        at = end
    return "".join((*kept, text[at:])) if kept else text


def credentials_in(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each part of `text` begins and ends that looks like a credential, in order."""
    folded = text.casefold()
    hinted = tuple(
        number for number, hints in enumerate(_HINTS) if any(hint in folded for hint in hints)
    )
    if not hinted:
        return
    search = _pattern_of(hinted).search
    at = 0
    while (found := search(text, at)) is not None:
        lead = found.lastgroup
        at, end = found.span() if lead is None else (found.end(lead), found.end())
        # Prose has words behind "basic", and other credentials may stand in what is none.
        if lead != "basic" or _is_login(text[at:end]):
            yield at, end
            at = end


@lru_cache(maxsize=256)
def _pattern_of(numbers: tuple[int, ...]) -> re.Pattern[str]:
    """Return the pattern that finds what has one of these shapes."""
    return re.compile("|".join(f"(?:{SHAPES[number].pattern})" for number in numbers))


def mask_credentials(value: JsonValue) -> JsonValue:
    """Return `value` with every text in it masked, keys of objects included.

    What stands under a key that names a credential, such as `password`, is masked whole: a text,
    and also an object or a list, whatever is in it. So is the second of a pair in a list of pairs,
    the `value` beside such a `name`, and the item behind such an option (`--password`).
    """
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        entries = cast("Mapping[str, JsonValue]", value)
        name = entries.get("name", entries.get("key"))
        named = {"value": name} if isinstance(name, str) else {}
        return {
            mask_text(key): _mask_member(named.get(key, key), item) for key, item in entries.items()
        }
    if isinstance(value, list | tuple):
        return _mask_items(cast("Sequence[JsonValue]", value))
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
    return _unmasked(given, asked, shown(asked))


def _unmasked(given: JsonValue, asked: JsonValue, seen: JsonValue) -> JsonValue:
    """Return what was given with what was asked in every place that is as it was seen."""
    if given == seen:
        return asked
    if isinstance(given, Mapping) and isinstance(asked, Mapping) and isinstance(seen, Mapping):
        known = cast("Mapping[str, JsonValue]", asked)
        names = {mask_text(name): name for name in known}
        entries = cast("Mapping[str, JsonValue]", given).items()
        return {
            names.get(key, key): _unmasked(item, known[names[key]], seen[key])
            if key in names
            else item
            for key, item in entries
        }
    if isinstance(given, list) and isinstance(asked, list | tuple) and isinstance(seen, list):
        items = cast("Sequence[JsonValue]", given)
        were = cast("Sequence[JsonValue]", asked)
        shown_ones = cast("Sequence[JsonValue]", seen)
        if len(items) == len(were):
            return [_unmasked(*each) for each in zip(items, were, shown_ones, strict=True)]
    return cast("JsonValue", given)


def _mask_member(key: str, value: JsonValue) -> JsonValue:
    if value and isinstance(value, str | Mapping | list | tuple) and _NAMES.fullmatch(key):
        return REDACTED
    if _LOGIN_NAMES.fullmatch(key) and _is_user_and_password(value):
        return REDACTED
    return mask_credentials(value)


def _mask_items(items: Sequence[JsonValue]) -> list[JsonValue]:
    """Return the items of a list, which may be pairs, or the words of a command."""
    if items and all(map(_is_named, items)):
        return [[mask_text(name), _mask_member(name, item)] for name, item in items]
    masked: list[JsonValue] = []
    before: JsonValue = None
    for item in items:
        masked.append(REDACTED if _is_option_value(before, item) else mask_credentials(item))
        before = item
    return masked


def _is_named(value: JsonValue) -> bool:
    """Return whether the value is a pair of a name and something."""
    if not isinstance(value, list | tuple) or len(cast("Sequence[JsonValue]", value)) != _PAIR:
        return False
    return isinstance(cast("Sequence[JsonValue]", value)[0], str)


def _is_option_value(option: JsonValue, item: JsonValue) -> bool:
    """Return whether the item is what the option of a command before it names."""
    if not isinstance(option, str) or not isinstance(item, str) or option[:1] != "-":
        return False
    if option in _LOGIN_OPTIONS:
        return _LOGIN.fullmatch(item) is not None
    if not option.startswith("--") or option.startswith("--no-") or item.startswith("-"):
        return False
    return _NAMES.fullmatch(option) is not None


def _is_user_and_password(value: JsonValue) -> bool:
    if isinstance(value, str):
        return _LOGIN.fullmatch(value) is not None
    if not isinstance(value, list | tuple):
        return False
    items = cast("Sequence[JsonValue]", value)
    return len(items) == _PAIR and all(isinstance(item, str) for item in items)


def _is_login(text: str) -> bool:
    """Return whether the text is a user and a password, as HTTP writes them."""
    plain = text.rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        said = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return False
    return ":" in said and said.isprintable()
