"""Envelope encryption: values under data keys, data keys under the keys of whoever owns them.

AES-SIV (RFC 5297) for the values: it is deterministic, so that a repeated write is recognised,
and it needs no nonces that could ever be used twice. A sealed value carries the id of the outer
key and its wrapped data key, so that any process which has the outer keys can open it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

from perdure.core.effects import monotonic_ms, random_bytes
from perdure.errors import UsageError, ValueSealedError
from perdure.store.sealing import ValuePlace

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV
    from cryptography.hazmat.primitives.keywrap import (
        InvalidUnwrap,
        aes_key_unwrap,
        aes_key_wrap,
    )
except ImportError as error:
    raise ImportError(
        "sealing values needs cryptography: pip install 'perdure[encryption]'"
    ) from error

DATA_KEY_MS: Final = 60 * 60 * 1000
"""A data key seals new values for so long; then the next one is wrapped."""

_FORM: Final = "1"
_DATA_KEY_BYTES: Final = 32
_OUTER_KEY_BYTES: Final = frozenset({16, 24, 32})
_OPENED_KEPT: Final = 1_024


class KeyRing(Protocol):
    """The outer keys, wherever they are kept: a file, a vault, a key management service."""

    def key_id(self, tenant: str) -> str:
        """Return the id of the key that new values of `tenant` are sealed under."""
        ...

    async def wrap(self, key_id: str, data_key: bytes) -> bytes:
        """Return `data_key`, encrypted under the key of this id."""
        ...

    async def unwrap(self, key_id: str, wrapped: bytes) -> bytes:
        """Return what was wrapped. Raises ValueSealedError where the key is not there any more."""
        ...


class LocalKeys:
    """Outer keys in memory: 16, 24 or 32 random bytes each, by their ids.

    `current` is the id of the key for new values, or a function from a tenant to one. Old keys
    stay in `keys` for as long as values that they protect shall be readable; a tenant whose only
    key is taken away cannot be read any more, nor can his backups.
    """

    def __init__(self, keys: Mapping[str, bytes], *, current: str | Callable[[str], str]) -> None:
        for key_id, key in keys.items():
            if len(key) not in _OUTER_KEY_BYTES:
                raise UsageError(f"the key {key_id!r} has {len(key)} bytes; 32 are right")
        if isinstance(current, str) and current not in keys:
            raise UsageError(f"the current key {current!r} is not among the keys")
        self._keys = dict(keys)
        self._current = current

    def key_id(self, tenant: str) -> str:
        return self._current if isinstance(self._current, str) else self._current(tenant)

    async def wrap(self, key_id: str, data_key: bytes) -> bytes:
        return aes_key_wrap(self._key(key_id), data_key)

    async def unwrap(self, key_id: str, wrapped: bytes) -> bytes:
        try:
            return aes_key_unwrap(self._key(key_id), wrapped)
        except (InvalidUnwrap, ValueError) as error:
            raise ValueSealedError(
                f"the key {key_id!r} is not the one that this value was sealed under"
            ) from error

    def _key(self, key_id: str) -> bytes:
        try:
            return self._keys[key_id]
        except KeyError:
            raise ValueSealedError(f"there is no key {key_id!r} in the key ring") from None


class _DataKey(NamedTuple):
    cipher: AESSIV
    key_id: str
    wrapped: str
    until_ms: float


class EnvelopeSealer:
    """Seals values with AES-SIV under data keys that a `KeyRing` wraps.

    A data key serves one tenant for an hour (`data_key_ms`), so a key service is asked about once
    an hour and tenant, and once for every data key that is met in reading; the last 1,024 of them
    stay in memory. Needs `pip install 'perdure[encryption]'`.
    """

    def __init__(self, keys: KeyRing, *, data_key_ms: int = DATA_KEY_MS) -> None:
        self._keys = keys
        self._data_key_ms = data_key_ms
        self._sealing: dict[str, _DataKey] = {}
        self._opening: OrderedDict[tuple[str, str], AESSIV] = OrderedDict()

    async def seal(self, text: str, place: ValuePlace) -> str:
        """Return `text` sealed for `place`, as ASCII."""
        key = await self._data_key(place.tenant)
        sealed = key.cipher.encrypt(text.encode("utf-8", "surrogatepass"), _bound_to(place))
        key_id = _to_text(key.key_id.encode())
        return ".".join((_FORM, key_id, key.wrapped, _to_text(sealed)))

    async def open(self, sealed: str, place: ValuePlace) -> str:
        """Return what was sealed. Raises ValueSealedError: no key, another place, or changed."""
        try:
            form, key_text, wrapped, body = sealed.split(".")
            if form != _FORM:
                raise ValueError(f"its form is {form!r:.20}")
            key_id, data = _from_text(key_text).decode(), _from_text(body)
        except ValueError as error:
            raise ValueSealedError(f"{_named(place)} is not a sealed value: {error}") from error
        cipher = await self._cipher(key_id, wrapped)
        try:
            return cipher.decrypt(data, _bound_to(place)).decode("utf-8", "surrogatepass")
        except InvalidTag as error:
            raise ValueSealedError(
                f"{_named(place)} was changed after it was sealed, or belongs elsewhere"
            ) from error

    async def _data_key(self, tenant: str) -> _DataKey:
        known = self._sealing.get(tenant)
        key_id = self._keys.key_id(tenant)
        now_ms = monotonic_ms()
        if known is not None and known.key_id == key_id and now_ms < known.until_ms:
            return known
        secret = random_bytes(_DATA_KEY_BYTES)
        wrapped = _to_text(await self._keys.wrap(key_id, secret))
        fresh = _DataKey(AESSIV(secret), key_id, wrapped, now_ms + self._data_key_ms)
        self._sealing[tenant] = fresh
        return fresh

    async def _cipher(self, key_id: str, wrapped: str) -> AESSIV:
        place = (key_id, wrapped)
        known = self._opening.get(place)
        if known is None:
            try:
                data = _from_text(wrapped)
            except ValueError as error:
                raise ValueSealedError("the data key of a value cannot be read") from error
            known = AESSIV(await self._keys.unwrap(key_id, data))
            self._opening[place] = known
            if len(self._opening) > _OPENED_KEPT:
                self._opening.popitem(last=False)
        else:
            self._opening.move_to_end(place)
        return known


def _bound_to(place: ValuePlace) -> list[bytes]:
    return [json.dumps(place).encode()]


def _named(place: ValuePlace) -> str:
    key = f" {place.key}" if place.key else ""
    return f"the {place.kind}{key} of the run {place.run_id!r}"


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _from_text(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
