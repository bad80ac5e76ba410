"""Markdown on the chat page, in a real browser: drawn as it comes, and safe whatever it says."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import Browser, BrowserContext, expect

from perdure.core.frames import text, upstream_end
from tests.web.browsing import Serve, ask

pytestmark = pytest.mark.browser

WHOLE = """# A title

Some *soft* and **strong** words, `code`, and a [link](https://example.org/a?b=1).

3. third
4. fourth

| left | right |
|:-----|------:|
| a    | 1     |

```python
print("<b>")
```

> quoted
"""
HOSTILE = """[click](javascript:document.title='owned') <b onclick="x">bold</b>

![a picture](https://example.org/pixel.png?secret)

<img src=x onerror="document.title='owned'">

[data](data:text/html,<script>document.title='owned'</script>) <style>body{display:none}</style>

|a|
|-|
|<svg onload="document.title='owned'">|
"""


async def test_markdown_becomes_elements(context: BrowserContext, serve: Serve) -> None:
    pieces = [text(WHOLE[at : at + 7]) for at in range(0, len(WHOLE), 7)]
    site = await serve([*pieces, upstream_end("stop")])
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "Show me")
    await expect(page.locator(".line")).to_contain_text("completed")
    answer = page.locator(".answer > .text")
    await expect(answer.locator("h1")).to_have_text("A title")
    await expect(answer.locator("strong")).to_have_text("strong")
    await expect(answer.locator("em")).to_have_text("soft")
    await expect(answer.locator("p > code")).to_have_text("code")
    await expect(answer.locator("ol")).to_have_attribute("start", "3")
    await expect(answer.locator("td.right")).to_have_text("1")
    await expect(answer.locator("pre code")).to_have_text('print("<b>")')
    await expect(answer.locator("blockquote")).to_have_text("quoted")
    link = answer.get_by_role("link", name="link")
    await expect(link).to_have_attribute("href", "https://example.org/a?b=1")
    await expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")


async def test_hostile_markdown_stays_text(context: BrowserContext, serve: Serve) -> None:
    site = await serve([text(HOSTILE), upstream_end("stop")])
    page = await context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(site.origin)
    await ask(page, "Show me")
    await expect(page.locator(".line")).to_contain_text("completed")
    answer = page.locator(".answer > .text")
    await expect(answer).to_contain_text('<b onclick="x">bold</b>')
    assert await answer.locator("img, script, style, svg, b, [onclick]").count() == 0
    hrefs = await answer.locator("a").evaluate_all("links => links.map(link => link.href)")
    assert not [href for href in hrefs if not href.startswith("https://example.org/")]
    assert await page.title() == "Perdure"
    assert all(url.startswith(f"{site.origin}/") for url in asked)


async def test_blocks_that_stay_as_they_are_keep_their_elements(
    context: BrowserContext, serve: Serve
) -> None:
    go_on = asyncio.Event()
    site = await serve([text("First block.\n\nSecond"), go_on, text(" block."), asyncio.Event()])
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "Show me")
    blocks = page.locator(".answer > .text > p")
    await expect(blocks).to_have_text(["First block.", "Second"])
    await blocks.first.evaluate("element => { element.dataset.mine = 'kept'; }")
    go_on.set()
    await expect(blocks).to_have_text(["First block.", "Second block."])
    await expect(blocks.first).to_have_attribute("data-mine", "kept")


async def test_a_block_of_code_can_be_copied(context: BrowserContext, serve: Serve) -> None:
    site = await serve([text("```\nmake serve\n```"), upstream_end("stop")])
    await context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site.origin)
    page = await context.new_page()
    await page.goto(site.origin)
    await ask(page, "Show me")
    await expect(page.locator(".line")).to_contain_text("completed")
    await page.get_by_role("button", name="Copy").click()
    await expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert await page.evaluate("navigator.clipboard.readText()") == "make serve\n"


async def test_a_word_in_a_table_is_never_cut_in_pieces(browser: Browser, serve: Serve) -> None:
    table = "|city|degrees|\n|-|-:|\n|Oslo|3|\n\n|a|degrees|c|\n|-|-|-|\n|x|y|" + "snow " * 40
    site = await serve([text(f"{table}|\n"), upstream_end("stop")])
    phone = await browser.new_context(viewport={"width": 375, "height": 700}, is_mobile=True)
    page = await phone.new_page()
    await page.goto(site.origin)
    await ask(page, "The weather")
    await expect(page.locator(".line")).to_contain_text("completed")
    headings = await page.get_by_role("columnheader", name="degrees").all()
    heights = [box["height"] for cell in headings if (box := await cell.bounding_box())]
    await phone.close()
    assert len(heights) == 2
    assert max(heights) < 45, "one line, not several"
