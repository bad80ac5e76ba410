"""What earlier attempts at a turn left, and what becomes of it in this one."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.core.changes import FailStep
from perdure.core.frames import (
    KEPT_KINDS,
    MARK_KINDS,
    Frame,
    cursor_mark,
    fold_parts,
    format_cursor,
    part_frame,
)
from perdure.durable.attempt import Attempt
from perdure.durable.failures import given_up
from perdure.durable.journal import Journal, stored_bytes
from perdure.errors import PerdureError, UnfinishedStepError
from perdure.turn.ending import ProducerLostError
from perdure.turn.parts import Content
from perdure.turn.recovery import Evidence, gather_evidence, is_remembered, saved_handle
from perdure.turn.stepping import TurnSteps


class Inheritance:
    """The frames and steps that this attempt at a turn finds, once it has `read` them.

    What it keeps of them counts as part of the answer, and stays with the readers.
    """

    def __init__(
        self, attempt: Attempt, *, journal: Journal, steps: TurnSteps, content: Content
    ) -> None:
        self.evidence = Evidence(True, (), (), {})
        self.handle = saved_handle(attempt.run.upstream)
        self._attempt = attempt
        self._journal = journal
        self._steps = steps
        self._content = content

    async def read(self) -> Evidence:
        """Return what the store knows of the earlier attempts."""
        run = self._attempt.run
        frames: list[Frame] = []
        after = max(0, run.live_from - 1)
        while self._journal.last_seq > after:
            page = await self._attempt.store.read_frames(run.run_id, after=after)
            if not page:
                break
            frames.extend(page)
            after = page[-1].seq
        self._journal.log_bytes = stored_bytes(frames)
        is_first = self._attempt.lease.epoch == 1
        self.evidence = gather_evidence(frames, self._attempt.history, is_first=is_first)
        if self.evidence.ended_before:
            # What the turn waited for was ended with it.
            self._steps.upstream = None
        return self.evidence

    @property
    def joinable(self) -> Sequence[Frame]:
        """The frames of the answer that the handle stands for."""
        after = 0 if self.handle is None else self.handle.after
        return [frame for frame in self.evidence.frames if frame.seq > after]

    def keep_steps(self) -> None:
        """Keep what belongs to recorded steps; readers see nothing of it."""
        self._steps.open_wait = self.evidence.open_wait
        self._recall(self.evidence.kept)

    def keep_steps_only(self) -> None:
        """Let readers forget all but what belongs to recorded steps."""
        self._steps.open_wait = self.evidence.open_wait
        self._begin_again(self.evidence.kept)

    def keep_everything(self) -> None:
        """Keep all that readers have seen; only behind an end they must be told so."""
        if self.evidence.ended_before:
            self._begin_again(self.evidence.frames)
        else:
            self._recall(self.evidence.frames)

    def go_on_behind_everything(self) -> None:
        """Keep all that readers have seen, and write on where it ends."""
        self.keep_everything()
        shown = (frame for frame in reversed(self.evidence.frames) if frame.kind in KEPT_KINDS)
        last = next(shown, None)
        if last is not None:
            self._journal.resume_part(last)

    def open_steps_as_failed(self) -> list[FailStep]:
        """Return the records of steps of which nobody knows whether they took effect."""
        taken = max(self._attempt.history) + 1
        return [given_up(step, taken=taken) for step in self.evidence.open_steps]

    def lost(self) -> PerdureError:
        """Return why the turn does not go on by itself."""
        tool = self.evidence.open_tool_call
        if tool is not None:
            return UnfinishedStepError(
                f"the turn was interrupted in the tool call {tool!r}: "
                "whether it took effect is unknown"
            )
        return ProducerLostError("the attempt at the turn was lost")

    def _recall(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            if frame.kind == "upstream_end":
                self._steps.finish_reason = frame.data["finish"]
            elif is_remembered(frame):
                self._content.add(frame)
        self._content.spoken = 0

    def _begin_again(self, kept: Sequence[Frame]) -> None:
        compact = [part_frame(part) for part in fold_parts(kept)]
        compact.extend({f.kind: f for f in kept if f.kind in MARK_KINDS}.values())
        last = self.evidence.frames[-1]
        if self.evidence.ended_before:
            reason = "retry"
        else:
            reason = "lease_expired" if self._attempt.run.strikes else "released"
        mark = cursor_mark(self._attempt.lease.run_id)
        self._journal.begin_again(
            compact, reason=reason, discarded_from=format_cursor(last.epoch, last.seq, mark)
        )
        self._recall(compact)
