"""A worker that serves a chat and a task to Restate; start as many as you like on one database.

Run `python worker.py 127.0.0.1:9080`. It needs `pip install 'perdure[restate]' hypercorn`.
"""

import asyncio
import os
import sys

import restate
from hypercorn.asyncio import serve
from hypercorn.config import Config

from perdure import ChatTurnEngine, frames, open_store
from perdure.engines.restate import RestateSessions, task_workflow

DATABASE = os.environ.get("DATABASE_URL", "sqlite:///restate-example.db")


async def model(prompt):
    """Stand in for a model: it answers word by word."""
    for word in f"You said {prompt!r} and Restate has written it down".split():
        yield frames.text(f"{word} ")
        await asyncio.sleep(0.1)
    yield frames.upstream_end("stop")


async def answer(turn):
    """Look something up as a step, wait for a human if asked to, and stream the answer."""
    found = await turn.step("look up", lambda: {"documents": 3})
    yield frames.text(f"{found['documents']} documents. ")
    if "approve" in turn.user_message:
        approval = await turn.await_event("approval", timeout_ms=3_600_000)
        yield frames.text(f"{approval['by']} agrees. ")
    spoken = turn.stream("model", lambda: model(turn.user_message), result=len)
    async for frame in spoken:
        yield frame


async def onboard(ctx):
    """A task as any other of Perdure: under `run_durable` it would do the same."""
    account = await ctx.step("create account", lambda: f"account of {ctx.input['name']}")
    await ctx.sleep(100)
    confirmed = await ctx.await_event("confirmed", timeout_ms=3_600_000)
    return {"account": account, "confirmed": confirmed}


async def main(address):
    store = await open_store(DATABASE)
    sessions = RestateSessions(ChatTurnEngine(store, produce=answer))
    config = Config()
    config.bind = [address]
    # Restate opens another connection when one is full, which another worker may accept.
    config.h2_max_concurrent_streams = 20
    try:
        app = restate.app([*sessions.services, task_workflow("onboard", onboard)])
        await serve(app, config, mode="asgi")
    finally:
        await store.close()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        asyncio.run(main(sys.argv[1]))
    else:
        print("usage: python worker.py ADDRESS:PORT")
