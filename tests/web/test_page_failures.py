"""The chat page and answers that failed or are not whole: it says why, and offers another try."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import BrowserContext, Route, expect

from perdure.core.frames import text, upstream_end
from perdure.errors import BackendTransportError
from tests.web.browsing import Serve, ask

pytestmark = pytest.mark.browser


async def test_a_failed_turn_says_why_and_can_be_tried_again(
    context: BrowserContext, serve: Serve
) -> None:
    failure = BackendTransportError("no", backend="b", status=500)
    site = await serve([text("Half"), failure], [text("Whole"), upstream_end("stop")])
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "Hi")
    await expect(page.locator(".turn.failed .notice")).to_contain_text("The model")
    other = await context.new_page()
    await other.goto(page.url)
    await other.get_by_role("button", name="Try again").click()
    for each in (other, page):
        await expect(each.locator(".answer .text")).to_have_text("Whole")
        await expect(each.locator(".line")).to_contain_text("completed · attempt 2")
        await expect(each.locator(".turn.failed")).to_have_count(0)


async def test_a_failed_turn_is_not_tried_again_before_its_stream_has_ended(
    context: BrowserContext, serve: Serve
) -> None:
    failure = BackendTransportError("no", backend="b", status=500)
    site = await serve([text("Half"), failure], [text("Whole"), upstream_end("stop")])
    page = await context.new_page()
    await page.goto(site.origin)
    may_end = asyncio.Event()

    async def hold(route: Route) -> None:
        await may_end.wait()
        await route.continue_()

    # Behind the stream the page reads what is recorded; until then the turn is a live one.
    await page.route("**/turns/0?revision=*", hold)
    await ask(page, "Hi")
    again = page.get_by_role("button", name="Try again")
    await expect(again).to_be_disabled()
    may_end.set()
    await again.click()
    await expect(page.locator(".line")).to_contain_text("completed · attempt 2")


@pytest.mark.parametrize(
    ("finish", "told"),
    [("length", "cut off at the length limit"), ("content_filter", "by the content filter")],
)
async def test_an_answer_that_is_not_whole_says_so(
    context: BrowserContext, serve: Serve, finish: str, told: str
) -> None:
    whole = [text("All of it"), upstream_end("stop")]
    site = await serve([text("Half of"), upstream_end(finish)], whole)
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "Hi")
    await expect(page.locator(".turn.cut .line")).to_contain_text(told)
    await page.reload()
    await expect(page.locator(".turn.cut .line")).to_contain_text(told)
    await ask(page, "And now?")
    await expect(page.locator(".line").nth(1)).to_contain_text("completed · attempt 1")
    await expect(page.locator(".turn.cut")).to_have_count(1)


@pytest.mark.parametrize(
    ("failures", "told"), [(1, "· a call of unknown cost"), (2, "· 2 calls of unknown cost")]
)
async def test_calls_of_which_nobody_knows_the_cost_are_counted(
    context: BrowserContext, serve: Serve, failures: int, told: str
) -> None:
    site = await serve(
        *([text("Half"), BackendTransportError("no", backend="b")] for _ in range(failures - 1)),
        [text("Whole"), upstream_end("stop")],
    )
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "Hi")
    if failures == 2:
        await page.get_by_role("button", name="Try again").click()
    await expect(page.locator(".line")).to_contain_text(told)
