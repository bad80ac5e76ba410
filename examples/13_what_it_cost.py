"""Three questions to a model, a crash within the second, and what all of it cost."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from perdure import (
    AgentTaskSpec,
    DurableContext,
    RunManifest,
    open_store,
    report_usage,
    run_durable,
)
from perdure.observe import ModelPrice, PriceList, usage_summary
from perdure.store.priced import with_prices

# Dollars for a million tokens; `GenaiPrices()` knows those of many models.
PRICES = PriceList(
    {"small-1": ModelPrice(input="0.25", output=2, cached="0.025")}, version="2026-11"
)


def ask(question: str, *, dies: bool) -> str:
    """Stand for a model: it says what it used, unless its caller is dead by then."""
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    report_usage(model="small-1", tokens_in=2_000, tokens_cached=1_200, tokens_out=300)
    return f"an answer to {question!r}"


async def interview(ctx: DurableContext, *, dies: bool) -> None:
    for question in ("what", "how", "why"):
        dies_now = dies and question == "how"
        await ctx.step(question, partial(ask, question, dies=dies_now), kind="llm")


async def work(folder: Path, *, dies: bool) -> None:
    store = with_prices(await open_store(f"sqlite:{folder / 'runs.db'}"), PRICES)
    manifest = RunManifest("examples", AgentTaskSpec("interview", "ask three questions"))
    await run_durable(
        store, run_id="interview", manifest=manifest, task=lambda ctx: interview(ctx, dies=dies)
    )
    summary = await usage_summary(store, by="run")
    await store.close()
    total = summary.total
    print(f"{total.tokens_in} tokens in, {total.tokens_cached} of them cached")
    dollars = total.cost_nanos["USD"] / 1_000_000_000
    print(f"{total.settled} calls for {dollars:.6f} USD, {total.unknown} that may be on the bill")


async def main(folder: Path) -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, __file__, str(folder))
    await child.wait()
    await work(folder, dies=False)


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(work(Path(sys.argv[1]), dies=True))
    else:
        with tempfile.TemporaryDirectory() as place:
            asyncio.run(main(Path(place)))
