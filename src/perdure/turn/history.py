"""The conversation a turn belongs to: its parents, fixed when it was submitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

from perdure.core.records import JsonValue, RunRecord
from perdure.store.protocol import RunStore

_PAGE: Final = 500
"""Turns of a session that are read at one go."""


async def read_session(store: RunStore, session_id: str) -> list[RunRecord]:
    """Return all turns of a session with their answers, by turn and revision."""
    runs: list[RunRecord] = []
    after: str | None = None
    while True:
        page = await store.list_runs(
            session_id=session_id, after=after, limit=_PAGE, with_answer=True
        )
        runs.extend(page)
        if len(page) < _PAGE:
            return runs
        after = page[-1].run_id


def lineage(runs: Sequence[RunRecord], last: str | None) -> list[RunRecord]:
    """Return the turns that lead to the run `last`, that one included, oldest first."""
    by_id = {run.run_id: run for run in runs}
    chain: list[RunRecord] = []
    while last is not None and last in by_id and len(chain) < len(by_id):
        chain.append(by_id[last])
        last = by_id[last].parent_run_id
    chain.reverse()
    return chain


def newest_answered(runs: Sequence[RunRecord]) -> str | None:
    """Return the newest revision of the latest turn that has an answer."""
    answered = [run for run in runs if run.state in ("completed", "stopped")]
    if not answered:
        return None
    return max(answered, key=lambda run: (run.turn_index or 0, run.revision)).run_id


def messages_of(runs: Sequence[RunRecord]) -> list[Mapping[str, JsonValue]]:
    """Return turns as messages `{role, content}`. An empty answer is left out."""
    messages: list[Mapping[str, JsonValue]] = []
    for run in runs:
        if run.manifest is not None:
            message = run.manifest.input.get("userMessage", "")
            messages.append({"role": "user", "content": message})
        answer: object = run.answer
        text = None
        if isinstance(answer, dict):
            text = cast("dict[str, JsonValue]", answer).get("finalText")
        if text:
            messages.append({"role": "assistant", "content": text})
    return messages


async def history_of(store: RunStore, run: RunRecord) -> list[Mapping[str, JsonValue]]:
    """Return the messages that come before the turn `run`."""
    if run.parent_run_id is None or run.session_id is None:
        return []
    runs = await read_session(store, run.session_id)
    return messages_of(lineage(runs, run.parent_run_id))
