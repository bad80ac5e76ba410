"""Run a task on DBOS, whose workflow keeps the record; the task is that of `run_durable`."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from dbos import DBOS, SetWorkflowID

from perdure import DurableContext, Retry
from perdure.engines.dbos import emit, task_workflow


async def onboard(ctx: DurableContext) -> dict[str, str]:
    """Make an account, and wait until somebody confirms it."""
    account = await ctx.step(
        "create account", lambda: f"account of {ctx.input['name']}", retry=Retry(3)
    )
    await ctx.sleep(100)
    confirmed = await ctx.await_event("confirmed", timeout_ms=60_000)
    return {"account": account, "confirmed": confirmed["by"]}


async def main(folder: Path) -> None:
    DBOS(
        config={
            "name": "onboarding",
            "system_database_url": f"sqlite:///{folder / 'dbos.db'}",
            "log_level": "ERROR",
            "notification_listener_polling_interval_sec": 0.05,
        }
    )
    workflow = task_workflow("onboard", onboard)
    DBOS.launch()
    try:
        with SetWorkflowID("ann"):
            run = await DBOS.start_workflow_async(workflow, {"name": "Ann"})
        await emit("ann", "confirmed", {"by": "Ben"})
        done = await run.get_result()
        records = await DBOS.list_workflow_steps_async("ann")
        assert len(records) >= 3
        who, account = done["confirmed"], done["account"]
        print(f"{who} confirmed the {account}, in 3 records of DBOS or more")
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(main(Path(name)))
