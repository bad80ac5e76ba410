"""Sealed forms of what is stored: where each value of a run goes, and how it comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, Protocol, cast

from perdure.core.jsonvalue import decode_value, encode_value
from perdure.core.recordjson import (
    manifest_from_json,
    manifest_to_json,
    outcome_from_json,
    step_error_from_json,
)
from perdure.core.records import JsonValue, RunManifest, RunOutcome, StepError

SEALED: Final = "$sealed"
"""The one member of a sealed JSON object, and the begin of a sealed error's message."""

_ERROR_MARK: Final = f"{SEALED}:"

ValueKind = Literal[
    "manifest", "result", "error", "frames", "event", "delivery", "outcome", "handle"
]


class ValuePlace(NamedTuple):
    """Where a value is stored. A sealed value opens only at its own place.

    `key` tells the values of one kind apart: the position of a step or delivery, the first seq of
    a row of frames, the key of an event; '' where a run has only one.
    """

    tenant: str
    run_id: str
    kind: ValueKind
    key: str = ""


class Sealer(Protocol):
    """Seals the values of a store and opens them; `EnvelopeSealer` is one.

    Text in and out is ASCII. Sealing the same text for the same place again gives the same text:
    a write whose answer was lost is repeated, and has to be recognised.
    """

    async def seal(self, text: str, place: ValuePlace) -> str:
        """Return `text` sealed for `place`. An error of it refuses the write as a whole."""
        ...

    async def open(self, sealed: str, place: ValuePlace) -> str:
        """Return what was sealed for `place`. Raises ValueSealedError if that cannot be."""
        ...


def sealed_object(sealed: str) -> dict[str, JsonValue]:
    """Return the JSON object that stands for a sealed value."""
    return {SEALED: sealed}


def sealed_in(value: JsonValue) -> str | None:
    """Return what is sealed in a stored value; None for one that was never sealed."""
    if not isinstance(value, Mapping):
        return None
    members = cast("Mapping[str, object]", value)
    sealed = members.get(SEALED) if len(members) == 1 else None
    return sealed if isinstance(sealed, str) else None


def manifest_text(manifest: RunManifest) -> str:
    """Return the whole manifest as JSON text."""
    return encode_value(manifest_to_json(manifest), name="manifest")


def manifest_of(text: str) -> RunManifest:
    return manifest_from_json(decode_value(text))


def sealed_manifest(manifest: RunManifest, sealed: str) -> RunManifest:
    """Return what is left of `manifest` in the open: its names, which user text is not part of."""
    task = manifest.task
    return RunManifest(
        project_id=manifest.project_id,
        scenario_id=manifest.scenario_id,
        task=task._replace(inputs=None, required_knowledge=(), budget=None, metadata=None),
        input=sealed_object(sealed),
    )


def sealed_outcome(sealed: str) -> RunOutcome:
    return RunOutcome(metadata=sealed_object(sealed))


def outcome_of(text: str) -> RunOutcome:
    return outcome_from_json(decode_value(text))


def sealed_error(error_text: str, sealed: str) -> dict[str, JsonValue]:
    """Return a sealed error: type and code stay in the open, for reports; what it says does not."""
    error = step_error_from_json(decode_value(error_text))
    kept = {"code": error.code, "type": error.type, "taken": error.taken}
    shown = {name: value for name, value in kept.items() if value is not None}
    return {"message": f"{_ERROR_MARK}{sealed}", **shown}


def sealed_in_error(error: StepError | None) -> str | None:
    """Return what is sealed in a stored error; None for one that was never sealed."""
    if error is None or not error.message.startswith(_ERROR_MARK):
        return None
    return error.message[len(_ERROR_MARK) :]


def error_of(text: str) -> StepError:
    return step_error_from_json(decode_value(text))
