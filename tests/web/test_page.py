"""The chat page in a real browser: it follows a turn through reloads, tabs, crashes and stops."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import httpx2
import pytest
from playwright.async_api import Browser, BrowserContext, Request, Route, expect

from perdure.core.frames import reasoning, text, tool_call, tool_result, upstream_end
from tests.web.browsing import Serve, ask, command

pytestmark = pytest.mark.browser


async def test_a_turn_outlives_a_reload_is_shared_by_two_tabs_and_ends_by_stop(
    context: BrowserContext, serve: Serve
) -> None:
    reloaded, second_came = asyncio.Event(), asyncio.Event()
    site = await serve(
        [text("Once"), reloaded, text(" upon"), second_came, text(" a time"), asyncio.Event()]
    )
    first = await context.new_page()
    await first.goto(site.origin)
    await ask(first, "A story, please")
    await expect(first.locator(".answer .text")).to_have_text("Once")

    await first.reload()
    await expect(first.locator(".user")).to_have_text("A story, please")
    await expect(first.locator(".answer .text")).to_have_text("Once")
    reloaded.set()
    await expect(first.locator(".answer .text")).to_have_text("Once upon")

    second = await context.new_page()
    await second.goto(first.url)
    await expect(second.locator(".answer .text")).to_have_text("Once upon")
    second_came.set()
    for page in (first, second):
        await expect(page.locator(".answer .text")).to_have_text("Once upon a time")

    await second.get_by_role("button", name="Stop").click()
    for page in (first, second):
        await expect(page.locator(".line")).to_contain_text("stopped · attempt 1")
        await expect(page.locator(".answer .text")).to_have_text("Once upon a time")
        await expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert site.script.calls == 1


async def test_reasoning_and_tools_are_folded_and_the_turn_is_accounted_for(
    context: BrowserContext, serve: Serve
) -> None:
    site = await serve(
        [
            reasoning("Let me see."),
            tool_call("c1", "look", {"at": "sky"}, "pure"),
            tool_result("c1", {"sky": "clear"}),
            text("Clear.\n\n"),
            upstream_end("stop"),
        ]
    )
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "How is the sky?")
    await expect(page.locator(".line")).to_contain_text("completed · attempt 1")
    for _ in range(2):
        await expect(page.locator(".answer > .text")).to_have_text("Clear.")
        await expect(page.locator("details.reasoning pre").first).to_be_hidden()
        tool = page.locator("details.tool")
        await tool.locator("summary").click()
        await expect(tool.locator(".title")).to_have_text("look")
        await expect(tool.locator(".state")).to_have_text("completed")
        await expect(tool.locator("pre").first).to_contain_text('"at": "sky"')
        await expect(tool.locator(".result")).to_contain_text('"sky": "clear"')
        # The second time as the service keeps it, not as it streamed.
        await page.reload()


async def test_what_a_model_says_is_text_and_nothing_else(
    context: BrowserContext, serve: Serve
) -> None:
    hostile = (
        "<img src=x onerror=\"document.title='owned'\"><script>alert(1)</script> \x00\u2028&lt;"
    )
    site = await serve(
        [
            text(hostile),
            tool_call("c1", hostile, {hostile: hostile}, "pure"),
            tool_result("c1", error={"code": "x", "message": hostile}),
            upstream_end("stop"),
        ]
    )
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, hostile)
    await expect(page.locator(".line")).to_contain_text("completed")
    assert await page.locator("#conversation").locator("img, script").count() == 0
    assert "<script>" in (await page.locator(".answer > .text").text_content() or "")
    assert await page.title() == "Perdure"


async def test_a_service_that_has_too_much_to_do_is_asked_again(
    context: BrowserContext, serve: Serve
) -> None:
    site = await serve()
    page = await context.new_page()
    await page.goto(site.origin)
    refusals = [429, 429]

    async def refuse(route: Route) -> None:
        if refusals:
            error = {"code": "too_many_turns", "message": "No.", "hint": "Later."}
            await route.fulfill(status=refusals.pop(), json={"error": error})
        else:
            await route.continue_()

    await page.route("**/turns?envelope=1", refuse)
    await ask(page, "Hi")
    await expect(page.get_by_role("status")).to_contain_text("busy")
    await expect(page.locator(".answer .text")).to_have_text("Hello there")
    await expect(page.locator(".user")).to_have_count(1)


async def test_turns_that_another_client_begins_appear(
    context: BrowserContext, serve: Serve
) -> None:
    site = await serve()
    page = await context.new_page()
    await page.goto(site.at("shared"))
    async with httpx2.AsyncClient(base_url=site.origin) as client:
        for index in range(2):
            sent = {"turnIndex": index, "message": f"Message {index}"}
            await client.post("/v1/sessions/shared/turns", json=sent)
    await expect(page.locator(".user")).to_have_text(["Message 0", "Message 1"])
    await expect(page.locator(".answer")).to_have_text(["Hello there", "Hello there"])
    await ask(page, "Message 2")
    await expect(page.locator(".user")).to_have_text(["Message 0", "Message 1", "Message 2"])


async def test_a_message_that_came_second_goes_back_into_the_field(
    context: BrowserContext, serve: Serve
) -> None:
    site = await serve()
    page = await context.new_page()
    await page.goto(site.at("shared"))
    # Nothing that the page looks up may tell it of the other turn before it sends its own.
    hidden = f"{site.origin}/v1/sessions/shared"
    await page.route(hidden, lambda route: route.abort())
    async with httpx2.AsyncClient(base_url=site.origin) as client:
        sent = {"turnIndex": 0, "message": "I was first"}
        await client.post("/v1/sessions/shared/turns", json=sent)
    refused = page.wait_for_event("response", lambda response: response.status == 409)
    answered = asyncio.ensure_future(refused)
    await ask(page, "So was I")
    await answered
    await page.unroute(hidden)
    await expect(page.locator(".user")).to_have_text(["I was first"])
    await expect(page.get_by_label("Your message")).to_have_value("So was I")
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator(".user")).to_have_text(["I was first", "So was I"])
    await expect(page.locator(".line").nth(1)).to_contain_text("completed")


async def test_enter_sends_and_shift_enter_begins_a_line(
    context: BrowserContext, serve: Serve
) -> None:
    site = await serve()
    page = await context.new_page()
    await page.goto(site.origin)
    field = page.get_by_label("Your message")
    await expect(field).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.type("One line,")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("and another")
    await expect(field).to_have_value("One line,\nand another")
    await expect(page.locator(".turn")).to_have_count(0)
    await page.keyboard.press("Enter")
    await expect(page.locator(".user")).to_have_text("One line,\nand another")
    await expect(page.locator(".line")).to_contain_text("completed")
    await expect(field).to_be_focused()
    await expect(field).to_have_value("")
    assert site.script.turns[0].user_message == "One line,\nand another"


async def test_the_page_fits_a_phone_asks_nobody_else_and_complains_of_nothing(
    browser: Browser, serve: Serve
) -> None:
    wide = "a_word_without_an_end_" * 40
    site = await serve(
        [
            reasoning(wide),
            tool_call("c1", wide, {"at": wide}, "pure"),
            tool_result("c1", {"seen": wide}),
            text(wide),
            upstream_end("stop"),
        ]
    )
    phone = await browser.new_context(viewport={"width": 375, "height": 700}, is_mobile=True)
    asked: list[str] = []
    complaints: list[str] = []
    phone.on("request", lambda request: asked.append(request.url))
    phone.on("console", lambda message: complaints.append(message.text))
    page = await phone.new_page()
    await page.goto(site.origin)
    await ask(page, wide)
    await expect(page.locator(".line")).to_contain_text("completed")
    for summary in await page.locator(".answer summary").all():
        await summary.click()
    await page.reload()
    await expect(page.locator(".line")).to_contain_text("completed")
    for place in ("#conversation", "#composer", "header"):
        box = await page.locator(place).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 375
    await phone.close()
    assert complaints == []
    assert len(asked) > 5
    assert all(url.startswith(f"{site.origin}/") for url in asked)


async def test_chats_of_this_browser_can_be_found_again(
    context: BrowserContext, serve: Serve
) -> None:
    site = await serve()
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "My first chat\nwith a second line")
    await expect(page.locator(".line")).to_contain_text("completed")
    await page.get_by_role("button", name="New chat").click()
    await expect(page.locator(".turn")).to_have_count(0)
    await page.locator("#chats > summary").click()
    await page.get_by_role("link", name="My first chat", exact=True).click()
    await expect(page.locator(".answer .text")).to_have_text("Hello there")


async def test_a_new_chat_loads_the_page_once(context: BrowserContext, serve: Serve) -> None:
    site = await serve()
    page = await context.new_page()
    await page.goto(site.at("old"))
    await expect(page.get_by_label("Your message")).to_be_focused()
    loads: list[Request] = []

    def count(asked: Request) -> None:
        if asked.is_navigation_request():
            loads.append(asked)

    page.on("request", count)
    await page.get_by_role("button", name="New chat").click()
    await page.wait_for_url(lambda url: "session=" in url and "session=old" not in url)
    # A second load would follow the first one's reading of the hash; this one is asked for.
    await page.reload()
    assert len(loads) == 2
    await page.go_back()
    await page.wait_for_url(site.at("old"))


async def test_a_menu_that_is_opened_before_the_script_has_run_is_filled_by_it(
    context: BrowserContext, serve: Serve
) -> None:
    site = await serve()
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "My first chat")
    await expect(page.locator(".line")).to_contain_text("completed")
    opened = asyncio.Event()

    async def hold(route: Route) -> None:
        await opened.wait()
        await route.continue_()

    await page.route("**/static/app.js", hold)
    await page.reload(wait_until="commit")
    await page.locator("#chats > summary").click()
    await expect(page.locator("#chat-list")).to_be_empty()
    opened.set()
    await expect(page.get_by_role("link", name="My first chat", exact=True)).to_be_visible()


async def test_an_event_source_comes_back_where_it_was_and_stays_away_after_the_end(
    context: BrowserContext, serve: Serve
) -> None:
    site = await serve([text("One"), text(" two"), upstream_end("stop")], cuts=1)
    async with httpx2.AsyncClient(base_url=site.origin) as client:
        sent = {"turnIndex": 0, "message": "Count"}
        whole = await client.post("/v1/sessions/s/turns?envelope=1", json=sent)
    first, *rest = [json.loads(line)["id"] for line in whole.content.splitlines()]
    page = await context.new_page()
    await page.goto(site.origin)
    got = await page.evaluate(
        """address => new Promise(resolve => {
          const ids = [];
          const source = new EventSource(address);
          source.onmessage = ({ lastEventId }) => ids.push(lastEventId);
          source.onerror = () => source.readyState === 2 && resolve(ids);
        })""",
        f"/v1/sessions/s/turns/0/stream?after={first}",
    )
    assert got == rest


# Whether the word of the connection reaches into a button beside it.
OVERLAPS_A_BUTTON = """() => {
  const words = document.createRange();
  words.selectNodeContents(document.querySelector("#connection"));
  const { left, right, top, bottom } = words.getBoundingClientRect();
  return [...document.querySelectorAll("header summary, header button")]
    .map((button) => button.getBoundingClientRect())
    .some((box) => box.left < right && left < box.right && box.top < bottom && top < box.bottom);
}"""


def letters(text: str) -> str:
    """Return what is left of a text without its spaces and its Markdown."""
    return "".join(text.translate(str.maketrans("", "", "*#`>-|")).split())


async def test_a_killed_server_restarts_the_turn_before_the_eyes_of_its_reader(
    context: BrowserContext, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    page = await context.new_page()
    await page.set_viewport_size({"width": 390, "height": 844})
    async with command(tmp_path, port, token_delay_ms=50) as process:
        await page.goto(f"http://127.0.0.1:{port}/")
        await ask(page, "Tell me a long story")
        await expect(page.locator(".answer .text").first).to_contain_text("You wrote")
        process.kill()
        await process.wait()
    await expect(page.get_by_role("status")).to_have_text("Reconnecting…")
    assert not await page.evaluate(OVERLAPS_A_BUTTON)
    async with command(tmp_path, port, token_delay_ms=0):
        await expect(page.locator(".notice")).to_contain_text("attempt 2 answers anew")
        await expect(page.locator(".line")).to_contain_text("completed · attempt 2")
        shown = await page.locator(".answer > .text").all_text_contents()
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            session = page.url.partition("=")[2]
            kept = (await client.get(f"/v1/sessions/{session}/turns/0")).json()
        assert letters("".join(shown)) == letters(kept["text"])
        assert kept["attempt"] == 2
