"""The canaries of a whole service: a real `perdure serve` before a provider, as seen from outside.

Keys are seen nowhere; what users and models say is seen by its owner alone; and no answer, page or
error tells a user what a provider or the product's own code said when it failed.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from perdure.agent.tool_loop import ToolLoop
from perdure.agent.tools import Tool
from perdure.core.records import RunManifest
from perdure.durable.runner import run_durable
from perdure.store.opening import open_store
from tests.agent.strict_provider import StrictProvider, calls, says
from tests.backends.model_server import Cut, ModelServer, Reply, chunk, refusal, reply, sse
from tests.canary import planting
from tests.canary.planting import canary
from tests.canary.test_agent_events import TASK, events_of_a_task
from tests.cli.commands import Serving, serving

SECRET = "7f3q9z7f3q9z"
KEYS = {
    "api key": f"sk-canary-key-{SECRET}",
    "password of the base url": f"canary-password-{SECRET}",
    "query of the base url": f"canary-query-{SECRET}",
    "token of the caller": f"canary-token-{SECRET}",
    "cookie of the viewer": f"canary-cookie-{SECRET}",
    "token in an address": f"canary-address-{SECRET}",
    "key in an exception": f"canary-exception-{SECRET}",
}
"""What no output of the service shows, to nobody."""
WORDS = {
    "message": "canary message 4k8w2x",
    "answer": "canary answer 4k8w2x",
    "reasoning": "canary reasoning 4k8w2x",
    "tool args": "canary args 4k8w2x",
}
"""What the owner of a session is shown, and nobody else."""
INSIDE = {"words of the provider": "canary provider 9d5t1v"}
"""What nobody who asks is shown."""

GATE = f"""
from perdure.web.app import Caller
from perdure.web.dashboard import Viewer

def caller(request):
    token = request.headers.get("authorization", "")
    if "broken" in request.query_params:
        raise RuntimeError("postgresql://ann:{KEYS["key in an exception"]}@db.example/x is away")
    if token == "Bearer {KEYS["token of the caller"]}":
        return Caller("", "ann")
    return Caller("", "bob") if token == "Bearer bob" else None

def viewer(request):
    if "{KEYS["cookie of the viewer"]}" in request.headers.get("cookie", ""):
        return Viewer(tenant=None)
    return None
"""
TOOL = [
    {
        "index": 0,
        "id": "c-1",
        "function": {"name": "find", "arguments": json.dumps({"q": WORDS["tool args"]})},
    }
]
ANSWER = reply(
    sse(
        chunk(reasoning_content=WORDS["reasoning"]),
        chunk(content=WORDS["answer"]),
        chunk(tool_calls=TOOL),
        chunk("tool_calls"),
        "[DONE]",
    )
)
ECHO = json.dumps(
    {"error": {"message": f"{INSIDE['words of the provider']} {' '.join(KEYS.values())}"}}
).encode()
REPLIES: Sequence[Reply] = (
    ANSWER,
    refusal(401, ECHO),
    reply(sse(chunk(content=WORDS["answer"])), Cut()),
    reply(sse(chunk(content=WORDS["answer"]), json.loads(ECHO))),
)


class Seen(NamedTuple):
    """What was seen of the service, by who saw it."""

    owner: str
    others: str
    viewer: str
    output: str
    kept: bytes


def ask(service: Serving, path: str, *, as_user: str = "", body: Any = None, **headers: str) -> str:
    """Return the answer to a request, whole: status, headers and body."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    known = {name.replace("_", "-"): value for name, value in headers.items()}
    if as_user:
        known["authorization"] = f"Bearer {as_user}"
    if data is not None:
        known.setdefault("content-type", "application/json")
    request = urllib.request.Request(service.origin + path, data=data, headers=known)
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return f"{answer.status} {answer.headers} {answer.read().decode()}"


def as_owner(service: Serving) -> Iterator[str]:
    """Ask for a turn of each kind, and read all that there is of it."""
    token = KEYS["token of the caller"]
    for index in range(len(REPLIES)):
        turn = {"turnIndex": index, "message": WORDS["message"]}
        sse = {"accept": "text/event-stream"} if index == 0 else {}
        yield ask(service, "/v1/sessions/s/turns", as_user=token, body=turn, **sse)
        yield ask(service, f"/v1/sessions/s/turns/{index}", as_user=token)
        yield ask(service, f"/v1/sessions/s/turns/{index}/stream", as_user=token)
    yield ask(service, "/v1/sessions/s", as_user=token)


def as_others(service: Serving) -> Iterator[str]:
    """Ask in vain, and wrongly, with something secret in each request."""
    token, in_address = KEYS["token of the caller"], quote(KEYS["token in an address"])
    yield ask(service, "/v1/sessions/s", as_user="bob")
    yield ask(service, "/v1/sessions/s/turns/0/stream", as_user="bob")
    yield ask(service, "/v1/sessions/s", as_user="nobody")
    yield ask(service, f"/v1/nothing/{in_address}?token={in_address}", as_user=token)
    yield ask(service, f"/v1/sessions/{in_address}%00?token={in_address}", as_user=token)
    yield ask(service, "/v1/sessions/s?broken=1", as_user=token)
    for wrong in (WORDS["message"].encode(), {"message": {"x": WORDS["message"]}}):
        yield ask(service, "/v1/sessions/s/turns", as_user=token, body=wrong)
    text = {"content_type": "text/plain"}
    yield ask(service, "/v1/sessions/s/turns", as_user=token, body=b"canary", **text)
    yield ask(service, "/")
    yield ask(service, "/dashboard")
    yield ask(service, "/openapi.json")


def as_viewer(service: Serving, runs: Sequence[str]) -> Iterator[str]:
    """Look at every page of the dashboard, as somebody who sees no values."""
    cookie = {"cookie": f"session={KEYS['cookie of the viewer']}"}
    yield ask(service, "/dashboard", **cookie)
    for run in map(quote, runs):
        yield ask(service, f"/dashboard/run?id={run}", **cookie)
        for page in ("stop", "retry", "fork"):
            yield ask(service, f"/dashboard/{page}?id={run}&position=0", **cookie)
        for position in range(4):
            yield ask(service, f"/dashboard/step?id={run}&position={position}", **cookie)


LOOPED = "loop"
TASKED = "task"


def leaky(word: str) -> str:
    """Say something secret, or fail with it."""
    if word == canary("error_body"):
        raise ValueError(canary("error_message"))
    return canary("tool_result")


async def fill(folder: Path) -> None:
    """Leave behind two runs that are full of words: an agent's task, and a loop of tools."""
    store = await open_store(f"sqlite:{folder / 'runs.db'}")
    await events_of_a_task(durable=(store, TASKED))
    asked = [
        ("c1", "leaky", {"word": canary("tool_args")}),
        ("c2", "leaky", {"word": canary("error_body")}),
    ]
    provider = StrictProvider(calls(*asked), says(canary("final_text")))
    loop = ToolLoop(provider.backend(), [Tool(leaky, shows_errors=True)])
    await run_durable(
        store,
        run_id=LOOPED,
        manifest=RunManifest("canary", TASK._replace(required_knowledge=[])),
        task=lambda context: loop.run(context, canary("task_inputs")),
    )
    await store.close()


def run_ids(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "runs.db") as connection:
        rows = connection.execute("SELECT run_id FROM durable_runs").fetchall()
    connection.close()
    return [row[0] for row in rows]


def looked_at(folder: Path, environment: Mapping[str, str]) -> Seen:
    (folder / "gate.py").write_text(GATE, "utf-8")
    arguments = ("--store", f"sqlite:{folder / 'runs.db'}", "--backend", "openai")
    gates = ("--authorize", "gate:caller", "--authorize-dashboard", "gate:viewer")
    with serving(*arguments, *gates, env=environment, folder=folder) as service:
        owner = "\n".join(as_owner(service))
        others = "\n".join(as_others(service))
        runs = run_ids(folder)
        assert len(runs) == len(REPLIES) + len((LOOPED, TASKED))
        viewer = "\n".join(as_viewer(service, runs))
        assert service.end(signal.SIGTERM)[0] == 0
        assert service.process.stdout is not None
        assert service.process.stderr is not None
        printed = service.process.stdout.read() + service.process.stderr.read()
        output = printed + json.dumps(service.told)
    kept = b"".join(path.read_bytes() for path in folder.glob("runs.db*"))
    return Seen(owner, others, viewer, output, kept)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    async def look() -> Seen:
        async with ModelServer() as server:
            server.will(*REPLIES)
            secret, query = KEYS["password of the base url"], KEYS["query of the base url"]
            address = server.base_url.replace("//", f"//ann:{secret}@") + f"?key={query}"
            environment = {
                "OPENAI_API_KEY": KEYS["api key"],
                "OPENAI_BASE_URL": address,
                "OPENAI_MODEL": "model-1",
            }
            folder = tmp_path_factory.mktemp("service")
            await fill(folder)
            found = await asyncio.to_thread(looked_at, folder, environment)
            assert len(server.received) == len(REPLIES)
            assert query in server.received[0].target
            return found

    return asyncio.run(look())


def leaks(shown: str, secrets: Mapping[str, str]) -> set[str]:
    return {name for name, secret in secrets.items() if secret in shown}


def test_what_was_planted_has_arrived(seen: Seen) -> None:
    assert leaks(seen.owner, WORDS) == set(WORDS)
    assert seen.others.count("canary-nothing") == 0
    assert len(seen.viewer) > 10_000
    assert {"loop: leaky 1.1", "loop: leaky 1.2", "act:0", "decide:0"} <= set(
        re.findall(r"loop: leaky 1\.\d|act:0|decide:0", seen.viewer)
    )


@pytest.mark.parametrize("who", ["owner", "others", "viewer", "output"])
def test_no_key_is_shown_to_anybody(seen: Seen, who: str) -> None:
    assert leaks(getattr(seen, who), KEYS) == set()


def test_no_key_is_stored(seen: Seen) -> None:
    assert leaks(seen.kept.decode("latin-1"), KEYS) == set()


@pytest.mark.parametrize("who", ["others", "viewer", "output"])
def test_what_was_said_is_shown_to_its_owner_alone(seen: Seen, who: str) -> None:
    assert leaks(getattr(seen, who), WORDS) == set()


@pytest.mark.parametrize("who", ["owner", "others", "viewer", "output"])
def test_the_words_of_tasks_and_tools_are_on_no_page_and_in_no_log(seen: Seen, who: str) -> None:
    assert planting.seen(seen.kept.decode("latin-1"), ("tool_args", "tool_result", "action"))
    assert planting.seen(getattr(seen, who)) == set()


@pytest.mark.parametrize("who", ["owner", "others", "viewer"])
def test_nobody_who_asks_hears_the_words_of_the_provider(seen: Seen, who: str) -> None:
    assert leaks(getattr(seen, who), INSIDE) == set()


def test_the_log_says_what_failed(seen: Seen) -> None:
    assert "RuntimeError" in seen.output
    assert "db.example" in seen.output
