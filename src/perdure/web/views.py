"""What a client sees of turns and sessions that are not streaming to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perdure.core.frames import DELTA_KINDS, Frame, fold_parts, text_of
from perdure.core.records import JsonValue, RunRecord, UsageRecord
from perdure.core.transitions import TERMINAL_STATES
from perdure.store.protocol import RunStore
from perdure.turn.ending import answer_of, final_text_of
from perdure.turn.history import conversation_of, messages_of, read_session

LIVE_STATES = ("queued", "running", "sleeping", "waiting")


async def turn_view(store: RunStore, run: RunRecord) -> dict[str, JsonValue]:
    """Return one turn: its state, what there is of its answer, what it used, what followed."""
    details = await store.read_details(run.run_id)
    text, parts, finish_reason, failure = await _answer(store, run)
    return {
        "sessionId": run.session_id,
        "turnIndex": run.turn_index,
        "revision": run.revision,
        "state": run.state,
        "reason": run.reason,
        "attempt": run.epoch,
        "message": _message(run),
        "attachments": _attachments(run),
        "text": text,
        "parts": [part_view(part) for part in parts],
        "finishReason": finish_reason,
        "error": failure,
        "createdAt": run.created_at,
        "completedAt": run.completed_at,
        "usage": [_usage_view(usage) for usage in details.usage],
        "deliveries": [
            {
                "topic": delivery.topic,
                "state": delivery.state,
                "tries": delivery.tries,
                "deliveredAt": delivery.delivered_at,
            }
            for delivery in details.deliveries
        ],
    }


async def session_view(store: RunStore, session_id: str, user_id: str) -> dict[str, Any] | None:
    """Return a session's conversation; None if it is unknown, or somebody else's.

    An answer in flight is not among the messages: it is in its stream, and `inFlight` says where.
    `next` is the place of the message that continues the conversation.
    """
    runs = await read_session(store, session_id)
    if not runs or runs[0].owner_id not in (None, user_id):
        return None
    conversation = conversation_of(runs)
    line = {run.run_id for run in conversation.line}
    places = {run.run_id: _place(run) for run in runs}
    turns = [
        {
            **_turn_line(run),
            "parent": places.get(run.parent_run_id or ""),
            "isCurrent": run.run_id in line,
        }
        for run in runs
    ]
    live = [turn for turn in turns if turn["state"] in LIVE_STATES]
    begun = [turn for turn in live if turn["state"] != "queued"]
    return {
        "sessionId": session_id,
        "messages": messages_of(conversation.line),
        "turns": turns,
        "inFlight": begun[-1] if begun else live[0] if live else None,
        "next": {
            "turnIndex": conversation.next_turn_index,
            "revision": conversation.next_revision,
        },
    }


def _place(run: RunRecord) -> dict[str, JsonValue]:
    return {"turnIndex": run.turn_index, "revision": run.revision}


def _turn_line(run: RunRecord) -> dict[str, JsonValue]:
    return {
        **_place(run),
        "state": run.state,
        "attempt": run.epoch,
        "message": _message(run),
        "createdAt": run.created_at,
        "completedAt": run.completed_at,
    }


def _attachments(run: RunRecord) -> JsonValue:
    return [] if run.manifest is None else run.manifest.input.get("attachments", [])


def _message(run: RunRecord) -> JsonValue:
    return None if run.manifest is None else run.manifest.input.get("userMessage")


async def _answer(
    store: RunStore, run: RunRecord
) -> tuple[str, Sequence[Mapping[str, JsonValue]], JsonValue, JsonValue]:
    """Return text and parts, of the record or (unfinished) of the frames, and how it ended.

    That is the model's finish reason, or the failure.
    """
    if run.state in TERMINAL_STATES:
        answer = answer_of(await store.read_steps(run.run_id))
        return final_text_of(answer), answer.get("parts", []), answer.get("finishReason"), None
    frames = await _all_frames(store, run)
    parts = fold_parts(frames)
    last = frames[-1] if frames else None
    failure = dict(last.data) if last is not None and last.kind == "failed" else None
    return text_of(parts), parts, None, failure


async def _all_frames(store: RunStore, run: RunRecord) -> list[Frame]:
    frames: list[Frame] = []
    after = max(0, run.live_from - 1)
    while page := await store.read_frames(run.run_id, after=after):
        frames.extend(page)
        after = page[-1].seq
    return frames


def part_view(part: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return a stored part under the names that the stream uses."""
    kind, rest = part["k"], {key: value for key, value in part.items() if key != "k"}
    if kind in DELTA_KINDS:
        return {"type": kind, "id": rest["part"], "text": rest["d"]}
    if kind in ("tool_call", "tool_result"):
        return {"type": kind, "id": rest.pop("call"), **rest}
    return {"type": kind, **rest}


def _usage_view(usage: UsageRecord) -> dict[str, JsonValue]:
    return {
        "attempt": usage.epoch,
        "call": usage.call,
        "state": usage.state,
        "provider": usage.provider,
        "model": usage.model,
        "tokensIn": usage.tokens_in,
        "tokensOut": usage.tokens_out,
        "tokensCached": usage.tokens_cached,
        "tokensCacheWritten": usage.tokens_cache_written,
        "tokensReasoning": usage.tokens_reasoning,
    }
