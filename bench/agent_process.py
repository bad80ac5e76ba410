"""An agent of Pydantic AI on one engine, in a process that kills itself once at a chosen point.

    python -m bench.agent_process run|turn|turn-once|dbos|dbos-steps FOLDER [POINT]

The same agent each time: it looks at two things at once, books, and answers in four words. FOLDER
holds the database, and `notes.txt` with what happened outside of it, in order: `model N`,
`tool NAME`, and `shown WORD` for what an event stream handler was given. The points:
`model`, in the second request to the model, whose reply is lost; `tool`, in the tool `book`, behind
its effect; `recorded`, in the third request, when all tools are; `stream`, in the third answer,
behind its second word. `turn-once`: a call of `book` may happen at most once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from pydantic_ai import Agent, AgentStreamEvent, RunContext, TextPart, ToolReturnPart
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPartDelta,
    ToolCallPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from perdure import (
    AgentTaskSpec,
    ChatTurnEngine,
    ChatTurnIdentity,
    DurableContext,
    RunManifest,
    RunStore,
    open_store,
    run_durable,
)
from perdure.engines.pydantic_ai import AgentTurns, PerdureDurability, durably

TURN: Final = ChatTurnIdentity("", "s", "ann", 0)
MANIFEST: Final = RunManifest("agents", AgentTaskSpec("trip", "Book a trip"))
PROMPT: Final = "Book a trip"
WORDS: Final = ("Two ", "seats ", "to ", "Faro.")
FINAL: Final = "I book it. Two seats to Faro."

Note = Callable[[str], None]
Pause = Callable[[], Awaitable[None]]


class Notes:
    """What happened outside of any database, in a file that outlives the process."""

    def __init__(self, folder: Path, *, dies_at: str | None = None) -> None:
        self._path = folder / "notes.txt"
        self.dies_at = dies_at
        self.before_death: Pause | None = None

    def add(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(f"{line}\n")

    async def pass_by(self, point: str) -> None:
        """Die here, if this is where to."""
        if point != self.dies_at:
            return
        if self.before_death is not None:
            await self.before_death()
        os.kill(os.getpid(), signal.SIGKILL)

    @property
    def lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []


def scripted(notes: Notes) -> FunctionModel:
    """Return a model that answers by how many results of tools it was told."""

    async def begun(messages: list[ModelMessage]) -> int:
        results = [
            part
            for message in messages
            for part in message.parts
            if isinstance(part, ToolReturnPart)
        ]
        number = {0: 1, 2: 2, 3: 3}[len(results)]
        notes.add(f"model {number}")
        await notes.pass_by({2: "model", 3: "recorded"}.get(number, ""))
        return number

    async def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        match await begun(messages):
            case 1:
                calls = [("look", "c1"), ("listen", "c2")]
                return ModelResponse([ToolCallPart(name, {}, id) for name, id in calls])
            case 2:
                said = TextPart("I book it. ")
                return ModelResponse([said, ToolCallPart("book", {"seats": 2}, "c3")])
            case _:
                return ModelResponse([TextPart("".join(WORDS))])

    async def stream(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[Any]:
        match await begun(messages):
            case 1:
                yield {
                    0: DeltaToolCall("look", "{}", tool_call_id="c1"),
                    1: DeltaToolCall("listen", "{}", tool_call_id="c2"),
                }
            case 2:
                yield "I book it. "
                yield {1: DeltaToolCall("book", '{"seats": 2}', tool_call_id="c3")}
            case _:
                for word in WORDS:
                    yield word
                    if word == WORDS[1]:
                        await notes.pass_by("stream")

    return FunctionModel(answer, stream_function=stream, model_name="scripted")


def booker(
    notes: Notes,
    capability: Any,
    *,
    booking: str = "idempotent",
    wrap: Callable[[Any], Any] = lambda f: f,
) -> Any:
    """Return the agent; `booking` is the effect of `book`, `wrap` is done to each of its tools."""

    async def look() -> str:
        """Look at the timetable."""
        await asyncio.sleep(0)
        notes.add("tool look")
        return "at ten"

    async def listen() -> str:
        """Listen to the customer."""
        notes.add("tool listen")
        return "two seats"

    async def book(seats: int) -> str:
        """Book seats."""
        notes.add("tool book")
        await notes.pass_by("tool")
        return f"{seats} booked"

    agent = Agent(scripted(notes), name="booker", capabilities=[capability])
    for tool, effect in ((look, "pure"), (listen, "pure"), (book, booking)):
        agent.tool_plain(metadata={"perdure": {"effect": effect}})(wrap(tool))
    return agent


def handler_noting(notes: Notes) -> Callable[..., Awaitable[None]]:
    """Return an event stream handler that notes each word that it is given."""

    async def handle(_: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            match event:
                case PartStartEvent(part=TextPart(content=word)) if word:
                    notes.add(f"shown {word}")
                case PartDeltaEvent(delta=TextPartDelta(content_delta=word)) if word:
                    notes.add(f"shown {word}")
                case _:
                    pass

    return handle


async def run(store: RunStore, agent: Any) -> str:
    """Run the agent as the task of a durable run; return its answer."""

    async def task(context: DurableContext) -> str:
        with durably(context):
            return str((await agent.run(PROMPT)).output)

    return (await run_durable(store, run_id="trip", manifest=MANIFEST, task=task)).result


async def on_perdure(way: str, folder: Path, notes: Notes) -> None:
    """Have the agent work in a run, or answer a turn, and go on with what is there of it."""
    store = await open_store(f"sqlite:{folder / 'runs.db'}")
    booking = "at_most_once" if way == "turn-once" else "idempotent"
    agent = booker(notes, PerdureDurability(), booking=booking)
    if way == "run":
        await run(store, agent)
        await store.close()
        return

    async def stored() -> None:
        while not any(WORDS[1] in str(each.data) for each in await store.read_frames("chat:s:0")):
            await store.wait_for_change("chat:s:0", timeout_ms=10)

    if notes.dies_at == "stream":
        notes.before_death = stored
    engine = ChatTurnEngine(store, produce=AgentTurns(agent), name="booker")
    turn = await engine.submit(TURN, PROMPT)
    async for _ in turn.lines():
        pass
    await engine.aclose()
    await store.close()


async def on_dbos(folder: Path, notes: Notes, *, with_steps: bool) -> None:
    """Have the agent work in a workflow of DBOS, or wait for the one that it recovers."""
    from dbos import DBOS, SetWorkflowID
    from pydantic_ai.durable_exec.dbos import DBOSDurability

    url = f"sqlite:///{folder / 'dbos.sqlite'}"
    config: Any = {
        "name": "booker", "system_database_url": url, "enable_otlp": False,
        "application_version": "1", "console_log_level": "ERROR", "log_level": "ERROR",
    }  # fmt: skip
    DBOS(config=config)
    capability = DBOSDurability(event_stream_handler=handler_noting(notes))
    agent = booker(notes, capability, wrap=DBOS.step() if with_steps else lambda f: f)

    @DBOS.workflow()
    async def trip() -> str:
        return str((await agent.run(PROMPT)).output)

    DBOS.launch()
    known = await DBOS.get_workflow_status_async("trip")
    if known is None:
        with SetWorkflowID("trip"):
            await DBOS.start_workflow_async(trip)
    await (await DBOS.retrieve_workflow_async("trip")).get_result()
    DBOS.destroy()


async def main(way: str, folder: str, point: str | None = None) -> None:
    notes = Notes(Path(folder), dies_at=point)
    if way.startswith("dbos"):
        await on_dbos(Path(folder), notes, with_steps=way == "dbos-steps")
    else:
        await on_perdure(way, Path(folder), notes)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
