"""The chat page shows calls that wait for a human, and a human decides them there."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, BrowserContext, expect

from perdure.agent.tool_loop import ToolLoop
from perdure.agent.tools import Tool
from tests.agent.looping import degrees
from tests.agent.strict_provider import StrictProvider, calls, says
from tests.web.browsing import ask, serving

pytestmark = pytest.mark.browser


async def test_a_human_decides_on_the_page_and_a_second_tab_and_a_reload_show_it(
    context: BrowserContext,
) -> None:
    asked = calls(("c1", "degrees", {"city": "Faro"}), ("c2", "degrees", {"city": "<b>Lagos"}))
    provider = StrictProvider(asked, says("It is warm."))
    tool = Tool(degrees, effect="pure", needs_approval=True)
    async with serving(ToolLoop(provider.backend(), [tool])) as site:
        page, second = await context.new_page(), await context.new_page()
        await page.goto(site.at("weather"))
        await ask(page, "How warm is it?")
        boxes = page.locator(".approval")
        await expect(boxes.first).to_contain_text("May degrees be called?")
        await expect(boxes.first.locator("pre")).to_contain_text("Faro")
        await boxes.first.get_by_role("button", name="Approve").click()
        await expect(boxes.first.locator(".decided")).to_have_text("Approved")

        await second.goto(site.at("weather"))
        others = second.locator(".approval")
        await expect(others.first.locator(".decided")).to_have_text("Approved")
        await expect(others.last.locator("pre")).to_contain_text("<b>Lagos")
        await others.last.get_by_label("Reason").fill("too far")
        await others.last.get_by_role("button", name="Deny").click()
        for tab in (page, second):
            decided = tab.locator(".approval").last.locator(".decided")
            await expect(decided).to_have_text("Denied: too far")
            await expect(tab.locator(".answer .text")).to_have_text("It is warm.")
            await expect(tab.locator(".approval button")).to_have_count(0)

        await page.reload()
        await expect(page.locator(".approval .decided")).to_have_text(
            ["Approved", "Denied: too far"]
        )
        assert "too far" in provider.prompts[-1]["messages"][-1]["content"]


async def test_a_turn_that_waits_for_a_human_says_so_and_fits_a_phone(browser: Browser) -> None:
    provider = StrictProvider(calls(("c1", "degrees", {"city": "Faro"})), says("It is warm."))
    tool = Tool(degrees, effect="pure", needs_approval=True)
    phone = await browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True)
    async with serving(ToolLoop(provider.backend(), [tool])) as site:
        page = await phone.new_page()
        await page.goto(site.at("weather"))
        await ask(page, "How warm is it?")
        line = page.locator(".line")
        await expect(line).to_contain_text("waiting for a decision")
        approve = await page.get_by_role("button", name="Approve").bounding_box()
        deny = await page.get_by_role("button", name="Deny").bounding_box()
        assert approve is not None
        assert deny is not None
        assert approve["y"] == deny["y"]
        writes = "getComputedStyle(document.querySelector('.answer'), '::after').display"
        assert await page.evaluate(writes) == "none"
        await page.get_by_role("button", name="Approve").click()
        await expect(line).to_contain_text("completed")
        foot = await page.locator(".foot").evaluate("foot => foot.scrollWidth - foot.clientWidth")
        assert foot <= 0
    await phone.close()
