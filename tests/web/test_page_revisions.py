"""Versions of an answer on the chat page, in a real browser: again, edited, and back."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import Browser, BrowserContext, Dialog, Page, expect

from perdure.core.frames import text, upstream_end
from tests.web.browsing import Serve, ask

pytestmark = pytest.mark.browser


def saying(*words: str) -> list[list[object]]:
    return [[text(word), upstream_end("stop")] for word in words]


async def expect_answers(page: Page, *words: str, going_on: int = 0) -> None:
    await expect(page.locator(".answer > .text")).to_have_text(list(words))
    await expect(page.locator(".turn.working")).to_have_count(going_on)


async def test_an_answer_is_made_again_and_the_first_stays_readable(
    context: BrowserContext, serve: Serve
) -> None:
    site = await serve(*saying("First", "Second"))
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "Say something")
    await expect_answers(page, "First")
    await page.get_by_role("button", name="Regenerate").click()
    await expect_answers(page, "Second")
    await expect(page.locator(".place")).to_have_text("2 / 2")
    await expect(page.get_by_label("Your message")).to_be_visible()
    await page.get_by_role("button", name="Previous version").click()
    await expect_answers(page, "First")
    await expect(page.locator(".place")).to_have_text("1 / 2")
    await expect(page.get_by_label("Your message")).to_be_hidden()
    await page.get_by_role("button", name="Go there").click()
    await expect_answers(page, "Second")
    await page.reload()
    await expect_answers(page, "Second")
    await expect(page.locator(".place")).to_have_text("2 / 2")


async def test_an_edited_message_begins_a_branch_and_the_chat_goes_on_from_it(
    context: BrowserContext, serve: Serve
) -> None:
    site = await serve(*saying("One", "Two", "Two anew", "Three anew"))
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "first")
    await expect_answers(page, "One")
    await ask(page, "second")
    await expect_answers(page, "One", "Two")
    await page.get_by_role("button", name="Edit the message").nth(1).click()
    await page.get_by_label("Edited message").fill("second, edited")
    await page.keyboard.press("Enter")
    await expect(page.locator(".user")).to_have_text(["first", "second, edited"])
    await expect_answers(page, "One", "Two anew")
    await ask(page, "third")
    await expect_answers(page, "One", "Two anew", "Three anew")
    await page.get_by_role("button", name="Previous version").click()
    await expect(page.locator(".user")).to_have_text(["first", "second"])
    await expect_answers(page, "One", "Two")
    await page.get_by_role("button", name="Next version").click()
    await expect_answers(page, "One", "Two anew", "Three anew")
    said = [message["content"] for message in site.script.turns[-1].history]
    assert said == ["first", "One", "second, edited", "Two anew"]


async def test_an_edit_can_be_given_up(context: BrowserContext, serve: Serve) -> None:
    site = await serve(*saying("One"))
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "first")
    await expect_answers(page, "One")
    await page.get_by_role("button", name="Edit the message").click()
    await page.get_by_label("Edited message").fill("something else")
    await page.keyboard.press("Escape")
    await expect(page.locator(".user")).to_have_text("first")
    assert len(site.script.turns) == 1


async def test_an_edited_message_that_cannot_be_sent_yet_is_kept(
    context: BrowserContext, serve: Serve
) -> None:
    go_on = asyncio.Event()
    slow = [text("Two"), go_on, upstream_end("stop")]
    site = await serve(*saying("One"), slow, *saying("One anew"))
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "first")
    await expect_answers(page, "One")
    await ask(page, "second")
    await expect_answers(page, "One", "Two", going_on=1)
    await page.get_by_role("button", name="Edit the message").first.click()
    await page.get_by_label("Edited message").fill("first, edited")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status")).to_contain_text("Wait for this answer")
    await expect(page.get_by_label("Edited message")).to_have_value("first, edited")
    go_on.set()
    await expect(page.locator(".line").nth(1)).to_contain_text("completed")
    await page.get_by_label("Edited message").press("Enter")
    await expect_answers(page, "One anew")


async def test_an_answer_in_the_making_goes_on_while_another_version_is_read(
    context: BrowserContext, serve: Serve
) -> None:
    go_on = asyncio.Event()
    slow = [text("Slow"), go_on, text(" and sure"), upstream_end("stop")]
    site = await serve(*saying("First"), slow)
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "Say something")
    await expect_answers(page, "First")
    await page.get_by_role("button", name="Regenerate").click()
    await expect_answers(page, "Slow", going_on=1)
    await page.get_by_role("button", name="Previous version").click()
    await expect_answers(page, "First")
    go_on.set()
    await page.get_by_role("button", name="Next version").click()
    await expect_answers(page, "Slow and sure")


async def test_a_chat_is_deleted_with_everything_in_it(
    context: BrowserContext, serve: Serve
) -> None:
    site = await serve(*saying("One"))
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "To be forgotten")
    await expect_answers(page, "One")
    asked: list[str] = []

    async def agree(dialog: Dialog) -> None:
        asked.append(dialog.message)
        await dialog.accept()

    page.on("dialog", agree)
    session = page.url.partition("=")[2]
    await page.locator("#chats > summary").click()
    await page.get_by_role("button", name="Delete To be forgotten").click()
    await expect(page.locator(".turn")).to_have_count(0)
    await expect(page.locator("#starters")).to_be_visible()
    assert "cannot be undone" in asked[0]
    gone = await page.request.get(f"{site.origin}/v1/sessions/{session}")
    assert gone.status == 404


async def test_a_look_for_news_leaves_the_focus_where_it_is(
    context: BrowserContext, serve: Serve
) -> None:
    site = await serve(*saying("One"))
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "first")
    await expect_answers(page, "One")
    edit = page.get_by_role("button", name="Edit the message")
    await edit.focus()
    async with page.expect_response(lambda response: "/v1/sessions/" in response.url) as news:
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await (await news.value).finished()
    await page.evaluate("new Promise(requestAnimationFrame)")
    await expect(edit).to_be_focused()


@pytest.mark.parametrize(("has_touch", "least_px"), [(False, 24), (True, 44)])
async def test_every_button_is_large_enough_for_who_presses_it(
    browser: Browser, serve: Serve, has_touch: bool, least_px: int
) -> None:
    site = await serve(*saying("```\ncode\n```", "Second"))
    window = await browser.new_context(has_touch=has_touch, is_mobile=has_touch)
    page = await window.new_page()
    await page.goto(site.origin)
    await ask(page, "Say something")
    await expect(page.locator(".line")).to_contain_text("completed")
    names = ("Edit the message", "Regenerate", "Copy")
    boxes = [await page.get_by_role("button", name=name).bounding_box() for name in names]
    await page.get_by_role("button", name="Regenerate").click()
    await expect_answers(page, "Second")
    versions = [
        page.get_by_role("button", name=f"{which} version") for which in ("Previous", "Next")
    ]
    boxes += [await version.bounding_box() for version in versions]
    await window.close()
    sizes = [(box["width"], box["height"]) for box in boxes if box is not None]
    assert len(sizes) == len(boxes)
    assert min(map(min, sizes)) >= least_px


async def test_a_chat_that_is_deleted_elsewhere_goes_out_of_sight(
    context: BrowserContext, serve: Serve
) -> None:
    site = await serve(*saying("One", "Anew"))
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "To be forgotten")
    await expect_answers(page, "One")
    session = page.url.partition("=")[2]
    await page.request.delete(f"{site.origin}/v1/sessions/{session}")
    await expect(page.locator(".turn")).to_have_count(0)
    await expect(page.get_by_role("status")).to_have_text("This chat was deleted.")
    await ask(page, "Another one")
    await expect_answers(page, "Anew")
    await expect(page.locator(".user")).to_have_text(["Another one"])
    assert site.script.turns[-1].history == []


async def test_an_edit_in_another_tab_is_followed(context: BrowserContext, serve: Serve) -> None:
    site = await serve(*saying("One", "One anew", "Two"))
    first, second = await context.new_page(), await context.new_page()
    await first.goto(site.origin)
    await ask(first, "first")
    await expect_answers(first, "One")
    await second.goto(first.url)
    await expect_answers(second, "One")
    await second.get_by_role("button", name="Edit the message").click()
    await second.get_by_label("Edited message").fill("first, edited")
    await second.keyboard.press("Enter")
    await expect_answers(second, "One anew")
    await first.bring_to_front()
    await expect_answers(first, "One anew")
    await expect(first.get_by_label("Your message")).to_be_visible()
    await ask(first, "second")
    await expect_answers(first, "One anew", "Two")
