"""A process that asks a billing provider in runs and turns until all of them are at rest.

python -m tests.crash.billed_process STORE PROVIDER RUNS
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import perdure
from perdure.backends.openai import OpenAIBackend
from perdure.backends.protocol import Prompt
from perdure.backends.retry import BackendRetry
from perdure.core.frames import Frame
from perdure.core.records import Retry
from perdure.core.transitions import RESTING_STATES
from perdure.errors import (
    BackendTransportError,
    LeaseHeldError,
    LeaseLostError,
    RunParkedError,
    StepFailedError,
)
from tests.crash.billing import MODEL
from tests.crash.turn_process import say

LEASE_MS = 5_000
STEPS = 4
STEP_RETRY = Retry(tries_max=3, backoff_ms=1)


def backend_at(address: str) -> OpenAIBackend:
    retry = BackendRetry(tries_max=4, backoff_ms=1)
    return OpenAIBackend(model=MODEL, base_url=address, api_key="key", retry=retry)


async def asked(backend: OpenAIBackend, asker: str, question: str) -> str:
    """Ask within a step, and report what the answer used."""
    key = perdure.current_step().idempotency_key
    words: list[str] = []
    messages = [{"role": "user", "content": question}]
    prompt = Prompt(messages, idempotency_key=key, extra_body={"user": asker})
    async for frame in backend.stream(prompt):
        if frame.kind == "text":
            words.append(str(frame.data["delta"]))
        elif frame.kind == "usage":
            perdure.report_usage(
                provider=frame.data.get("provider"),
                model=frame.data.get("model"),
                request_id=frame.data.get("request"),
                tokens_in=frame.data.get("in"),
                tokens_out=frame.data.get("out"),
                tokens_cached=frame.data.get("cached"),
                tokens_reasoning=frame.data.get("reasoning"),
            )
    return "".join(words)


async def interview(
    context: perdure.DurableContext, backend: OpenAIBackend, run_id: str
) -> list[str]:
    """Ask one question after the other, and two at once in the end."""

    def step(number: int) -> asyncio.Future[str]:
        question = f"question {number} of many " * (number + 1)
        return asyncio.ensure_future(
            context.step(
                f"ask {number}",
                lambda: asked(backend, f"{run_id} {number}", question),
                kind="llm",
                retry=STEP_RETRY,
            )
        )

    answers = [await step(number) for number in range(STEPS - 2)]
    return [*answers, *await asyncio.gather(step(STEPS - 2), step(STEPS - 1))]


async def run(store: perdure.RunStore, backend: OpenAIBackend, number: int) -> None:
    run_id = f"interview-{number}"
    manifest = perdure.RunManifest("bills", perdure.AgentTaskSpec(run_id, "Ask"))
    while True:
        try:
            await perdure.run_durable(
                store,
                run_id=run_id,
                manifest=manifest,
                task=lambda context: interview(context, backend, run_id),
                lease_ms=LEASE_MS,
            )
        except (RunParkedError, StepFailedError, BackendTransportError):
            return
        except (LeaseHeldError, LeaseLostError):
            await asyncio.sleep(0.05)
        else:
            return


async def turn(store: perdure.RunStore, engine: perdure.ChatTurnEngine, number: int) -> None:
    identity = perdure.ChatTurnIdentity("", f"chat-{number}", "ann", 0)
    while True:
        submitted = await engine.submit(identity, f"What is {number}, in a few words?")
        if submitted.run.state in RESTING_STATES:
            return
        await asyncio.sleep(0.05)


async def main(url: str, address: str, count: int) -> None:
    store = await perdure.open_store(url)
    backend = backend_at(address)

    async def produce(turn: perdure.Turn) -> AsyncIterator[Frame]:
        messages = [{"role": "user", "content": turn.user_message}]
        prompt = Prompt(messages, idempotency_key=turn.idempotency_key)
        asker = f"chat:{turn.identity.session_id}:{turn.identity.turn_index} 0"
        async for frame in backend.stream(prompt._replace(extra_body={"user": asker})):
            yield frame

    engine = perdure.ChatTurnEngine(store, produce=produce, lease_ms=LEASE_MS, strikes_max=99)
    say("ready")
    await asyncio.gather(
        *(run(store, backend, number) for number in range(count)),
        *(turn(store, engine, number) for number in range(count)),
    )
    await engine.aclose()
    await backend.aclose()
    await store.close()
    say("over")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
