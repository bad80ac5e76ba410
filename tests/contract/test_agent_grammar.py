"""The grammar of streams, line by line: each stands for a complete run."""

from __future__ import annotations

import re
from typing import Any

import pytest

from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import InMemoryRuntimeSessionStore, new_session
from perdure.agent.stream import run_agent_task_stream
from perdure.agent.stream_events import LlmCallEvent, TextDeltaEvent, ToolCallEvent
from perdure.core.records import AgentTaskSpec
from tests.agent.robots import Librarian
from tests.agent.streaming import Played, final_of, read, types

READY = "task_start readiness_start readiness_end"
ASKED = "task_start readiness_start questions_start questions_end readiness_start readiness_end"
OWN = r"( text_delta| reasoning_delta| tool_call| tool_result| llm_call| artifact)*"
GRAMMAR = {
    "blocked": f"{READY} task_end final",
    "ready": f"{READY} session_created backend_start{OWN} backend_end task_end final",
    "resumed": f"{READY} session_resumed backend_start{OWN} backend_end task_end final",
    "asked": f"{ASKED} session_created backend_start{OWN} backend_end task_end final",
    "failed": f"{READY} session_created backend_start{OWN} backend_error task_end final",
}
STATUS = {"blocked": "blocked", "failed": "failed"}
TOLD = (ToolCallEvent(tool_name="f"), TextDeltaEvent(text="a"), LlmCallEvent(model="m"))
DOOR = KnowledgeRequirement("door", "its colour", fallback_policy="block")


class Answering:
    answer_questions = Librarian().answer_questions


async def stream_of(line: str) -> list[Any]:
    store = InMemoryRuntimeSessionStore()
    await store.put(new_session("played", session_id="known"))
    script = (*TOLD, ConnectionError("the line is dead")) if line == "failed" else TOLD
    task = AgentTaskSpec("t", "Answer")
    if line in ("blocked", "asked"):
        task = task._replace(required_knowledge=[DOOR])
    stream = run_agent_task_stream(
        task,
        Played(*script),
        knowledge=Answering() if line == "asked" else None,
        session=SessionChoice(store, "known", resume=True) if line == "resumed" else None,
    )
    return await read(stream)


@pytest.mark.parametrize("line", GRAMMAR)
async def test_appendix_b_a_stream_keeps_to_the_line_of_its_course(line: str) -> None:
    events = await stream_of(line)
    assert re.fullmatch(GRAMMAR[line], types(events)), types(events)
    assert final_of(events).status == STATUS.get(line, "completed")


@pytest.mark.parametrize("line", GRAMMAR)
async def test_appendix_b_no_line_fits_another_course(line: str) -> None:
    told = types(await stream_of(line))
    assert [name for name, each in GRAMMAR.items() if re.fullmatch(each, told)] == [line]
