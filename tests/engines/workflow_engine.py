"""Cloudflare's own Workflows engine in a process that can be killed, driven from Python."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from perdure.core.effects import new_token
from tests.node_packages import NODE_TESTS

Main = Callable[["BridgedStep", str], Awaitable[Any]]
"""What an instance runs: it gets the step and the instance's id."""
_DEADLINE_S = 30
_LOOK_S = 0.02
_OVER = ("complete", "errored", "terminated")


class EngineError(Exception):
    """What the engine raised, as it crosses into Python: by name and text."""


class BridgedStep:
    """The step of one attempt at an instance, in the shape that Python Workflows have."""

    def __init__(self) -> None:
        self.commands: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self.bodies: dict[int, Callable[[], Awaitable[Any]]] = {}
        self.answers: dict[int, asyncio.Future[Any]] = {}

    def do(self, name: str, *, config: Any = None) -> Callable[[Any], Callable[[], Any]]:
        def decorated(fn: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
            return lambda: self._ask("do", fn, name=name, config=config)

        return decorated

    async def sleep(self, name: str, duration: Any, /) -> None:
        await self._ask("sleep", name=name, duration=duration)

    async def wait_for_event(self, name: str, event_type: str, /, **timeout: str) -> Any:
        return await self._ask("wait_for_event", name=name, options={"type": event_type, **timeout})

    async def _ask(self, call: str, body: Any = None, /, **asked: Any) -> Any:
        number = len(self.answers)
        self.answers[number] = asyncio.get_running_loop().create_future()
        if body is not None:
            self.bodies[number] = body
        self.commands.put_nowait({"call": call, "id": number, **asked})
        return await self.answers[number]

    def answered(self, number: int, told: Mapping[str, Any]) -> None:
        waiter = self.answers[number]
        if waiter.done():
            return
        if "error" in told:
            error = told["error"]
            waiter.set_exception(EngineError(f"{error['name']}: {error['message']}"))
        else:
            waiter.set_result(told["value"])


class WorkflowEngine:
    """The engine, and the Python half of its one workflow, on a loop of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mains: dict[str, Main] = {}
        self._attempts: dict[str, tuple[BridgedStep, asyncio.Task[None]]] = {}
        self._client = httpx2.Client(verify=False, timeout=20)
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._socket = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(self._serve, interface="asgi3", log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    # What tests ask for.

    def create(self, main: Main) -> str:
        """Have an instance run `main`, and return its id."""
        instance = f"i-{new_token()[:16]}"
        self._mains[instance] = main
        self._ask("create", instance)
        return instance

    def run(self, main: Main) -> Any:
        """Have an instance run `main`, and return its output; raise EngineError for its error."""
        return self.ended(self.create(main))

    def ended(self, instance: str) -> Any:
        """Wait for the end of an instance; return its output or raise its error."""
        status = self.status_at_end(instance)
        if status["status"] != "complete":
            raise EngineError((status["error"] or {"message": status["status"]})["message"])
        return status["output"]

    def status_at_end(self, instance: str) -> Any:
        """Wait for the end of an instance, and return how it ended."""
        deadline = time.monotonic() + _DEADLINE_S
        while (status := self._ask("status", instance))["status"] not in _OVER:
            assert time.monotonic() < deadline, status
            time.sleep(_LOOK_S)
        return status

    def send(self, instance: str, key: str, payload: Any) -> None:
        self._ask("send", instance, type=key, payload=payload)

    def restart(self, instance: str) -> None:
        self._ask("restart", instance)

    def terminate(self, instance: str) -> None:
        self._ask("terminate", instance)

    def wake(self, instance: str) -> None:
        """Have an instance go on behind a restart: this engine does when it is sent something."""
        self.send(instance, "wake", None)

    def kill(self, *, leave_attempts: bool = False) -> None:
        """SIGKILL the engine with all that runs in it, which in production is the task, too.

        `leave_attempts`: the tasks go on, as those of a machine that was only cut off.
        """
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        for _, task in self._attempts.values():
            if not leave_attempts:
                task.get_loop().call_soon_threadsafe(task.cancel)

    def start(self) -> None:
        port = self._socket.getsockname()[1]
        environment = {
            **os.environ,
            "PYTHON": f"127.0.0.1:{port}",
            "WORKFLOWS_FOLDER": str(self._folder),
        }
        self._process = subprocess.Popen(
            ["node", "workflows.mjs"],
            cwd=NODE_TESTS,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self._url = f"http://127.0.0.1:{json.loads(line)['port']}/"

    @contextmanager
    def running(self) -> Iterator[WorkflowEngine]:
        self._thread.start()
        try:
            self.start()
            yield self
        finally:
            if self._process is not None and self._process.poll() is None:
                self.kill()
            self._server.should_exit = self._server.force_exit = True
            self._thread.join(timeout=10)
            self._socket.close()
            self._client.close()

    def _ask(self, call: str, instance: str, **asked: Any) -> Any:
        body = {"call": call, "id": instance, **asked}
        answer = self._client.post(self._url, json=body)
        if answer.status_code != 200:
            raise EngineError(answer.text)
        return answer.json()

    # What the workflow asks for.

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        asked = json.loads(body)
        answering = asyncio.ensure_future(self._answer(asked))
        leaving = asyncio.ensure_future(receive())
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not answering.done():
            answering.cancel()
            return
        content = json.dumps(answering.result()).encode()
        headers = [(b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, asked: Mapping[str, Any]) -> Any:
        attempt = asked["attempt"]
        if asked["call"] == "begin":
            step = BridgedStep()
            working = asyncio.ensure_future(self._work(asked["instance"], step))
            self._attempts[attempt] = (step, working)
            return None
        step, _ = self._attempts[attempt]
        if asked["call"] == "next":
            commands = [await step.commands.get()]
            await asyncio.sleep(0)
            while not step.commands.empty():
                commands.append(step.commands.get_nowait())
            return commands
        if asked["call"] == "answer":
            step.answered(asked["id"], asked)
            return None
        try:
            return {"value": await step.bodies[asked["id"]]()}
        except Exception as error:
            return {"error": {"name": type(error).__name__, "message": str(error)}}

    async def _work(self, instance: str, step: BridgedStep) -> None:
        try:
            value = await self._mains[instance](step, instance)
            step.commands.put_nowait({"call": "return", "value": value})
        except Exception as error:
            told = {"name": type(error).__name__, "message": str(error)}
            step.commands.put_nowait({"call": "raise", "error": told})
