"""A worker of DBOS in a process of its own: it runs the tasks that it is told by its input."""

from __future__ import annotations

import asyncio
import json
import sys

from dbos import DBOS, DBOSConfig, SetWorkflowID

from perdure.engines.dbos import task_workflow
from perdure.testing.host_tasks import HOST_TASKS


def config(url: str) -> DBOSConfig:
    return {
        "name": "perdure-tests",
        "system_database_url": url,
        "log_level": "ERROR",
        "application_version": "v1",
        "executor_id": "worker",
        "notification_listener_polling_interval_sec": 0.01,
    }


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def main(url: str) -> None:
    DBOS(config=config(url))
    workflows = {name: task_workflow(name, task) for name, task in HOST_TASKS.items()}
    DBOS.launch()
    say("ready")
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        with SetWorkflowID(asked["run_id"]):
            await DBOS.start_workflow_async(workflows[asked["task"]], asked["input"])
        say("started")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
