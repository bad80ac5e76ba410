"""The frames of a run: numbered without a gap over all attempts, read in order from any place."""

from __future__ import annotations

from perdure.core.changes import AppendFrames, Change
from perdure.core.frames import (
    Frame,
    data,
    encode_row,
    reasoning,
    source,
    text,
    tool_call,
    tool_result,
    upstream_end,
    usage,
)
from perdure.core.limits import LEASE_MS
from perdure.core.records import Lease
from perdure.errors import StoreCorruptError
from perdure.store.protocol import RunStore
from perdure.testing.lab import StoreLab, case, check, read, refused, same, snapshot, unchanged
from perdure.testing.samples import completed, ended, hold, manifest, restart_row, row, text_of


async def _three_rows(store: RunStore) -> Lease:
    """Write seven frames in three rows: 1-3, 4-6 and 7."""
    lease = await hold(store)
    await store.write(lease, row(1, "a", "b", "c"))
    await store.write(lease, row(4, "d", "e", "f"))
    await store.write(lease, row(7, "g"))
    return lease


async def _live_from(store: RunStore) -> int | None:
    run = await store.read_run("run")
    return None if run is None else run.live_from


@case
async def frames_are_read_back_as_they_were_written(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    frames = [
        reasoning("Let me see", "r1"),
        reasoning(".", "r1"),
        text("He", "p1"),
        text("llo", "p1"),
        text("Other", "p2"),
        tool_call("c1", "search", {"q": ["x", None, 1.5]}),
        tool_result("c1", {"hits": 3}),
        tool_result("c2", error={"code": "broken", "message": "no"}),
        source("https://example.org/", "Example"),
        data("chart", {"points": [[1, 2]]}),
        usage(model="m", tokens_in=3, tokens_out=4),
        upstream_end("stop"),
    ]
    lease = await hold(first)
    await first.write(lease, AppendFrames(1, len(frames), encode_row(frames)))
    expected = [frame._replace(seq=seq, epoch=1) for seq, frame in enumerate(frames, start=1)]
    same(list(await second.read_frames("run")), expected, "the frames")


@case
async def frames_are_read_from_behind_any_seq(lab: StoreLab) -> None:
    store = await lab.open()
    await _three_rows(store)
    for after in range(-1, 9):
        frames = await store.read_frames("run", after=after)
        seqs = list(range(max(after + 1, 1), 8))
        same([frame.seq for frame in frames], seqs, f"the frames behind {after}")
        same(text_of(frames), "abcdefg"[max(after, 0) :], f"the text behind {after}")


@case
async def a_limit_cuts_at_the_end_of_a_row_and_loses_nothing(lab: StoreLab) -> None:
    store = await lab.open()
    await _three_rows(store)
    for limit in (1, 2, 3, 5, 1_000):
        seqs: list[int] = []
        while frames := await store.read_frames("run", after=seqs[-1] if seqs else -1, limit=limit):
            check(frames[-1].seq in (3, 6, 7), f"a cut within a row, after {frames[-1].seq}")
            seqs += [frame.seq for frame in frames]
        same(seqs, list(range(1, 8)), f"all frames, read in pages of {limit}")
    page = await store.read_frames("run", limit=1)
    same([frame.seq for frame in page], [1, 2, 3], "a page of about one frame")


@case
async def nothing_is_read_where_nothing_is_stored(lab: StoreLab) -> None:
    store = await lab.open()
    same(list(await store.read_frames("nobody")), [], "the frames of an unknown run")
    await hold(store)
    same(list(await store.read_frames("run")), [], "the frames of a new run")


@case
async def frames_go_on_over_attempts_and_name_their_epoch(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    await first.write(await hold(first), row(1, "a", "b"))
    lab.clock.advance(LEASE_MS)
    lease = await hold(second, worker_id="bob")
    await second.write(lease, row(3, "c"))
    frames = await first.read_frames("run")
    same([frame.seq for frame in frames], [1, 2, 3], "the seqs")
    same([frame.epoch for frame in frames], [1, 1, 2], "the epochs")


@case
async def several_rows_may_come_in_one_write(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, row(1, "a"), completed(0), row(2, "b", "c"), restart_row(4, "d"))
    seqs = [frame.seq for frame in await store.read_frames("run")]
    same(seqs, [1, 2, 3, 4, 5], "the seqs")
    same((await read(store, "run")).live_from, 4, "the place that readers go on from")


@case
async def frames_that_leave_a_gap_or_overlap_are_refused(lab: StoreLab) -> None:
    store = await lab.open()
    fresh = await hold(store, "fresh")
    for first_seq in (0, 2):
        with refused(StoreCorruptError):
            await store.write(fresh, row(first_seq, "astray"))
    same(list(await store.read_frames("fresh")), [], "the frames of a fresh run")
    lease = await _three_rows(store)
    before = await snapshot(store, "run")
    wrong: tuple[Change, ...] = (
        row(9, "gap"),
        row(6, "f", "overlap"),
        row(7, "g", "longer"),
        row(2, "within"),
        row(1, "a", "b"),
        row(7, "G"),
        restart_row(9, "gap"),
        restart_row(6, "overlap"),
    )
    for change in wrong:
        with refused(StoreCorruptError):
            await store.write(lease, change, completed(0))
        await unchanged(store, "run", before)
    await store.write(lease, row(8, "h"))


@case
async def a_row_whose_reply_was_lost_may_be_written_again(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, row(1, "a", "b"))
    before = await store.read_frames("run")
    await store.write(lease, row(1, "a", "b"))
    same(list(await store.read_frames("run")), list(before), "the frames after the repetition")
    await store.write(lease, row(1, "a", "b"), row(3, "c"))
    same(text_of(await store.read_frames("run")), "abc", "the text that went on")


@case
async def a_row_behind_others_may_be_written_again(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await _three_rows(store)
    before = await snapshot(store, "run")
    await store.write(lease, row(7, "g"))
    await unchanged(store, "run", before)
    with refused(StoreCorruptError):
        await store.write(lease, row(6, "f", "g"))
    await store.write(lease, row(8, "h"), completed(0))
    await store.write(lease, row(8, "h"), completed(0))
    same(text_of(await store.read_frames("run")), "abcdefgh", "the text that went on")


@case
async def a_row_of_an_earlier_attempt_is_not_taken_for_a_repetition(lab: StoreLab) -> None:
    store = await lab.open()
    await store.write(await hold(store), row(1, "a", "b"))
    lab.clock.advance(LEASE_MS)
    lease = await hold(store, worker_id="bob")
    before = await snapshot(store, "run")
    with refused(StoreCorruptError):
        await store.write(lease, row(1, "a", "b"))
    await unchanged(store, "run", before)


@case
async def a_restart_moves_the_place_that_readers_go_on_from(lab: StoreLab) -> None:
    store = await lab.open()
    same(await _live_from(store), None, "the place in a run that is not there")
    await store.write(await hold(store), row(1, "lost", "words"))
    same(await _live_from(store), 0, "the place in a first attempt")
    lab.clock.advance(LEASE_MS)
    lease = await hold(store, worker_id="bob")
    await store.write(lease, restart_row(3, "kept"))
    same(await _live_from(store), 3, "the place after a restart")
    await store.write(lease, row(5, "new"))
    same(await _live_from(store), 3, "the place after further frames")
    frames = await store.read_frames("run", after=2)
    same([frame.kind for frame in frames], ["restarted", "text", "text"], "what follows it")
    same(frames[0].data["attempt"], 2, "the attempt that a reader is told of")
    same(len(await store.read_frames("run")), 5, "the frames, those before it included")
    lab.clock.advance(LEASE_MS)
    await store.write(await hold(store, worker_id="cyd"), restart_row(6))
    same(await _live_from(store), 6, "the place after a second restart")


@case
async def a_repeated_restart_is_done_once(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, row(1, "lost"))
    for _ in range(2):
        await store.write(lease, restart_row(2, "kept"))
    same(len(await store.read_frames("run")), 3, "the number of frames")
    same(await _live_from(store), 2, "the place that readers go on from")


@case
async def the_last_frames_come_with_the_end_of_the_run(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    last = AppendFrames(1, 1, encode_row([Frame(0, 0, "completed", {})]))
    await store.write(lease, last, completed(0), ended("completed"))
    same([frame.kind for frame in await store.read_frames("run")], ["completed"], "the frames")
    claim = await store.start_or_resume("run", manifest(), worker_id="bob")
    same(claim.next_seq, 2, "the next seq of the ended run")
