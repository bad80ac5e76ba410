"""What protection does to the values of a run: redacted before they are sealed, opened again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final, cast

from perdure.core.changes import (
    AddDelivery,
    AppendFrames,
    Change,
    CompleteStep,
    EndRun,
    FailStep,
    Restart,
    SaveHandle,
    Suspend,
)
from perdure.core.frames import DELTA_KINDS, SEALED_KIND, Frame, decode_row
from perdure.core.identity import logical_id, manifest_hash
from perdure.core.jsonvalue import decode_value, encode_value
from perdure.core.limits import TURN_LOG_BYTES_MAX
from perdure.core.records import (
    AttemptRecord,
    Claim,
    DeliveryRecord,
    EventRecord,
    JsonValue,
    Lease,
    RunDetails,
    RunManifest,
    RunRecord,
    StepError,
    StepRecord,
    Written,
)
from perdure.store import sealing
from perdure.store.entry import SealedManifest, SealedPayload
from perdure.store.sealing import Sealer, ValueKind, ValuePlace

Redact = Callable[[JsonValue, ValuePlace], JsonValue]
"""Takes a value that is about to be stored at a place, and returns what is stored instead."""

_REDACTED_BYTES_MAX: Final = 2 * TURN_LOG_BYTES_MAX
"""As large as the largest value of all, the answer of a turn with its text and its parts."""
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


def redact_strings(redact: Callable[[str], str]) -> Redact:
    """Return a `Redact` that passes every string of a value, keys excepted, through `redact`."""

    def walk(value: JsonValue) -> JsonValue:
        if isinstance(value, str):
            return redact(value)
        if isinstance(value, list):
            return [walk(item) for item in cast("list[object]", value)]
        if isinstance(value, dict):
            members = cast("dict[str, object]", value)
            return {key: walk(member) for key, member in members.items()}
        return value

    return lambda value, place: walk(value)


class ValueGuard:
    """Protects what is written to a store, and opens what is read from it."""

    def __init__(self, sealer: Sealer | None, redact: Redact | None) -> None:
        self._sealer = sealer
        self._redact = redact

    # What is written.

    async def manifest(self, manifest: RunManifest, tenant: str, run_id: str) -> RunManifest:
        """Return what is stored of a manifest; the run is still recognised by the plain one."""
        plain_hash = manifest_hash(manifest)
        place = ValuePlace(tenant, run_id, "manifest")
        text = self._redacted(sealing.manifest_text(manifest), place)
        kept = sealing.manifest_of(text)
        if self._sealer is not None:
            kept = sealing.sealed_manifest(kept, await self._sealer.seal(text, place))
        return SealedManifest.of(kept, plain_hash)

    async def opened_manifest(self, manifest: RunManifest, tenant: str, run_id: str) -> RunManifest:
        """Return the manifest of which `manifest` is what is stored."""
        place = ValuePlace(tenant, run_id, "manifest")
        text = await self._opened(sealing.sealed_in(manifest.input), place)
        return manifest if text is None else sealing.manifest_of(text)

    async def payload(self, payload: JsonValue, place: ValuePlace) -> SealedPayload:
        """Return what is stored of an event's payload. Raises NotSerializableError."""
        return SealedPayload(await self._text(encode_value(payload, name="payload"), place))

    async def changes(self, lease: Lease, changes: Sequence[Change]) -> list[Change]:
        """Return what is written instead of `changes`."""
        tenant, run_id = logical_id(lease.run_id)

        def at(kind: ValueKind, key: object = "") -> ValuePlace:
            return ValuePlace(tenant, run_id, kind, str(key))

        return [await self._change(change, lease, at) for change in changes]

    async def _change(self, change: Change, lease: Lease, at: Callable[..., ValuePlace]) -> Change:
        match change:
            case CompleteStep():
                text = await self._text(change.result_text, at("result", change.position))
                return change._replace(result_text=text)
            case FailStep():
                text = await self._error(change.error_text, at("error", change.position))
                return change._replace(error_text=text)
            case AppendFrames() | Restart():
                return change._replace(body=await self._row(change, at))
            case SaveHandle(str() as handle_text):
                return SaveHandle(await self._text(handle_text, at("handle")))
            case AddDelivery():
                place = at("delivery", change.position)
                return change._replace(payload_text=await self._text(change.payload_text, place))
            case Suspend(error_text=str() as error_text):
                place = at("error", _attempt_key(lease.epoch))
                return change._replace(error_text=await self._error(error_text, place))
            case EndRun():
                return await self._end(change, lease, at)
            case _:
                return change

    async def _end(self, end: EndRun, lease: Lease, at: Callable[..., ValuePlace]) -> EndRun:
        outcome_text, error_text = end.outcome_text, end.error_text
        if outcome_text is not None:
            outcome_text = self._redacted(outcome_text, at("outcome"))
            if self._sealer is not None:
                sealed = await self._sealer.seal(outcome_text, at("outcome"))
                outcome_text = _encode({"metadata": sealing.sealed_object(sealed)})
        if error_text is not None:
            error_text = await self._error(error_text, at("error", _attempt_key(lease.epoch)))
        return end._replace(outcome_text=outcome_text, error_text=error_text)

    async def _text(self, text: str, place: ValuePlace) -> str:
        text = self._redacted(text, place)
        if self._sealer is None:
            return text
        return _encode(sealing.sealed_object(await self._sealer.seal(text, place)))

    async def _error(self, text: str, place: ValuePlace) -> str:
        text = self._redacted(text, place)
        if self._sealer is None:
            return text
        return _encode(sealing.sealed_error(text, await self._sealer.seal(text, place)))

    async def _row(self, row: AppendFrames | Restart, at: Callable[..., ValuePlace]) -> str:
        place = at("frames", row.first_seq)
        body = row.body
        if self._redact is not None:
            body = _redacted_row(body, self._redact, place)
        if self._sealer is None:
            return body
        sealed = await self._sealer.seal(body, place)
        element = {"k": SEALED_KIND, "from": row.first_seq, "to": row.last_seq, "v": sealed}
        return _encode([element])

    def _redacted(self, text: str, place: ValuePlace) -> str:
        if self._redact is None:
            return text
        value = self._redact(decode_value(text), place)
        return encode_value(value, name=f"redacted {place.kind}", bytes_max=_REDACTED_BYTES_MAX)

    # What is read.

    async def claim(self, claim: Claim) -> Claim:
        run = await self.run(claim.run)
        return claim._replace(run=run, steps=await self.steps(claim.steps, run.tenant))

    async def run(self, run: RunRecord) -> RunRecord:
        """Return the run with its values opened."""

        def at(kind: ValueKind) -> ValuePlace:
            return ValuePlace(run.tenant, run.run_id, kind)

        manifest, outcome = run.manifest, run.outcome
        if manifest is not None:
            manifest = await self.opened_manifest(manifest, run.tenant, run.run_id)
        if outcome is not None:
            text = await self._opened(sealing.sealed_in(outcome.metadata), at("outcome"))
            outcome = outcome if text is None else sealing.outcome_of(text)
        return run._replace(
            manifest=manifest,
            outcome=outcome,
            upstream=await self._value(run.upstream, at("handle")),
            answer=await self._value(run.answer, at("result")._replace(key="0")),
        )

    async def steps(self, steps: Sequence[StepRecord], tenant: str) -> list[StepRecord]:
        return [await self._step(step, tenant) for step in steps]

    async def _step(self, step: StepRecord, tenant: str) -> StepRecord:
        place = ValuePlace(tenant, step.run_id, "result", str(step.step_index))
        return step._replace(
            result=await self._value(step.result, place),
            error=await self._error_record(step.error, place._replace(kind="error")),
        )

    async def written(self, lease: Lease, written: Written) -> Written:
        tenant, _ = logical_id(lease.run_id)
        run = None if written.run is None else await self.run(written.run)
        return written._replace(steps=await self.steps(written.steps, tenant), run=run)

    async def event(self, event: EventRecord, tenant: str) -> EventRecord:
        place = ValuePlace(tenant, event.run_id, "event", event.key)
        return event._replace(payload=await self._value(event.payload, place))

    async def delivery(self, delivery: DeliveryRecord) -> DeliveryRecord:
        tenant, run_id = logical_id(delivery.run_id)
        place = ValuePlace(tenant, run_id, "delivery", str(delivery.position))
        return delivery._replace(payload=await self._value(delivery.payload, place))

    async def details(self, details: RunDetails, tenant: str, run_id: str) -> RunDetails:
        return details._replace(
            attempts=[await self._attempt(each, tenant, run_id) for each in details.attempts],
            events=[await self.event(each, tenant) for each in details.events],
            deliveries=[await self.delivery(each) for each in details.deliveries],
        )

    async def frames(
        self, frames: Sequence[Frame], tenant: str, run_id: str, *, after: int
    ) -> list[Frame]:
        """Return the frames behind `after` that `frames` are or, sealed, stand for."""
        opened: list[Frame] = []
        for frame in frames:
            if frame.kind != SEALED_KIND:
                opened.append(frame)
                continue
            first_seq: int = frame.data["from"]
            place = ValuePlace(tenant, run_id, "frames", str(first_seq))
            body = await self._opened(frame.data["v"], place)
            row = [frame] if body is None else decode_row(first_seq, frame.epoch, body)
            opened += [each for each in row if each.seq > after]
        return opened

    async def _attempt(self, attempt: AttemptRecord, tenant: str, run_id: str) -> AttemptRecord:
        place = ValuePlace(tenant, run_id, "error", _attempt_key(attempt.epoch))
        return attempt._replace(error=await self._error_record(attempt.error, place))

    async def _error_record(self, error: StepError | None, place: ValuePlace) -> StepError | None:
        text = await self._opened(sealing.sealed_in_error(error), place)
        return error if text is None else sealing.error_of(text)

    async def _value(self, value: JsonValue, place: ValuePlace) -> JsonValue:
        text = await self._opened(sealing.sealed_in(value), place)
        return value if text is None else decode_value(text)

    async def _opened(self, sealed: str | None, place: ValuePlace) -> str | None:
        """Return the text of a sealed value; None of a plain one, which stays as it is."""
        # Without a sealer, what looks sealed is somebody's plain value.
        if sealed is None or self._sealer is None:
            return None
        return await self._sealer.open(sealed, place)


def _attempt_key(epoch: int) -> str:
    return f"attempt {epoch}"


def _redacted_row(body: str, redact: Redact, place: ValuePlace) -> str:
    """Return a row whose every part was redacted as a whole, with as many frames as before."""
    elements: list[dict[str, JsonValue]] = decode_value(body)
    for number, element in enumerate(elements):
        pieces = element.get("d")
        if element["k"] in DELTA_KINDS and isinstance(pieces, list):
            texts = cast("list[str]", pieces)
            known = "".join(texts)
            redacted = redact(known, place)
            if redacted != known:
                # The frames keep their numbers: the first has the text, the others have none.
                element["d"] = [redacted, *("" for _ in texts[1:])]
        else:
            kept = redact({key: value for key, value in element.items() if key != "k"}, place)
            elements[number] = {"k": element["k"], **cast("Mapping[str, JsonValue]", kept)}
    return _encode(elements)
