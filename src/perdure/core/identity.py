"""Identity: canonical JSON and its hashes, the ids of runs and turns, and names of workers.

Hashes equal those of the TypeScript reference, so that workers of both share one database.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Final, Self
from urllib.parse import quote, unquote

from perdure.core.effects import new_token
from perdure.core.jsonvalue import (
    Refusal,
    check_float,
    check_integer,
    check_key,
    join_surrogates,
    kind_of,
    refuse_depth,
    refuse_type,
)
from perdure.core.limits import DEPTH_MAX, ID_BYTES_MAX, INTEGER_MAX, RUN_ID_BYTES_MAX
from perdure.core.recordjson import check_manifest
from perdure.core.records import JsonValue, RunManifest
from perdure.errors import NotSerializableError, UsageError

_INDEX_MAX: Final = 2**32 - 2
"""The largest key that a JavaScript object treats as an array index."""

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_NOT_IN_IDS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_TURN_ID = re.compile(r"chat:(.+):(0|[1-9][0-9]{0,15})(?:~([1-9][0-9]{0,15}))?", re.DOTALL)

_quote = json.encoder.encode_basestring
_worker_numbers = itertools.count(1)


def canonical_json(value: JsonValue) -> str:
    """Return the one text of `value` that every equal value has, in either language.

    No white space; keys that are array indices first, by number, then the others by UTF-16 code
    units; numbers as ECMAScript writes them; an integer beyond ±(2^53 - 1) as
    `{"__bigint":"<decimal>"}`. Raises NotSerializableError with the path of the culprit for what
    is not plain JSON, and for the key `__proto__`, which the reference would drop.
    """
    return _canonical(value, "value")


def canonical_hash(value: JsonValue) -> str:
    """Return the SHA-256, in lower-case hex, of the UTF-8 bytes of `canonical_json(value)`."""
    return _sha256(_canonical(value, "value"))


class KnownManifest(RunManifest):
    """A manifest whose hash is known already, so that nobody computes it again."""

    known_hash: str = ""

    @classmethod
    def of(cls, manifest: RunManifest, known_hash: str) -> Self:
        """Return `manifest` with the hash by which its run is recognised."""
        known = cls._make(manifest)
        known.known_hash = known_hash
        return known


def manifest_hash(manifest: RunManifest) -> str:
    """Return the hash by which a run recognises its manifest.

    It covers project, scenario, the task's id, intent and domain, and the input; tags and
    everything else of the task are left out. Raises UsageError for a field of a wrong type, and
    NotSerializableError with the path of what is not plain JSON in the input.
    """
    if isinstance(manifest, KnownManifest) and manifest.known_hash:
        return manifest.known_hash
    check_manifest(manifest)
    task = manifest.task
    content: dict[str, JsonValue] = {"input": dict(manifest.input)}
    content["projectId"] = manifest.project_id
    content["scenarioId"] = manifest.scenario_id
    if task.domain is not None:
        content["taskDomain"] = task.domain
    content["taskId"] = task.id
    content["taskIntent"] = task.intent
    return _sha256(_canonical(content, "manifest"))


def step_id(run_id: str, step_index: int, intent: str) -> str:
    """Return the canonical hash that names one step of one run."""
    return canonical_hash({"runId": run_id, "stepIndex": step_index, "intent": intent})


def idempotency_key(stored_run_id: str, *parts: JsonValue) -> str:
    """Return the key of one effect of a run, the same in every attempt and on every worker."""
    return canonical_hash([stored_run_id, *parts])


def derive_worker_id() -> str:
    """Return a new `host:pid:random:counter`, unlike any other worker's."""
    host = os.environ.get("HOSTNAME", "").encode("utf-8", "replace").decode() or "host"
    return f"{host}:{os.getpid()}:{new_token()[:8]}:{next(_worker_numbers)}"


def turn_run_id(session_id: str, turn_index: int, revision: int = 0) -> str:
    """Return the logical run id of a turn: `chat:<session>:<turn>`, a revision k appends `~k`."""
    check_session_id(session_id)
    check_index(turn_index, name="turn_index")
    check_index(revision, name="revision")
    run_id = f"chat:{session_id}:{turn_index}"
    return f"{run_id}~{revision}" if revision else run_id


def turn_place(run_id: str) -> tuple[str, int, int] | None:
    """Return session, turn and revision of a logical run id; None if it is not that of a turn."""
    found = _TURN_ID.fullmatch(run_id)
    return None if found is None else (found[1], int(found[2]), int(found[3] or 0))


def stored_id(tenant: str, run_id: str) -> str:
    """Return the id under which a run of `tenant` is stored; '' is the default tenant."""
    return f"@{quote(tenant, safe='')}/{run_id}" if tenant else run_id


def logical_id(stored: str) -> tuple[str, str]:
    """Return the tenant and the logical id of a stored id.

    What `stored_id` did not make belongs to the default tenant under the id it has.
    """
    if stored.startswith("@"):
        tenant, _, run_id = stored[1:].partition("/")
        tenant = unquote(tenant)
        if tenant and run_id and stored_id(tenant, run_id) == stored:
            return tenant, run_id
    return "", stored


def check_id(value: object, *, name: str, bytes_max: int = ID_BYTES_MAX) -> str:
    """Return `value` if it can be an id, else raise UsageError that calls it `name`.

    An id is a plain str of 1 to `bytes_max` bytes of UTF-8, without a leading `@`, control
    characters and lone surrogates.
    """
    if type(value) is not str:
        raise UsageError(f"{name} must be a str, not {type(value).__qualname__}")
    if not value:
        raise UsageError(f"{name} must not be empty")
    if value[0] == "@":
        raise UsageError(f"{name} {value!r:.60} must not begin with '@'")
    if not value.isprintable() and (found := _NOT_IN_IDS.search(value)):
        raise UsageError(f"{name} must not contain {found[0]!a}, at position {found.start()}")
    size = len(value) if value.isascii() else len(value.encode("utf-8"))
    if size > bytes_max:
        raise UsageError(f"{name} has {size:,} bytes; the limit is {bytes_max}")
    return value


def check_run_id(value: object) -> str:
    """Return `value` if it can be a logical run id, a turn's included; else UsageError."""
    return check_id(value, name="run_id", bytes_max=RUN_ID_BYTES_MAX)


def check_session_id(value: object) -> str:
    """Return `value` if it can be a session id; else UsageError."""
    return check_id(value, name="session_id")


def check_event_key(value: object) -> str:
    """Return `value` if it can be the key of an event; else UsageError."""
    return check_id(value, name="event key")


def check_tenant(value: object) -> str:
    """Return `value` if it can be a tenant, '' (the default tenant) included; else UsageError."""
    return "" if value == "" else check_id(value, name="tenant")


def check_index(value: object, *, name: str) -> int:
    """Return `value` if it is an integer from 0 to 2^53 - 1; else UsageError."""
    if type(value) is not int or not 0 <= value <= INTEGER_MAX:
        raise UsageError(f"{name} must be an integer from 0 to {INTEGER_MAX}, not {value!r:.40}")
    return value


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _canonical(value: JsonValue, name: str) -> str:
    pieces: list[str] = []
    try:
        _write(value, DEPTH_MAX, pieces)
    except Refusal as refusal:
        raise NotSerializableError(refusal.message(name)) from None
    return "".join(pieces)


def _write(value: JsonValue, room: int, pieces: list[str]) -> None:
    kind = kind_of(value)
    if kind is str:
        pieces.append(_string(value))
    elif value is None:
        pieces.append("null")
    elif kind is bool:
        pieces.append("true" if value else "false")
    elif kind is int:
        pieces.append(_integer(value))
    elif kind is float:
        pieces.append(_float(value))
    elif kind is dict:
        _write_dict(value, room, pieces)
    elif kind is list or kind is tuple:
        _write_list(value, room, pieces)
    else:
        refuse_type(value)


def _write_list(value: Sequence[JsonValue], room: int, pieces: list[str]) -> None:
    if not room:
        refuse_depth()
    separator = "["
    for index, item in enumerate(value):
        pieces.append(separator)
        separator = ","
        try:
            _write(item, room - 1, pieces)
        except Refusal as refusal:
            refusal.path.append(index)
            raise
    pieces.append("]" if value else "[]")


def _write_dict(value: dict[str, JsonValue], room: int, pieces: list[str]) -> None:
    if not room:
        refuse_depth()
    separator = "{"
    for key in _in_order(value):
        pieces.append(f"{separator}{_string(key)}:")
        separator = ","
        try:
            _write(value[key], room - 1, pieces)
        except Refusal as refusal:
            refusal.path.append(key)
            raise
    pieces.append("}" if value else "{}")


def _in_order(value: Mapping[str, JsonValue]) -> list[str]:
    """Return the keys in the order in which a JavaScript object lists them once sorted."""
    for key in value:
        check_key(key)
    if "__proto__" in value:
        raise Refusal("has the key `__proto__`, which JavaScript drops")
    letters = "".join(value).replace("_", "a")
    if letters.isalpha() and letters.isascii():
        return sorted(value)
    if letters.isascii():
        names = sorted(value)
    else:
        units = {key.encode("utf-16-be", "surrogatepass"): key for key in value}
        if len(units) < len(value):
            raise Refusal("has two keys that are the same text in JSON")
        names = [units[code] for code in sorted(units)]
    indices = [key for key in names if _is_index(key)]
    if not indices:
        return names
    return sorted(indices, key=int) + [key for key in names if not _is_index(key)]


def _is_index(key: str) -> bool:
    if not (key.isdigit() and key.isascii()) or len(key) > 10:
        return False
    return (key[0] != "0" or key == "0") and int(key) <= _INDEX_MAX


def _string(text: str) -> str:
    if text.isascii() or not _SURROGATE.search(text):
        return _quote(text)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):x}", _quote(join_surrogates(text)))


def _integer(value: int) -> str:
    if -INTEGER_MAX <= value <= INTEGER_MAX:
        return str(value)
    check_integer(value)
    return f'{{"__bigint":"{value}"}}'


def _float(value: float) -> str:
    """Return `value` as ECMAScript writes it: Python's digits (both are shortest), its layout."""
    check_float(value)
    if value == 0:
        return "0"
    mantissa, _, exponent = repr(value).partition("e")
    if not exponent:
        return mantissa.removesuffix(".0")
    sign = "-" if value < 0 else ""
    digits = mantissa.lstrip("-").replace(".", "")
    point = int(exponent) + 1
    if 0 < point <= 21:
        return f"{sign}{digits.ljust(point, '0')}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{fraction}e{point - 1:+d}"
