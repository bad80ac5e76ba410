"""A Restate server on free ports of this machine, and what tests ask of it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from tests.node_packages import NODE_TESTS

_DEADLINE_S = 30


class RestateServer(NamedTuple):
    """A running server: what calls handlers (`ingress`) and what administers it (`admin`)."""

    ingress: str
    admin: str

    def register(self, uri: str) -> None:
        """Tell it of an address where handlers are served, and wait until it knows them."""
        body = {"uri": uri, "force": True}
        deadline = time.monotonic() + _DEADLINE_S
        while not httpx2.post(f"{self.admin}/deployments", json=body, timeout=20).is_success:
            assert time.monotonic() < deadline, f"nobody serves handlers at {uri}"
            time.sleep(0.05)

    def call(self, path: str, argument: Any = None, *, timeout_s: float = 60) -> httpx2.Response:
        """Call a handler and wait for its answer."""
        return httpx2.post(f"{self.ingress}/{path}", json=argument, timeout=timeout_s)

    def send(self, path: str, argument: Any = None) -> str:
        """Have a handler called, and return the id of the invocation."""
        response = httpx2.post(f"{self.ingress}/{path}/send", json=argument, timeout=20)
        response.raise_for_status()
        return str(response.json()["invocationId"])

    def attach(self, invocation: str, *, timeout_s: float = 60) -> httpx2.Response:
        """Wait for the answer of an invocation."""
        url = f"{self.ingress}/restate/invocation/{invocation}/attach"
        return httpx2.get(url, timeout=timeout_s)

    def wait_until(self, invocation: str, status: str) -> None:
        """Return once an invocation has this status."""
        query = {"query": f"SELECT status FROM sys_invocation WHERE id = '{invocation}'"}
        accept = {"accept": "application/json"}
        rows: list[Any] = []
        deadline = time.monotonic() + _DEADLINE_S
        while [row["status"] for row in rows] != [status]:
            assert time.monotonic() < deadline, f"{invocation} does not get {status}: {rows}"
            time.sleep(0.05)
            answer = httpx2.post(f"{self.admin}/query", json=query, headers=accept, timeout=20)
            rows = answer.raise_for_status().json()["rows"]

    def cancel(self, invocation: str) -> None:
        url = f"{self.admin}/invocations/{invocation}/cancel"
        httpx2.patch(url, timeout=20).raise_for_status()


@contextmanager
def running_restate(folder: Path) -> Iterator[RestateServer]:
    """Start a server that keeps its state in `folder`, and end it."""
    node, ingress, admin = free_ports(3)
    machine = {"x86_64": "x64", "aarch64": "arm64"}[os.uname().machine]
    packages = NODE_TESTS / "node_modules" / "@restatedev"
    package = f"restate-server-{os.uname().sysname.lower()}-{machine}"
    program = packages / package / "bin" / "restate-server"
    environment = {
        **os.environ,
        "RESTATE_BIND_IP": "127.0.0.1",
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_ADVERTISED_HOST": "127.0.0.1",
        "RESTATE_BIND_PORT": str(node),
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "RESTATE_WORKER__INVOKER__INACTIVITY_TIMEOUT": "1s",
        "RESTATE_ROCKSDB_TOTAL_MEMORY_SIZE": "256 MiB",
    }
    command = [str(program), "--no-logo", "--base-dir", str(folder / "data"), "--node-name", "n1"]
    with (
        (folder / "server.log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            server = RestateServer(f"http://127.0.0.1:{ingress}", f"http://127.0.0.1:{admin}")
            _wait_until_up(server, process)
            yield server
        finally:
            process.kill()


def _wait_until_up(server: RestateServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    for address in (f"{server.admin}/health", f"{server.ingress}/restate/health"):
        while not _answers(address):
            assert process.poll() is None, "the Restate server ended at once"
            assert time.monotonic() < deadline, "the Restate server does not come up"
            time.sleep(0.02)


def _answers(address: str) -> bool:
    try:
        return httpx2.get(address, timeout=2).is_success
    except httpx2.HTTPError:
        return False


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
