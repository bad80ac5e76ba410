"""A process that works on one turn by a single model call, until it is killed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import perdure
from perdure.agent.tool_loop import ToolLoop
from perdure.backends.protocol import Prompt
from perdure.backends.responses import OpenAIResponsesBackend
from perdure.backends.scripted import ScriptedBackend, ScriptItem
from perdure.core.frames import text, upstream_end, usage
from perdure.core.limits import LEASE_MS
from perdure.core.transitions import RESTING_STATES
from perdure.turn.answering import GO_ON, BackendProducer, answer_with
from tests.crash.provider_process import COUNTED, FINAL, TOKEN_S, WORDS
from tests.crash.turn_process import TURN, Notes, say


def joining(port: str) -> BackendProducer:
    """Ask a provider whose answers outlive this process."""
    return answer_with(OpenAIResponsesBackend(base_url=f"http://127.0.0.1:{port}/v1", model="m"))


def looping(port: str) -> ToolLoop:
    """Ask such a provider in the steps of a loop."""
    backend = OpenAIResponsesBackend(base_url=f"http://127.0.0.1:{port}/v1", model="m")
    return ToolLoop(backend, [])


def going_on(notes: Notes) -> BackendProducer:
    """Ask a model that can go on, and lives in this process."""

    def script(prompt: Prompt) -> Iterator[ScriptItem]:
        *before, last = prompt.messages
        known = ""
        if last["content"] == GO_ON:
            known = before[-1]["content"]
            assert FINAL.startswith(known)
        notes.add(f"asked behind {len(known)}")
        for word in WORDS[known.count(" ") :]:
            yield text(word)
        yield usage(tokens_in=COUNTED["input_tokens"])
        yield upstream_end("stop")

    return answer_with(ScriptedBackend(script, token_delay_ms=TOKEN_S * 1_000))


async def main(url: str, notes_path: str, port: str) -> None:
    """Submit the turn again and again until it is at rest."""
    notes = Notes(notes_path)
    store = await perdure.open_store(url)
    kind, _, number = port.rpartition(":")
    if port == "-":
        engine = perdure.ChatTurnEngine(
            store, produce=going_on(notes), on_interrupted="continue", lease_ms=LEASE_MS
        )
    elif kind == "loop":
        engine = perdure.ChatTurnEngine(store, produce=looping(number), lease_ms=LEASE_MS)
    else:
        engine = perdure.ChatTurnEngine(
            store, produce=joining(number), on_interrupted="fail", lease_ms=LEASE_MS
        )
    while True:
        submitted = await engine.submit(TURN, "Hi")
        if submitted.run.state in RESTING_STATES:
            break
        say(submitted.run.state)
        await asyncio.sleep(0.05)
    await engine.aclose()
    await store.close()
    say("over")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
