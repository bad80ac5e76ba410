"""The dashboard in a real browser: looking, following, acting, by mouse and by keyboard."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from playwright.async_api import BrowserContext, ConsoleMessage, Page, expect

from perdure.store.memory import MemoryStore
from perdure.testing.samples import HANDLER, ended, hold, manifest, row
from perdure.web.dashboard import Viewer, search
from perdure.web.loopback import LoopbackGuard
from perdure.web.server import StreamingServer
from tests.web.dashboards import OWNER, SECRET, Desk, desk, eventful, talking

pytestmark = pytest.mark.browser


class Site(NamedTuple):
    """A dashboard that listens on loopback, guarded as `perdure serve` guards it."""

    origin: str
    desk: Desk

    @property
    def store(self) -> MemoryStore:
        return self.desk.store


troubles: list[str] = []
"""What browsers complained of in the test that runs."""


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    troubles.clear()
    there = desk(OWNER)
    server = StreamingServer(
        LoopbackGuard(there.app), close_streams=lambda: None, hurry=lambda: None
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = asyncio.get_running_loop().create_task(server.serve_on(listener))
        yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}/dashboard", there)
        server.handle_exit(signal.SIGTERM, None)
        await running
    assert not troubles


async def opened(context: BrowserContext, address: str) -> Page:
    """Open a page, which must break no rule of its policy as long as it is looked at."""
    page = await context.new_page()

    def heard(said: ConsoleMessage) -> None:
        if said.type == "error" and "Failed to load resource" not in said.text:
            troubles.append(said.text)

    page.on("console", heard)
    await page.goto(address)
    return page


async def test_a_person_finds_a_run_looks_at_a_step_and_forks_it(
    context: BrowserContext, site: Site
) -> None:
    await eventful(site.desk)
    await site.store.enqueue("other", manifest(), handler="letters-too")
    page = await opened(context, site.origin)
    await page.get_by_label("Handler").fill(HANDLER)
    await page.keyboard.press("Enter")
    await expect(page.locator("table.runs tbody tr")).to_have_count(1)
    await page.get_by_role("link", name="run", exact=True).click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("run")

    await page.get_by_role("link", name="step-1").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text(SECRET)
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await expect(page.get_by_role("link", name="step-1")).to_be_focused()

    await page.keyboard.press("Enter")
    await dialog.get_by_role("button", name="Fork from here").click()
    await expect(dialog).to_contain_text("Kept as recorded (1)")
    await dialog.get_by_label("Id of the new run").fill("second")
    await dialog.get_by_role("button", name="Fork it").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("second")
    assert await site.store.read_run("second") is not None


async def test_a_search_looks_further_and_further_back_by_itself(
    context: BrowserContext, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "LOOKED", 2)
    await site.store.enqueue("old", manifest(), handler="rare")
    for number in range(9):
        site.desk.clock.advance(1)
        await site.store.enqueue(f"run-{number}", manifest(), handler=HANDLER)
    page = await opened(context, f"{site.origin}?handler=rare")
    await expect(page.get_by_role("link", name="old", exact=True)).to_be_visible()


async def test_what_cannot_be_done_is_said_in_the_dialog(
    context: BrowserContext, site: Site
) -> None:
    await eventful(site.desk)
    await site.store.enqueue("taken", manifest("Another?"), handler=HANDLER)
    page = await opened(context, f"{site.origin}/run?id=run")
    await page.get_by_role("link", name="step-1").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("button", name="Fork from here").click()
    await dialog.get_by_label("Id of the new run").fill("taken")
    await dialog.get_by_role("button", name="Fork it").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("there is a run 'taken' already")


async def test_a_turn_is_followed_while_it_goes_on_until_it_is_stopped(
    context: BrowserContext, site: Site
) -> None:
    lease = await talking(site.desk, "Once", " upon")
    page = await opened(context, f"{site.origin}/run?id=chat:s:0")
    said = page.get_by_label("Transcript")
    await expect(said).to_contain_text("Once upon")
    await page.get_by_text("Input", exact=True).click()
    await site.store.write(lease, row(3, " a time"))
    await expect(said).to_contain_text("Once upon a time")
    await expect(page.get_by_label("Frames", exact=True)).to_contain_text("text ×3")
    # What was opened stays open when the page comes anew.
    await expect(page.get_by_text(manifest().input["question"])).to_be_visible()

    await page.get_by_role("button", name="Stop").focus()
    await page.keyboard.press("Space")
    await page.get_by_role("dialog").get_by_role("button", name="Stop it").click()
    await expect(page.get_by_text("a stop is asked for")).to_be_visible()
    await site.store.write(lease, ended("stopped"))
    await expect(page.locator(".title .state")).to_have_text("stopped")
    await expect(page.get_by_role("button", name="Stop")).to_be_hidden()


async def test_a_page_has_landmarks_headers_and_fits_a_phone(
    context: BrowserContext, site: Site
) -> None:
    await eventful(site.desk, "a-run-with-a-very-long-name-" + "x" * 120)
    await talking(site.desk, "word" * 200)
    page = await opened(context, site.origin)
    await page.set_viewport_size({"width": 360, "height": 740})
    for rest in ("", "/run?id=chat:s:0", f"/run?id=a-run-with-a-very-long-name-{'x' * 120}"):
        await page.goto(site.origin + rest)
        await expect(page.get_by_role("banner")).to_be_visible()
        await expect(page.get_by_role("main")).to_be_visible()
        wide = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, rest
        bare = await page.evaluate(
            "[...document.querySelectorAll('table')].filter(t => !t.querySelector('th')).length"
        )
        assert bare == 0
    await page.goto(site.origin)
    await page.keyboard.press("Tab")
    await expect(page.get_by_text("Skip to the content")).to_be_focused()


async def test_a_phone_cuts_the_state_of_an_attempt_in_no_pieces(
    context: BrowserContext, site: Site
) -> None:
    lease = await hold(site.store, "run", worker_id="a-host-with-a-long-name:21714:6b89jkhs:1")
    await site.store.write(lease, ended("completed"))
    page = await opened(context, f"{site.origin}/run?id=run")
    await page.set_viewport_size({"width": 360, "height": 740})
    state = page.get_by_role("cell", name="completed", exact=True).last
    await expect(state).to_be_visible()
    lines = await state.evaluate(
        "cell => { const all = document.createRange(); all.selectNodeContents(cell);"
        " return all.getClientRects().length }"
    )
    assert lines == 1


async def test_the_page_works_for_who_has_no_scripts(site: Site, context: BrowserContext) -> None:
    await eventful(site.desk)
    browser = context.browser
    assert browser is not None
    bare = await browser.new_context(java_script_enabled=False)
    page = await bare.new_page()
    await page.goto(f"{site.origin}/run?id=run")
    await page.get_by_role("link", name="step-1").click()
    await expect(page.get_by_text("Effect outside")).to_be_visible()
    await bare.close()


def test_a_viewer_sees_and_may_do_nothing_by_default() -> None:
    assert Viewer() == Viewer(tenant=None, sees_values=False, may_act=False)
