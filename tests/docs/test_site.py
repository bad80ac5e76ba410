"""The pages as a website: it builds, every link leads somewhere, nothing comes from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.site import build, for_the_site, records, sections
from docs.site_check import faults_of
from tests.docs.pages import ROOT

DOCS = ROOT / "docs"
WHOLE = '<h1 id="top">Perdure</h1><a href="index.html#top">up</a><img src="picture.svg">'


def test_the_site_is_built_without_a_fault(tmp_path: Path) -> None:
    assert build(tmp_path / "docs") == []
    assert (tmp_path / "docs/site/guides/operating.html").is_file()


def test_a_broken_link_stops_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "docs"
    copy.mkdir()
    (copy / "index.md").write_text("# Pages\n\n[Gone](guides/gone.md)\n", "utf-8")
    (copy / "site.toml").write_text((DOCS / "site.toml").read_text("utf-8"), "utf-8")
    monkeypatch.setattr("docs.site.DOCS", copy)
    faults = build(tmp_path / "built")
    assert len(faults) == 1
    assert "gone.md" in faults[0]


def test_the_navigation_has_every_page() -> None:
    shown = [path for section in sections() for _, path in section.entries]
    shown.extend(path for _, path in records("decisions"))
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert len(shown) == len(set(shown))
    assert set(shown) == written - {"index.md", "decisions/template.md"}


def test_no_two_pages_of_the_navigation_have_one_name() -> None:
    names = [name for section in sections() for name, _ in section.entries]
    assert len(names) == len(set(names))


def test_no_two_pages_have_one_heading() -> None:
    heads = [path.read_text("utf-8").splitlines()[0] for path in DOCS.rglob("*.md")]
    assert len(heads) == len(set(heads))


def test_a_link_to_a_source_leads_to_the_repository_or_is_text() -> None:
    page = DOCS / "quickstart.md"
    assert "](../examples)" in page.read_text("utf-8")
    assert "](https://host/it/examples)" in for_the_site(page, "https://host/it/")
    assert "](../" not in for_the_site(page, "")


@pytest.mark.parametrize(
    ("piece", "fault"),
    [
        ('<a href="gone.html">x</a>', "nothing is at gone.html"),
        ('<a href="#gone">x</a>', "no heading is at #gone"),
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//fonts.example/x">', "loads //fonts.example/x"),
        ('<img src="gone.svg">', "nothing is at gone.svg"),
        ("<p>Three:\n- one</p>", "Markdown that was not understood: '- one'"),
    ],
)
def test_a_fault_of_a_built_page_is_found(tmp_path: Path, piece: str, fault: str) -> None:
    (tmp_path / "picture.svg").touch()
    page = tmp_path / "index.html"
    page.write_text(WHOLE, "utf-8")
    assert faults_of(tmp_path) == []
    page.write_text(WHOLE + piece, "utf-8")
    assert faults_of(tmp_path) == [f"index.html: {fault}"]
