"""The links of the pages: what they point at is there."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.docs.pages import PAGES, ROOT, anchors_of, links_of, relative_name

IMAGES = sorted((ROOT / "docs" / "images").glob("*.svg"))


@pytest.mark.parametrize("page", PAGES, ids=relative_name)
def test_every_relative_link_resolves(page: Path) -> None:
    for link in links_of(page):
        if "://" in link:
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} is not there"
        assert target.is_relative_to(ROOT), f"{link} leaves the repository"
        if fragment:
            assert fragment in anchors_of(target), f"{link} has no such heading"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        paths = [link.partition("#")[0] for link in links_of(page) if "://" not in link]
        waiting.extend((page.parent / path).resolve() for path in paths if path)
    assert not {relative_name(page) for page in set(PAGES) - reached}


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_an_image_is_whole_and_says_what_it_shows(image: Path) -> None:
    root = ElementTree.parse(image).getroot()
    assert root.attrib["viewBox"]
    told = {child.tag.rpartition("}")[2]: child.text for child in root}
    assert told["title"]
    assert told["desc"]
    assert "prefers-color-scheme: dark" in (told["style"] or "")
