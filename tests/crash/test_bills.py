"""A provider's own bill and our ledger: equal, or unknown; nothing that was billed is absent."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
from contextlib import AbstractAsyncContextManager
from itertools import count
from pathlib import Path

import pytest

from perdure.core.records import Retry
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.durable.steps import report_usage
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.contract import NewLab
from perdure.testing.faults import crash_everywhere
from perdure.testing.lab import StoreLab
from perdure.testing.samples import manifest
from tests.crash.billing import Agreement, Billed, Provider, agreed, check_sums, providing
from tests.crash.conftest import NewUrl
from tests.crash.response_billing import ResponseProvider, responding

logger = logging.getLogger("tests.bills")

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
KILLS = int(os.environ.get("PERDURE_KILLS", "6"))
RUNS = 5 * KILLS
STEPS = 4
RETRY = Retry(tries_max=2, backoff_ms=1)
SEED = int(os.environ.get("PERDURE_SEED", "1"))


async def started(module: str, url: str, address: str) -> asyncio.subprocess.Process:
    """Start a worker, and return once it works."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, url, address, str(RUNS)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        assert (await process.stdout.readline()).strip() == b"ready"
    return process


async def worked(
    url: str,
    provider: Provider | ResponseProvider,
    address: str,
    chance: random.Random,
    *,
    kills: int,
    module: str = "tests.crash.billed_process",
    lines_max: int = 30,
) -> int:
    """Work under kills until everything is at rest; return how often there was one.

    Each comes within so many lines of the bill.
    """
    for killed in range(kills + 1):
        process = await started(module, url, address)
        ended = asyncio.ensure_future(process.wait())
        try:
            async with asyncio.timeout(PATIENCE_S):
                if killed == kills:
                    assert await ended == 0
                    return killed
                billed = asyncio.ensure_future(
                    provider.has_billed(len(provider.bill) + chance.randint(1, lines_max))
                )
                await asyncio.wait({ended, billed}, return_when=asyncio.FIRST_COMPLETED)
                billed.cancel()
                await asyncio.wait({ended}, timeout=chance.uniform(0, 0.02))
                if ended.done():
                    assert await ended == 0
                    return killed
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            await ended
    raise AssertionError("the last process is never killed")


async def compared(url: str, provider: Provider | ResponseProvider) -> Agreement:
    """Return how bill and ledger compare, once the provider has heard that everyone left."""
    await provider.is_idle()
    store = await open_store(url)
    agreement = await agreed(store, provider.bill)
    await check_sums(store, agreement)
    await store.close()
    return agreement


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("scheme", "trouble"),
    [
        pytest.param("sqlite", 0.0, id="sqlite-steady"),
        pytest.param("file", 0.3, id="file-troubled"),
        *(
            pytest.param(scheme, trouble, id=f"{scheme}-{name}", marks=pytest.mark.campaign)
            for scheme, trouble, name in (
                ("sqlite", 0.3, "troubled"),
                ("file", 0.0, "steady"),
                ("postgresql", 0.0, "steady"),
                ("postgresql", 0.3, "troubled"),
            )
        ),
    ],
)
async def test_what_was_billed_under_kills_is_in_the_ledger_or_unknown(
    new_url: NewUrl, scheme: str, trouble: float
) -> None:
    chance = random.Random(f"{SEED} {scheme} {trouble}")
    url = new_url(scheme)
    async with providing(chance, trouble=trouble) as (provider, address):
        killed = await worked(url, provider, address, chance, kills=KILLS)
        agreement = await compared(url, provider)
    logger.info("%s, trouble %s, %s kills: %s", scheme, trouble, killed, agreement)
    assert killed > 0
    assert agreement.answered > 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "scheme", ["sqlite", pytest.param("postgresql", marks=pytest.mark.campaign)]
)
async def test_the_bill_of_turns_that_are_stopped_replaced_and_joined_is_in_the_ledger_or_unknown(
    new_url: NewUrl, scheme: str
) -> None:
    chance = random.Random(f"{SEED} {scheme}")
    url = new_url(scheme)
    async with responding(chance) as (provider, address):
        module = "tests.crash.billed_turns_process"
        killed = await worked(
            url, provider, address, chance, kills=KILLS, module=module, lines_max=5
        )
        agreement = await compared(url, provider)
    logger.info("%s, %s kills, %s joined: %s", scheme, killed, provider.joined, agreement)
    assert killed > 0
    assert provider.joined > 0
    assert agreement.answered > 0


@pytest.mark.timeout(120)
async def test_a_request_that_was_made_again_is_unknown_and_the_answered_one_is_not(
    new_url: NewUrl,
) -> None:
    url, chance = new_url("sqlite"), random.Random(SEED)
    async with providing(chance, trouble=0.4, troubles=["silent"]) as (provider, address):
        await worked(url, provider, address, chance, kills=0)
        agreement = await compared(url, provider)
    assert agreement.lost == agreement.unknown > 0


class Desk:
    """A model in this process, and the bill of it."""

    def __init__(self) -> None:
        self.bill: list[Billed] = []

    async def ask(self, asker: str, *, fails: bool = False) -> str:
        """Bill an answer, and report it unless it fails."""
        line = Billed(f"req-{len(self.bill)}", asker, tokens_in=len(self.bill), tokens_out=1)
        self.bill.append(line)
        await asyncio.sleep(0)
        if fails:
            raise ConnectionError("the answer was lost")
        report_usage(
            request_id=line.request_id,
            tokens_in=line.tokens_in,
            tokens_out=line.tokens_out,
            tokens_cached=line.tokens_cached,
            tokens_reasoning=line.tokens_reasoning,
        )
        return asker

    async def run(self, context: DurableContext) -> list[str]:
        first = await context.step("one", lambda: self.ask("run 0"), kind="llm")
        tries = count()
        shaky = await context.step(
            "shaky", lambda: self.ask("run 1", fails=next(tries) == 0), kind="llm", retry=RETRY
        )
        both = await asyncio.gather(
            context.step("left", lambda: self.ask("run 2"), kind="llm"),
            context.step("right", lambda: self.ask("run 3"), kind="llm"),
        )
        return [first, shaky, *both]


async def test_what_was_billed_is_in_the_ledger_or_unknown_wherever_the_process_dies(
    new_lab: NewLab,
) -> None:
    desk = Desk()
    lost: list[int] = []

    def fresh_lab() -> AbstractAsyncContextManager[StoreLab]:
        desk.bill.clear()
        return new_lab()

    async def scenario(store: RunStore) -> list[str]:
        done = await run_durable(store, run_id="run", manifest=manifest(), task=desk.run)
        agreement = await agreed(store, desk.bill)
        assert agreement.answered == STEPS
        lost.append(agreement.lost)
        return done.result

    report = await crash_everywhere(scenario, fresh_lab)
    assert report.outcome == ["run 0", "run 1", "run 2", "run 3"]
    assert (lost[0], max(lost)) == (1, 3)
