"""From SIGKILL to the next step, for graphs and agents: `python -m bench.engine_kills`.

The killed process is another one; the time counts from opening its store here, without imports.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perdure import ChatTurnEngine, open_store
from tests.engines import agents_process, graph_process

KILLS = 3
Note = Callable[[str], Any]


def die(module: str, url: str, *arguments: str) -> None:
    """Have a process work on the store until it kills itself."""
    done = subprocess.run([sys.executable, "-m", module, url, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL


async def graph_turn(url: str, note: Note) -> None:
    store = await open_store(url)
    engine = ChatTurnEngine(store, produce=graph_process.graph_turns(store, note), name="graph")
    await ended(engine, graph_process.TURN, "Look and listen")
    await store.close()


async def agent_run(url: str, note: Note) -> None:
    store = await open_store(url)
    await agents_process.run(store, agents_process.payer(note))
    await store.close()


async def agent_turn(url: str, note: Note) -> None:
    store = await open_store(url)
    agent = agents_process.payer(note)
    produce = agents_process.AgentTurns(agent, store=store, effects={"pay": "idempotent"})
    await ended(
        ChatTurnEngine(store, produce=produce, name="agents"), agents_process.TURN, "Pay the bill"
    )
    await store.close()


async def ended(engine: ChatTurnEngine, turn: Any, message: str) -> None:
    submitted = await engine.submit(turn, message)
    async for _ in submitted.lines():
        pass
    await engine.aclose()


SIDES = {
    "graph turn": ("tests.engines.graph_process", (), graph_turn),
    "agent run": ("tests.engines.agents_process", ("run", "--die"), agent_run),
    "agent turn": ("tests.engines.agents_process", ("turn", "--die"), agent_turn),
}


def main() -> None:
    agents_process.set_tracing_disabled(True)
    for name, (module, arguments, go_on) in SIDES.items():
        for _ in range(KILLS):
            with tempfile.TemporaryDirectory() as folder:
                url, notes = f"sqlite:{Path(folder) / 'runs.db'}", Path(folder) / "notes"
                die(module, url, str(notes), *arguments)
                begun, seen = time.perf_counter(), []

                def note(word: str, begun: float = begun, seen: list[Any] = seen) -> None:
                    seen.append((word, round(1_000 * (time.perf_counter() - begun))))

                asyncio.run(go_on(url, note))
                print(f"{name}: {', '.join(f'{word} after {ms} ms' for word, ms in seen)}")


if __name__ == "__main__":
    main()
