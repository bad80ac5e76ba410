"""Secret: a text that shows itself only to who asks for it by name."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn, cast

from perdure.core.records import JsonValue

REDACTED: Final = "[redacted]"
"""What stands where something was left out."""
_TAG: Final = "$secret"
"""The only key of an object that is a secret in a record."""


class Secret:
    """A text that no log line, message or record shows by accident.

    `repr`, `str` and every format give `[redacted]`; as JSON it is refused where values are
    stored, and redacted where records become JSON (`core/wire.py`); it cannot be pickled.
    `reveal()` returns the text. Two secrets are equal if their texts are.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself; hand it to nobody but who needs it."""
        return self._text

    def recorded(self) -> dict[str, JsonValue]:
        """Return the form in which a record keeps the text: `{"$secret": text}`.

        It is plain JSON, and no protection by itself: the dashboard and the command line show
        `[redacted]` in its place, and `secret_of` reads it.
        """
        return {_TAG: self._text}

    def __repr__(self) -> str:
        return f"Secret({REDACTED!r})"

    def __str__(self) -> str:
        return REDACTED

    def __format__(self, spec: str) -> str:
        return format(REDACTED, spec)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._data(), other._data())

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        """Return this one, so that records with a secret in them can be copied (`asdict` does)."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled; reveal it to who needs it")

    def __getstate__(self) -> NoReturn:
        """Refuse: serialisers that know objects by their state ask for it."""
        self.__reduce__()

    def _data(self) -> bytes:
        return self._text.encode("utf-8", "surrogatepass")


def secret_of(value: JsonValue) -> JsonValue:
    """Return the Secret whose recorded form `value` is, and any other value as it is."""
    if not isinstance(value, Mapping):
        return value
    members = cast("Mapping[str, JsonValue]", value)
    text = members.get(_TAG)
    return Secret(text) if isinstance(text, str) and len(members) == 1 else members


def redacted(value: JsonValue) -> JsonValue:
    """Return a recorded value for who looks at it: `[redacted]` for each secret in it."""
    if isinstance(secret_of(value), Secret):
        return REDACTED
    if isinstance(value, Mapping):
        members = cast("Mapping[str, JsonValue]", value)
        return {key: redacted(item) for key, item in members.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in cast("Sequence[JsonValue]", value)]
    return value
