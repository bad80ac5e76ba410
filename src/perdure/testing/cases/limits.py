"""Values, ids, sizes and moments at the edges of what they may be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from perdure.core.changes import AppendFrames, CompleteStep, IntendUsage, SaveHandle, SettleUsage
from perdure.core.frames import data, encode_row, text
from perdure.core.lengths import LENGTH_MAX_MS
from perdure.core.limits import FRAMES_ROW_BYTES_MAX, INTEGER_MAX, LEASE_MS, VALUE_BYTES_MAX
from perdure.core.records import JsonValue
from perdure.errors import NotSerializableError, UsageError, ValueTooLargeError
from perdure.testing.lab import StoreLab, case, check, read, refused, same, snapshot, unchanged
from perdure.testing.samples import (
    HANDLER,
    begun,
    completed,
    delivery,
    ended,
    failed,
    finish,
    hold,
    manifest,
    row,
)

_ODD_TEXTS = (
    "",
    "\x00",
    "a\x00b",
    "\ud800",
    "\udc00 \ud800",
    "\u2028\u2029",
    "\x7f\x1b[31m\r\n\t",
    "\ufeff\ufffe\uffff",
    "😀 née e\u0301 ﷽ \u202e",
    "'; DROP TABLE durable_runs; --",
    "%_\\\"'`?1:x{now}$1",
)

_NUMBERS: tuple[JsonValue, ...] = (
    0,
    -1,
    INTEGER_MAX,
    -INTEGER_MAX,
    0.1,
    -0.0,
    1e16,
    1.7976931348623157e308,
    5e-324,
    1.0,
)

_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)


@case
async def odd_texts_come_back_as_they_were_given(lab: StoreLab) -> None:
    store = await lab.open()
    odd: JsonValue = {"list": list(_ODD_TEXTS), "keys": dict.fromkeys(_ODD_TEXTS, 1)}
    frames = [text(word, f"p{number}") for number, word in enumerate(_ODD_TEXTS)]
    frames.append(data("odd", odd))
    lease = await hold(store)
    await store.emit_event("run", "odd", odd)
    await store.write(
        lease,
        completed(0, odd),
        failed(1, "|".join(_ODD_TEXTS)),
        SaveHandle(json.dumps(odd)),
        AppendFrames(1, len(frames), encode_row(frames)),
        delivery(0, payload=odd),
        ended("completed")._replace(outcome_text=json.dumps({"metadata": odd})),
    )
    run = await read(store, "run")
    same((run.upstream, run.outcome and run.outcome.metadata), (odd, odd), "handle and outcome")
    first, second = await store.read_steps("run")
    same(first.result, odd, "the result")
    same(second.error and second.error.message, "|".join(_ODD_TEXTS), "the error's message")
    event = await store.load_event("run", "odd")
    same(event and event.payload, odd, "the payload of the event")
    stored = await store.read_frames("run")
    same([frame.data for frame in stored], [frame.data for frame in frames], "the frames")
    [found] = await store.claim_deliveries([HANDLER], limit=1)
    same(found.payload, odd, "the payload of the delivery")


@case
async def numbers_come_back_exactly_and_of_their_kind(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    numbers = list(_NUMBERS)
    await store.write(lease, completed(0, numbers))
    await store.emit_event("run", "numbers", numbers)
    event = await store.load_event("run", "numbers")
    for found in ((await store.read_steps("run"))[0].result, event and event.payload):
        same([repr(number) for number in found or ()], list(map(repr, numbers)), "the numbers")


@case
async def a_payload_that_is_not_json_is_refused_and_leaves_nothing(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store)
    before = await snapshot(store, "run")
    deep: JsonValue = []
    for _ in range(100):
        deep = [deep]
    bad: tuple[JsonValue, ...] = (float("nan"), float("inf"), b"x", {1: 2}, {1, 2}, object(), deep)
    for value in bad:
        with refused(NotSerializableError):
            await store.emit_event("run", "go", {"deep": [value]})
    with refused(ValueTooLargeError):
        await store.emit_event("run", "go", "x" * (VALUE_BYTES_MAX + 1))
    same(await snapshot(store, "run"), before, "the run")
    won, _ = await store.emit_event("run", "go", 1)
    check(won, "the key should still be free")


@case
async def a_manifest_that_is_not_json_or_too_large_makes_no_run(lab: StoreLab) -> None:
    store = await lab.open()
    bad: tuple[tuple[JsonValue, type[Exception]], ...] = (
        (float("nan"), NotSerializableError),
        (b"x", NotSerializableError),
        ("x" * (VALUE_BYTES_MAX + 1), ValueTooLargeError),
    )
    for value, kind in bad:
        wrong = manifest()._replace(input={"question": value})
        with refused(kind):
            await store.start_or_resume("run", wrong, worker_id="ann")
        with refused(kind):
            await store.enqueue("run", wrong, handler=HANDLER)
    same(await store.read_run("run"), None, "the run")


@case
async def what_was_handed_out_or_in_cannot_change_what_is_stored(lab: StoreLab) -> None:
    store = await lab.open()
    content: dict[str, JsonValue] = {"list": [1]}
    mine = manifest()._replace(input={"question": content})
    claim = await store.start_or_resume("run", mine, worker_id="ann")
    if claim.lease is None:
        raise AssertionError("a new run should be leased to its creator")
    _, event = await store.emit_event("run", "go", content)
    written = await store.write(claim.lease, completed(0, content))
    content["list"].append(2)
    event.payload["list"].append(3)
    written.steps[0].result["list"].append(4)
    (await store.read_steps("run"))[0].result["list"].append(5)
    run = await read(store, "run")
    if run.manifest is None:
        raise AssertionError("the manifest should be stored")
    run.manifest.input["question"]["list"].append(6)
    again = await read(store, "run")
    same(again.manifest and again.manifest.input, {"question": {"list": [1]}}, "the manifest")
    same((await store.read_steps("run"))[0].result, {"list": [1]}, "the result")
    loaded = await store.load_event("run", "go")
    same(loaded and loaded.payload, {"list": [1]}, "the payload")


@case
async def values_up_to_the_limit_are_kept(lab: StoreLab) -> None:
    store = await lab.open()
    big = "x" * (VALUE_BYTES_MAX - 2)
    lease = await hold(store)
    await store.emit_event("run", "big", big)
    body = encode_row([text("y" * (FRAMES_ROW_BYTES_MAX - 100), "p1")])
    await store.write(lease, completed(0, big), AppendFrames(1, 1, body), delivery(0, payload=big))
    event = await store.load_event("run", "big")
    same(len(event.payload if event else ""), len(big), "the length of the payload")
    same(len((await store.read_steps("run"))[0].result), len(big), "the length of the result")
    [frame] = await store.read_frames("run")
    same(len(frame.data["delta"]), FRAMES_ROW_BYTES_MAX - 100, "the length of the frame")
    await store.write(lease, ended("completed"))
    [found] = await store.claim_deliveries([HANDLER], limit=1)
    same(len(found.payload), len(big), "the length of the delivery's payload")
    large = manifest("q" * (VALUE_BYTES_MAX - 1_000))
    claim = await store.start_or_resume("large", large, worker_id="ann")
    same(claim.run.manifest, large, "the large manifest")


@case
async def ids_that_look_alike_are_different_ids(lab: StoreLab) -> None:
    store = await lab.open()
    ids = ["a", "A", "a ", "é", "e\u0301", ".", "..", "CON", "%", "_", "a%", "a:1", "1", "01"]
    ids += ["chat:s:1", "chat:s:1~2", "'", '"', "日本語", "😀", "~", "x" * 200]
    for number, run_id in enumerate(ids):
        await finish(store, run_id, completed(0, number))
    for number, run_id in enumerate(ids):
        same((await read(store, run_id)).run_id, run_id, "the id")
        same([step.result for step in await store.read_steps(run_id)], [number], "the steps")
    same(len(await store.list_runs(limit=100)), len(ids), "the number of runs")


@case
async def a_long_history_is_read_whole_and_in_order(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    for start in range(0, 1_200, 300):
        await store.write(
            lease, *(completed(position, position) for position in range(start, start + 300))
        )
    results = [step.result for step in await store.read_steps("run")]
    same(results, list(range(1_200)), "the results")
    lab.clock.advance(LEASE_MS)
    claim = await store.start_or_resume("run", manifest(), worker_id="bob")
    same([step.step_index for step in claim.steps], list(range(1_200)), "the claimed steps")
    same(claim.run.step_count, 1_200, "the step count")


@case
async def hundreds_of_leases_are_renewed_at_once(lab: StoreLab) -> None:
    store = await lab.open()
    leases = [await hold(store, f"run-{number}") for number in range(250)]
    lab.clock.advance(5_000)
    answer = await store.renew(leases, LEASE_MS)
    same(dict(answer), dict.fromkeys(leases, False), "the renewed leases")


@case
async def large_numbers_of_seqs_positions_and_money_are_exact(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, IntendUsage(0), SettleUsage(0, cost_nanos=2**52 + 1, tokens_in=2**40))
    await store.write(lease, CompleteStep(100_000, "far", "1", frames_to=2**31 + 1))
    [usage] = (await store.read_details("run")).usage
    same((usage.cost_nanos, usage.tokens_in), (2**52 + 1, 2**40), "the bill")
    [step] = await store.read_steps("run")
    same((step.step_index, step.frames_to), (100_000, 2**31 + 1), "the step")
    same((await read(store, "run")).step_count, 100_001, "the step count")


@case
async def a_lease_may_be_as_short_as_a_millisecond(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store, lease_ms=1)
    same((await read(store, "run")).lease_expires_at, lab.clock.iso(1), "the deadline")
    lab.clock.advance(1)
    same((await hold(store)).epoch, lease.epoch + 1, "the epoch after it lapsed")


@case
async def a_lease_of_no_length_is_refused_by_every_call_that_takes_one(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.enqueue("queued", manifest(), handler=HANDLER)
    before = await snapshot(store, "run")
    no_lengths: tuple[Any, ...] = (0, -1, 1.5, True, "9000", None, LENGTH_MAX_MS + 1)
    for wrong in no_lengths:
        with refused(UsageError):
            await store.start_or_resume("new", manifest(), worker_id="ann", lease_ms=wrong)
        with refused(UsageError):
            await store.claim_due([HANDLER], worker_id="ann", lease_ms=wrong, limit=1)
        with refused(UsageError):
            await store.renew([lease], wrong)
    same(await store.read_run("new"), None, "the run that was refused")
    same((await read(store, "queued")).state, "queued", "the run that was not claimed")
    await unchanged(store, "run", before)


@case
async def every_moment_is_utc_text_with_milliseconds(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store)
    lab.clock.advance(958 + LEASE_MS)
    lease = await hold(store)
    await store.emit_event("run", "go", 1)
    await store.request_stop("run")
    await store.write(lease, begun(0), completed(0), IntendUsage(0), SettleUsage(0), row(1, "a"))
    held = await snapshot(store, "run")
    await store.write(lease, delivery(0), ended("completed"))
    [found] = await store.claim_deliveries([HANDLER], limit=1)
    await store.settle_delivery(found)
    await store.delete("run", frames_only=True)
    done = await snapshot(store, "run")
    names: set[str] = set()
    for shown in (held, done):
        if shown.run is None or shown.details is None:
            raise AssertionError("the run should be there")
        for record in (shown.run, *shown.steps, *(r for rows in shown.details for r in rows)):
            for name, value in _moments(record):
                names.add(name)
                check(_MOMENT.fullmatch(value), f"{name} is not a moment: {value!r}")
    check(len(names) >= 12, f"this should have met every kind of moment, not only {names}")
    same((await read(store, "run")).completed_at, "2026-01-31T09:05:23.000Z", "a whole second")


def _moments(record: Any) -> Iterator[tuple[str, str]]:
    fields: dict[str, Any] = record._asdict()
    for name, value in fields.items():
        if name.endswith("_at") and value is not None:
            yield name, value
