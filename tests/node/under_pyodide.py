"""What is run under Pyodide: no threads, no sockets, one D1 binding as a Worker has it."""

from __future__ import annotations

import asyncio
import importlib
import json
import pkgutil
import threading
from collections.abc import Iterator
from typing import Any

from perdure import (
    AgentTaskSpec,
    ChatTurnEngine,
    ChatTurnIdentity,
    DurableContext,
    RunManifest,
    answer_with,
    run_durable,
)
from perdure.backends.scripted import ScriptedBackend
from perdure.durable.lease import LeaseKeeper
from perdure.store.protocol import RunStore
from perdure.store.sql.d1.binding import D1Binding, rows_of
from perdure.store.sql.d1.driver import D1
from perdure.store.sql.d1.proxied import python_binding
from perdure.store.sql.store import SqlStore
from perdure.testing.clock import ManualClock
from perdure.testing.contract import STORE_CASES
from perdure.testing.lab import StoreLab

FLOORS = ("core", "store", "durable", "turn")
# Other databases and files are not for a Worker.
LEFT_OUT = ("sqlite", "file", "lockfolder", "postgres", "d1.api")
MANIFEST = RunManifest("lab", AgentTaskSpec(id="t", intent="try"))
POLL_MS = 20
LEAVING = "whoever asks this does not wait"


async def main(
    setting: str, direct: D1Binding, raw: D1Binding, wrapped: D1Binding
) -> dict[str, Any]:
    """Return what was seen; `setting` says how many of the contract's cases are run: every nth."""
    told: dict[str, Any] = {"modules": import_floors(), "threads": can_start_threads()}
    store = SqlStore(D1(direct, migrate=True))
    told["direct"] = {"run": await lead_a_run(store)}
    await store.close()
    for offset, (name, binding) in enumerate((("raw", raw), ("wrapped", wrapped))):
        store = SqlStore(D1(binding))
        told[name] = {
            "run": await lead_a_run(store),
            "turn": await lead_a_turn(store),
            "beats": await beat(store),
        }
        await store.close()
        every = int(setting)
        chosen = STORE_CASES[offset % every :: every]
        told[name]["failures"] = [failure async for failure in run_cases(binding, chosen)]
        told[name]["cases"] = len(chosen)
    return told


def import_floors() -> int:
    names = [name for floor in FLOORS for name in modules_of(f"perdure.{floor}")]
    for name in names:
        importlib.import_module(name)
    return len(names)


def modules_of(package: str) -> Iterator[str]:
    path = importlib.import_module(package).__path__
    for found in pkgutil.iter_modules(path, f"{package}."):
        if any(part in found.name for part in LEFT_OUT):
            continue
        yield found.name
        if found.ispkg:
            yield from modules_of(found.name)


def can_start_threads() -> bool:
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        return False
    return True


async def lead_a_run(store: RunStore) -> list[Any]:
    """Return what a run gives that fails in the middle, and is called again."""
    calls: list[str] = []

    def look() -> list[Any]:
        calls.append("first")
        return [1, None, "ü"]

    async def task(ctx: DurableContext) -> Any:
        first = await ctx.step("first", look)
        if "broke" not in calls:
            calls.append("broke")
            raise ValueError("it broke")
        return first

    try:
        await run_durable(store, run_id="r", manifest=MANIFEST, task=task)
    except ValueError as error:
        calls.append(str(error))
    done = await run_durable(store, run_id="r", manifest=MANIFEST, task=task)
    await store.delete("r")
    return [calls, done.result, done.record.state, done.record.epoch]


async def lead_a_turn(store: RunStore) -> list[Any]:
    """Return the text of a turn, as it is streamed and as it is read once more."""
    backend = ScriptedBackend()
    engine = ChatTurnEngine(store, produce=answer_with(backend))
    identity = ChatTurnIdentity("", "kitchen", "ada", 0)
    texts = []
    for _ in range(2):
        submitted = await engine.submit(identity, "And what is 6 * 7?")
        lines = [line async for lines in submitted.lines() for line in lines.splitlines()]
        texts.append("".join(json.loads(line)["data"].get("delta", "") for line in lines))
    await engine.aclose()
    await store.delete("chat:kitchen:0")
    return [*texts, backend.calls]


async def beat(store: RunStore) -> bool:
    """Return whether a lease is renewed, which only the loop can do here."""
    claim = await store.start_or_resume("b", MANIFEST, worker_id="w")
    assert claim.lease is not None
    keeper = LeaseKeeper(store, beat_ms=20)
    held = keeper.hold(claim.lease, 15_000, lambda: None)
    for _ in range(500):
        run = await store.read_run("b")
        assert run is not None
        if (run.lease_expires_at or "") > (claim.run.lease_expires_at or ""):
            keeper.let_go(held)
            return not held.lost
        await asyncio.sleep(0.02)
    return False


async def ask_a_worker(context: Any, env: Any) -> dict[str, Any]:
    """Return what the Worker of the examples answers, called as the runtime calls it."""
    js, workers = map(importlib.import_module, ("js", "workers"))
    entry = importlib.import_module("entry")
    asked = []

    async def answer(turn: Any) -> Any:
        asked.append(turn.user_message)
        async for frame in echo(turn):
            yield frame

    echo = vars(entry)["answer"]
    vars(entry)["answer"] = answer
    worker = entry.Default(context, env)

    async def ask(method: str, path: str, message: str | None = None, **headers: str) -> Any:
        body = {} if message is None else {"body": json.dumps({"message": message})}
        given = js.Object.fromEntries(js.JSON.parse(json.dumps(list(headers.items()))))
        request = js.Request.new(f"http://worker{path}", method=method, headers=given, **body)
        response = await worker.fetch(workers.Request(request))
        if message == LEAVING:
            await response.js_object.body.cancel(js.Error.new("the client left"))
            await context.settle()
            return [response.status, ""]
        return [response.status, await response.text()]

    path = "/chats/garden/turns/0"
    told = {
        "posted": await ask("POST", path, "good morning"),
        "again": await ask("POST", path, "good morning"),
        "read": await ask("GET", path),
        "other": await ask("POST", path, "good evening"),
        "nowhere": await ask("GET", "/nowhere"),
        "left": await ask("POST", "/chats/garden/turns/1", LEAVING),
        "back": await ask("GET", "/chats/garden/turns/1"),
    }
    await worker.scheduled(None)
    await context.settle()
    return {**told, "asked": asked}


async def run_a_workflow(context: Any, env: Any, step: Any, created: Any) -> dict[str, Any]:
    """Return what a workflow of Cloudflare's SDK comes to, whose attempts are two each."""
    js, workers = map(importlib.import_module, ("js", "workers"))
    entrypoint: Any = workers.WorkflowEntrypoint
    doors = importlib.import_module("perdure.engines.cloudflare")
    entry = importlib.import_module("workflow_entry")
    calls: list[str] = []

    def noted() -> dict[str, Any]:
        calls.append("first")
        return {"none": None, "n": [1]}

    async def task(ctx: DurableContext) -> Any:
        first = await ctx.step("first", noted)
        both = await ctx.parallel(("p", lambda: 1), ("q", lambda: "ü"))
        await ctx.sleep(5)
        return [first, both, len(await ctx.uuid()), await ctx.await_event("yes")]

    class Tasks(entrypoint):  # type: ignore[misc]  # It is there in a Worker only.
        async def run(self, event: Any, step: Any) -> Any:
            options = {
                "workflow_name": "plain",
                "step_config": {"retries": {"limit": 1, "delay": 5}},
            }
            plain = await doors.run_on_workflow_step(step, task=task, **options)
            whole = await doors.run_on_workflow(
                step, workflow_name="whole", instance_id="i", task=task
            )
            return json.dumps([plain, whole])

    event = js.JSON.parse("{}")
    told = [json.loads(await Tasks(context, env).run(event, step)) for _ in range(2)]
    names = list(step.names())
    worker = entry.Default(context, env)

    async def ask(**options: Any) -> Any:
        given = js.Object.fromEntries(js.JSON.parse(json.dumps(list(options.items()))))
        request = js.Request.new("http://worker/chats/wood/turns/0", given)
        response = await worker.fetch(workers.Request(request))
        return [response.status, await response.text()]

    asked = await ask(method="POST", body=json.dumps({"message": "good night"}))
    params = json.loads(js.JSON.stringify(created[0]))
    event = js.JSON.parse(json.dumps({"instanceId": params["id"], "payload": params["params"]}))
    states = [await entry.Chat(context, env).run(event, step) for _ in range(2)]
    return {
        "told": told,
        "names": names,
        "calls": calls,
        "asked": asked,
        "states": states,
        "read": await ask(method="GET"),
    }


async def run_cases(given: D1Binding, cases: Any) -> Any:
    """Run cases of the contract, and yield those that fail."""
    binding = python_binding(given)
    found = await binding.batch([binding.prepare("SELECT name FROM sqlite_master")])
    tables = [name for (name,) in rows_of(found[0]) if name.startswith(("durable_", "perdure_"))]
    kept = ("perdure_schema", "durable_schema_info")
    sweep = [f'DELETE FROM "{name}"' for name in tables if name not in kept]

    async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
        database = D1(given, clock=clock, poll_ms=POLL_MS)
        return SqlStore(database, code_version=code_version)

    for case in cases:
        await binding.batch([binding.prepare(sql) for sql in sweep])
        try:
            async with StoreLab(open_handle) as lab:
                await case(lab)
        except Exception as error:
            yield f"{case.__name__}: {type(error).__name__}: {error}"[:300]
