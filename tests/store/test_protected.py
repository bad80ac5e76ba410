"""A protected store: nothing readable reaches the disk, and what comes back is what was written."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from perdure.core.changes import AppendFrames, EndRun, FailStep, SaveHandle
from perdure.core.frames import encode_row, text
from perdure.core.identity import manifest_hash
from perdure.core.limits import VALUE_BYTES_MAX
from perdure.core.records import RunOutcome, StepError
from perdure.encryption import EnvelopeSealer, LocalKeys
from perdure.errors import (
    NotSerializableError,
    RunInputMismatchError,
    UsageError,
    ValueSealedError,
    ValueTooLargeError,
)
from perdure.store.guarding import redact_strings
from perdure.store.opening import open_store
from perdure.store.protected import protect
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.samples import HANDLER, completed, delivery, hold, manifest, row
from tests.turn.stage import TURN, Reader, Script, Stage, words

CANARY = "xyzzy-canary"
OLD, NEW = bytes(range(32)), bytes(range(1, 33))


def sealer(**keys: bytes) -> EnvelopeSealer:
    known = keys or {"old": OLD}
    return EnvelopeSealer(LocalKeys(known, current=next(reversed(known))))


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[RunStore]:
    store = await open_store(f"sqlite:{tmp_path / 'runs.db'}")
    yield store
    await store.close()


async def fill(store: RunStore) -> None:
    """Write the canary into every kind of value that a run has."""
    lease = await hold(store)
    await store.write(
        lease,
        completed(0, {"said": CANARY}),
        FailStep(1, "ask", f'{{"message":"{CANARY}","code":"e1","type":"ValueError"}}'),
        row(1, "It ", "is ", CANARY),
        SaveHandle(f'{{"response":"{CANARY}"}}'),
    )
    await store.emit_event("run", "approval", {"by": CANARY})
    await store.write(
        lease,
        AppendFrames(4, 4, encode_row([text(f" ({CANARY})", "p")._replace(seq=4)])),
        delivery(payload={"text": CANARY}),
        EndRun("failed", f'{{"notes":"{CANARY}"}}', error_text=f'{{"message":"{CANARY}"}}'),
    )


def stored_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
async def test_no_sealed_value_can_be_read_on_the_disk(tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}:{tmp_path / 'runs'}"
    store = protect(await open_store(url), sealer=sealer())
    await fill(store)
    await store.close()
    assert CANARY.encode() not in stored_bytes(tmp_path)
    bare = await open_store(f"{url}-bare")
    await fill(bare)
    await bare.close()
    assert CANARY.encode() in stored_bytes(tmp_path), "the canary would be found"


async def test_every_value_comes_back_as_it_was_written(plain: RunStore) -> None:
    store = protect(plain, sealer=sealer())
    await fill(store)
    run = await store.read_run("run")
    assert run is not None
    assert run.manifest == manifest()
    assert run.manifest_hash == manifest_hash(manifest())
    assert run.upstream == {"response": CANARY}
    assert run.outcome == RunOutcome(notes=CANARY)
    done, failed = await store.read_steps("run")
    assert done.result == {"said": CANARY}
    assert failed.error == StepError(CANARY, code="e1", type="ValueError")
    details = await store.read_details("run")
    assert details.attempts[0].error == StepError(CANARY)
    assert details.events[0].payload == {"by": CANARY}
    assert details.deliveries[0].payload == {"text": CANARY}
    frames = await store.read_frames("run")
    assert "".join(frame.data["delta"] for frame in frames) == f"It is {CANARY} ({CANARY})"
    assert [frame.seq for frame in await store.read_frames("run", after=2)] == [3, 4]
    [due] = await store.claim_deliveries([HANDLER], limit=9)
    assert due.payload == {"text": CANARY}


async def test_reports_still_tell_the_type_and_code_of_a_sealed_error(plain: RunStore) -> None:
    await fill(protect(plain, sealer=sealer()))
    _, failed = await plain.read_steps("run")
    assert failed.error is not None
    assert (failed.error.type, failed.error.code) == ("ValueError", "e1")


async def test_another_manifest_is_still_another_manifest(plain: RunStore) -> None:
    store = protect(plain, sealer=sealer())
    await hold(store)
    with pytest.raises(RunInputMismatchError):
        await store.start_or_resume("run", manifest("What else?"), worker_id="bob")


async def test_what_was_stored_before_is_read_as_it_is(plain: RunStore) -> None:
    await fill(plain)
    store = protect(plain, sealer=sealer())
    run = await store.read_run("run")
    assert run is not None
    assert run.manifest == manifest()
    assert (await store.read_steps("run"))[0].result == {"said": CANARY}


async def test_a_new_key_leaves_old_values_readable(plain: RunStore) -> None:
    await fill(protect(plain, sealer=sealer(old=OLD)))
    both = protect(plain, sealer=sealer(old=OLD, new=NEW))
    assert (await both.read_steps("run"))[0].result == {"said": CANARY}
    won, _ = await both.emit_event("run", "later", CANARY)
    assert won
    with pytest.raises(ValueSealedError, match="there is no key 'new'"):
        await protect(plain, sealer=sealer(old=OLD)).load_event("run", "later")


async def test_a_tenant_whose_key_is_destroyed_cannot_be_read(plain: RunStore) -> None:
    keys = {"of ann": OLD, "of bob": NEW}
    store = protect(plain, sealer=EnvelopeSealer(LocalKeys(keys, current=lambda t: f"of {t}")))
    for tenant in ("ann", "bob"):
        await hold(store.for_tenant(tenant))
    del keys["of ann"]
    left = protect(plain, sealer=EnvelopeSealer(LocalKeys(keys, current=lambda t: f"of {t}")))
    assert await left.for_tenant("bob").read_run("run")
    with pytest.raises(ValueSealedError, match="of ann"):
        await left.for_tenant("ann").read_run("run")


async def test_a_key_of_the_same_name_that_is_another_says_so(plain: RunStore) -> None:
    await hold(protect(plain, sealer=sealer(old=OLD)))
    with pytest.raises(ValueSealedError, match="'old' is not the one"):
        await protect(plain, sealer=sealer(old=NEW)).read_run("run")


async def test_a_value_opens_only_where_it_was_stored(plain: RunStore) -> None:
    store = protect(plain, sealer=sealer())
    await store.write(await hold(store), completed(0, "mine"), completed(1, "yours"))
    mine, yours = await plain.read_steps("run")
    lease = await hold(plain, "other")
    await plain.write(lease, completed(0, yours.result), completed(1, mine.result))
    with pytest.raises(ValueSealedError, match="result 0 of the run 'other'"):
        await store.read_steps("other")


@pytest.mark.parametrize(
    "sealed", ["", "1.2", "2.b2xk.AA==.AA==", "1.b2xk.!.AA==", "1.b2xk.AA==.!"]
)
async def test_damage_is_told_from_a_missing_key(plain: RunStore, sealed: str) -> None:
    lease = await hold(plain)
    await plain.write(lease, completed(0, {"$sealed": sealed}))
    with pytest.raises(ValueSealedError):
        await protect(plain, sealer=sealer()).read_steps("run")


async def test_a_write_that_is_repeated_is_recognised(plain: RunStore) -> None:
    store = protect(plain, sealer=sealer())
    lease = await hold(store)
    for _ in range(2):
        await store.write(lease, completed(0, "once"), row(1, "a", "b"))
    assert len(await store.read_frames("run")) == 2


async def test_data_keys_are_wrapped_once_for_many_values(plain: RunStore) -> None:
    class Counted(LocalKeys):
        wrapped = opened = 0

        async def wrap(self, key_id: str, data_key: bytes) -> bytes:
            self.wrapped += 1
            return await super().wrap(key_id, data_key)

        async def unwrap(self, key_id: str, wrapped: bytes) -> bytes:
            self.opened += 1
            return await super().unwrap(key_id, wrapped)

    keys = Counted({"k": OLD}, current="k")
    store = protect(plain, sealer=EnvelopeSealer(keys))
    lease = await hold(store)
    for position in range(20):
        await store.write(lease, completed(position, "x"))
    assert len(await store.read_steps("run")) == 20
    assert (keys.wrapped, keys.opened) == (1, 1)
    hasty = EnvelopeSealer(keys, data_key_ms=0)
    await protect(plain, sealer=hasty).write(lease, completed(20, "x"), completed(21, "x"))
    assert keys.wrapped == 3


async def test_the_limits_are_those_of_the_plain_values(plain: RunStore) -> None:
    store = protect(plain, sealer=sealer())
    largest = "x" * (VALUE_BYTES_MAX - 2)
    await hold(store)
    _, event = await store.emit_event("run", "largest", largest)
    assert event.payload == largest
    with pytest.raises(ValueTooLargeError):
        await store.emit_event("run", "larger", f"{largest}x")
    with pytest.raises(NotSerializableError, match=r"payload\.when"):
        await store.emit_event("run", "odd", {"when": object()})


@pytest.mark.parametrize(
    ("keys", "current", "told"),
    [({"a": b"short"}, "a", "'a' has 5 bytes"), ({"a": OLD}, "b", "current key 'b'")],
)
def test_keys_that_cannot_work_are_refused(keys: dict[str, bytes], current: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        LocalKeys(keys, current=current)


def test_protection_needs_something_to_protect_with() -> None:
    with pytest.raises(UsageError, match="a sealer, a redact function or both"):
        protect(cast("RunStore", None))


# Redaction.


def without_cards(value: str) -> str:
    return re.sub(r"\d{4}-\d{4}", "[card]", value)


async def test_what_is_redacted_is_nowhere_in_the_store(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'runs.db'}"
    store = protect(
        await open_store(url), redact=redact_strings(lambda value: value.replace(CANARY, "[cut]"))
    )
    await fill(store)
    frames = await store.read_frames("run")
    assert [frame.data["delta"] for frame in frames] == ["It is [cut]", "", "", " ([cut])"]
    assert (await store.read_steps("run"))[0].result == {"said": "[cut]"}
    await store.close()
    assert CANARY.encode() not in stored_bytes(tmp_path)


async def test_a_text_in_pieces_is_redacted_as_a_whole_row(plain: RunStore) -> None:
    store = protect(plain, redact=redact_strings(without_cards), sealer=sealer())
    lease = await hold(store)
    await store.write(lease, row(1, "pay with 12", "34-56", "78 please"))
    frames = await store.read_frames("run", after=0)
    assert [frame.data["delta"] for frame in frames] == ["pay with [card] please", "", ""]


async def test_a_step_returns_at_once_what_a_replay_returns(plain: RunStore) -> None:
    store = protect(plain, redact=redact_strings(without_cards))
    lease = await hold(store)
    written = await store.write(lease, completed(0, {"card": "1234-5678"}))
    assert written.steps[0].result == {"card": "[card]"}


# Turns.


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    guard = EnvelopeSealer(LocalKeys({"k": OLD}, current="k"))

    async def open_handle(clock: ManualClock) -> RunStore:
        inner = await open_store(f"sqlite:{tmp_path / 'turns.db'}", clock=clock)
        return protect(inner, sealer=guard, redact=redact_strings(without_cards))

    async with Stage(open_handle) as stage:
        yield stage


async def test_a_turn_in_a_protected_store_survives_a_kill(stage: Stage, tmp_path: Path) -> None:
    begun = asyncio.Event()
    hanging: list[Any] = [text(f"{CANARY} begins"), begun.set, asyncio.Event()]
    worker = await stage.worker(Script(hanging))
    await worker.engine.submit(TURN, f"{CANARY} 1234-5678?")
    await begun.wait()
    await worker.kill()
    stage.lapse()
    script = Script(words(f"{CANARY}", " ends"))
    engine = await stage.engine(script)
    await engine.submit(TURN, f"{CANARY} 1234-5678?")
    reader = await Reader().read(engine)
    assert reader.text == f"{CANARY} ends"
    assert script.turns[0].user_message == f"{CANARY} [card]?"
    assert (await Reader().read(engine)).text == f"{CANARY} ends"
    await engine.aclose(drain_ms=0)
    assert CANARY.encode() not in stored_bytes(tmp_path)
