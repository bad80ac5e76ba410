"""Takes the pictures of the dashboard for its guide: run `python -m docs.screenshots`.

It serves runs that it makes up, at a clock that stands still, and needs Chromium.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from playwright.async_api import Browser, async_playwright
from starlette.applications import Starlette

from perdure.core.changes import (
    AddDelivery,
    AppendFrames,
    BeginStep,
    Change,
    CompleteStep,
    EndRun,
    FailStep,
    IntendUsage,
    Restart,
    SettleUsage,
    Suspend,
)
from perdure.core.frames import Frame, encode_row, text, tool_call, tool_result
from perdure.core.identity import turn_run_id
from perdure.core.records import AgentTaskSpec, Lease, RunManifest, SessionKey
from perdure.store.memory import MemoryStore
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.web.dashboard import Viewer, add_dashboard
from perdure.web.server import StreamingServer

IMAGES: Final = Path(__file__).parent / "images"
ADA, BOB = "worker-ada", "worker-bob"


class Picture(NamedTuple):
    """A picture of a page: `press` is a step to fork from, of which the preview is shown."""

    name: str
    path: str
    width: int
    height: int
    scheme: Any
    press: str | None = None


PICTURES: Final = (
    Picture("dashboard-runs", "", 1180, 720, "light"),
    Picture("dashboard-run-dark", "/run?id=report-42", 1180, 800, "dark"),
    Picture("dashboard-fork", "/run?id=report-42", 1180, 800, "light", "#step-3"),
    Picture("dashboard-turn", "/run?id=chat:lisbon:1", 1180, 1150, "light"),
    Picture("dashboard-phone", "/run?id=report-42", 390, 844, "dark"),
)


class Scene:
    """Runs in all states, as they would be after an eventful morning."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock, code_version="2026.1.4")

    async def play(self) -> None:
        for number in range(38, 42):
            await self._report(f"report-{number}", seconds=6 + number % 3)
            self.clock.advance(240_000)
        await self._orders()
        await self._eventful_report()
        self.clock.advance(95_000)
        await self._conversation()
        acme = self.store.for_tenant("acme")
        await acme.enqueue("nightly-export", _manifest("Export the ledger"), handler="export")
        self.clock.advance(2_000)

    async def _hold(
        self,
        run_id: str,
        task: str,
        handler: str,
        worker: str = ADA,
        *,
        store: RunStore | None = None,
        session: SessionKey | None = None,
        retry: bool = False,
    ) -> Lease:
        claim = await (store or self.store).start_or_resume(
            run_id,
            _manifest(task),
            worker_id=worker,
            handler=handler,
            session=session,
            retry=retry,
        )
        assert claim.lease is not None
        return claim.lease

    async def _step(self, lease: Lease, change: CompleteStep, took_ms: int) -> None:
        begun = BeginStep(change.position, change.intent, change.kind, effect=change.effect)
        await self.store.write(lease, begun)
        self.clock.advance(took_ms)
        await self.store.write(lease, change)

    async def _report(self, run_id: str, *, seconds: int) -> None:
        lease = await self._hold(run_id, "Write the weekly report", "report")
        await self._step(lease, _done(0, "collect", {"rows": 812}), 900)
        await self._step(lease, _done(1, "summarise", "All is well.", kind="llm"), seconds * 1_000)
        await self.store.write(lease, EndRun("completed"))

    async def _orders(self) -> None:
        failed = await self._hold("order-1009", "Ship an order", "order")
        await self._step(failed, _done(0, "reserve", True, effect="idempotent"), 400)
        error = json.dumps(
            {"message": "The card was declined.", "code": "declined", "type": "CardError"}
        )
        await self.store.write(failed, FailStep(1, "charge", error, effect="at_most_once"))
        await self.store.write(failed, EndRun("failed", error_text=error))
        parked = await self._hold("order-1010", "Ship an order", "order", store=self._acme())
        await self.store.write(parked, Suspend("parked", reason="strikes"))
        waiting = await self._hold("order-1011", "Ship an order", "order", store=self._acme())
        await self.store.write(waiting, Suspend("waiting", wake_key="paid", wake_in_ms=86_400_000))
        asleep = await self._hold("reminder-7", "Remind a customer", "reminder")
        await self.store.write(asleep, Suspend("sleeping", wake_in_ms=5_400_000))
        self.clock.advance(61_000)

    def _acme(self) -> RunStore:
        return self.store.for_tenant("acme")

    async def _eventful_report(self) -> None:
        """A worker crashes, another one goes on, waits for a person, and is given back once."""
        run_id, task, handler = "report-42", "Write the weekly report", "report"
        await self.store.enqueue(run_id, _manifest(task), handler=handler)
        self.clock.advance(2_500)
        lease = await self._hold(run_id, task, handler)
        await self._step(lease, _done(0, "collect", {"rows": 964, "source": "ledger"}), 2_100)
        plan = {"sections": ["sales", "returns", "outlook"], "tone": "short"}
        await self.store.write(lease, IntendUsage(0, 1, "openai", "gpt-5-mini"))
        await self._step(lease, _done(1, "plan", plan, kind="llm"), 4_200)
        used = SettleUsage(0, tokens_in=1_840, tokens_out=212, tokens_cached=1_024)
        used = used._replace(cost_nanos=884_000, currency="USD")
        await self.store.settle_usage(lease, used)
        await self.store.write(lease, BeginStep(2, "draft", "llm"))
        await self.store.write(lease, IntendUsage(1, 2, "openai", "gpt-5"))
        self.clock.advance(15_500)
        lease = await self._hold(run_id, task, handler, BOB)
        await self.store.write(lease, IntendUsage(0, 2, "openai", "gpt-5"))
        draft = "Sales rose by 4 %, returns fell, and the outlook is calm."
        await self._step(lease, _done(2, "draft", draft, kind="llm", tries=2), 9_000)
        used = SettleUsage(0, tokens_in=3_120, tokens_out=958, tokens_reasoning=310)
        used = used._replace(cost_nanos=13_480_000, currency="USD")
        await self.store.settle_usage(lease, used)
        await self._step(
            lease, _done(3, "look up figures", {"returns": 17}, kind="tool", effect="pure"), 1_400
        )
        await self.store.write(lease, BeginStep(4, "event:approved", "event"))
        await self.store.write(lease, Suspend("waiting", wake_key="approved"))
        self.clock.advance(14_000)
        await self.store.emit_event(run_id, "approved", {"by": "Marta", "note": "Go on"})
        lease = await self._hold(run_id, task, handler, BOB)
        approved = _done(4, "event:approved", {"by": "Marta", "note": "Go on"}, kind="event")
        await self.store.write(lease, approved)
        await self._step(lease, _done(5, "publish", "v42", effect="idempotent"), 1_800)
        follow = AddDelivery(0, "published", handler, "k", json.dumps({"version": 42}))
        await self.store.write(lease, follow, EndRun("completed", json.dumps({"pass": True})))
        for delivery in await self.store.claim_deliveries([handler], limit=1):
            await self.store.settle_delivery(delivery)

    async def _conversation(self) -> None:
        await self._turn("lisbon", 0, "What is the weather in Lisbon?", "It is sunny.")
        self.clock.advance(8_000)
        index, question = 1, "And what should I see there?"
        session = SessionKey("lisbon", index, owner_id="marta")
        run_id = turn_run_id("lisbon", index)
        lease = await self._ask(run_id, question, session, ADA)
        await self._rows(lease, 1, [text("You could begin ", "p1"), text("with", "p1")])
        self.clock.advance(15_100)
        lease = await self._ask(run_id, question, session, BOB)
        opening = Frame(0, 0, "restarted", {"attempt": 2, "reason": "lease_expired", "from": None})
        await self.store.write(lease, Restart(3, 3, encode_row([opening])))
        call = tool_call("c1", "find_sights", {"city": "Lisbon"}, "pure")
        sights = ["Alfama", "Belém", "a tram ride"]
        rows = [call, tool_result("c1", sights)]
        rows += [text(word, "p1") for word in ("Begin in Alfama, ", "early, ", "and then ")]
        rows += [text(word, "p1") for word in ("take the tram ", "to Belém ", "for ")]
        await self.store.write(lease, IntendUsage(0, 0, "openai", "gpt-5-mini"))
        await self._rows(lease, 4, rows)
        self.clock.advance(1_300)
        beat = {lease: True}
        await self.store.renew(list(beat), 15_000)

    async def _turn(self, session_id: str, index: int, question: str, answer: str) -> None:
        session = SessionKey(session_id, index, owner_id="marta")
        lease = await self._ask(turn_run_id(session_id, index), question, session, ADA)
        await self._rows(lease, 1, [text(word + " ", "p1") for word in answer.split()])
        result = {"finalText": answer, "parts": [{"k": "text", "part": "p1", "d": answer}]}
        self.clock.advance(2_100)
        intent = f"chat:turn-{index}"
        await self.store.write(lease, _done(0, intent, result, kind="llm"), EndRun("completed"))

    async def _ask(self, run_id: str, question: str, session: SessionKey, worker: str) -> Lease:
        manifest = _manifest("Run a chat turn")._replace(input={"userMessage": question})
        claim = await self.store.start_or_resume(
            run_id, manifest, worker_id=worker, handler="chat", session=session
        )
        assert claim.lease is not None
        return claim.lease

    async def _rows(self, lease: Lease, first_seq: int, frames: list[Frame]) -> None:
        last_seq = first_seq + len(frames) - 1
        changes: list[Change] = [AppendFrames(first_seq, last_seq, encode_row(frames))]
        await self.store.write(lease, *changes)


def _manifest(intent: str) -> RunManifest:
    task = AgentTaskSpec(id="task", intent=intent)
    return RunManifest(project_id="shop", task=task, input={"week": 4})


def _done(position: int, intent: str, result: Any, **more: Any) -> CompleteStep:
    return CompleteStep(position, intent, json.dumps(result), **more)


async def _serve(store: RunStore, listener: socket.socket) -> tuple[StreamingServer, Any]:
    app = Starlette()
    viewer = Viewer(sees_values=True, may_act=True)
    add_dashboard(app, store, authorize=lambda _: viewer)
    server = StreamingServer(app, close_streams=_nothing, hurry=_nothing)
    return server, asyncio.create_task(server.serve_on(listener))


def _nothing() -> None:
    """There are no streams."""


async def _take(browser: Browser, origin: str, picture: Picture, folder: Path) -> None:
    size: Any = {"width": picture.width, "height": picture.height}
    page = await browser.new_page(viewport=size, color_scheme=picture.scheme)
    await page.goto(f"{origin}/dashboard{picture.path}")
    if picture.press is not None:
        await page.locator(picture.press).click()
        await page.get_by_role("button", name="Fork from here").click()
        await page.get_by_role("button", name="Fork it").wait_for()
    await page.screenshot(path=folder / f"{picture.name}.png", animations="disabled")
    await page.close()


async def take_pictures(folder: Path) -> None:
    """Write all pictures into `folder`."""
    scene = Scene()
    await scene.play()
    browsers = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    path = next((found for found in browsers if found), None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server, running = await _serve(scene.store, listener)
        origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox", "--disable-gpu"]
            )
            for picture in PICTURES:
                await _take(browser, origin, picture, folder)
            await browser.close()
        server.handle_exit(signal.SIGTERM, None)
        await running


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    where.mkdir(parents=True, exist_ok=True)
    asyncio.run(take_pictures(where))
