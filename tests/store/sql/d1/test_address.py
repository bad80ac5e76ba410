"""The address of a D1 store: what it says, and what is told of one that cannot be."""

from __future__ import annotations

import pytest

from perdure.errors import UsageError
from perdure.store.opening import open_store
from perdure.store.sql.d1.address import read_address


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", " the-token\n")
    monkeypatch.delenv("CLOUDFLARE_API_BASE_URL", raising=False)


@pytest.mark.parametrize("url", ["d1:acc/db-1", "d1://acc/db-1", "d1:acc/db-1/"])
def test_an_address_names_account_and_database_and_the_token_is_of_the_environment(
    url: str,
) -> None:
    assert read_address(url) == ("acc", "db-1", "the-token", None)


def test_the_api_may_be_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "d1:acc/db?base_url=http://127.0.0.1:8787/client/v4"
    assert read_address(url).base_url == "http://127.0.0.1:8787/client/v4"
    monkeypatch.setenv("CLOUDFLARE_API_BASE_URL", "https://mirror")
    assert read_address("d1:acc/db").base_url == "https://mirror"


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("d1:", "write d1:ACCOUNT_ID/DATABASE_ID"),
        ("d1:database", "write d1:ACCOUNT_ID/DATABASE_ID"),
        ("d1:a/b/c", "write d1:ACCOUNT_ID/DATABASE_ID"),
        ("d1://a/", "write d1:ACCOUNT_ID/DATABASE_ID"),
        ("d1://token@a/b", "a token has no place"),
        ("d1:a/b?timeout=3", "'timeout'"),
        ("d1:a b/c", "no id of a Cloudflare account"),
    ],
)
async def test_what_is_wrong_with_an_address_is_said(url: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        await open_store(url)


@pytest.mark.parametrize("url", ["d1://secret@a/b", "d1:a?token=secret"])
def test_a_secret_in_a_wrong_place_is_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_address(url)
    assert "secret" not in str(caught.value)


async def test_without_a_token_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUDFLARE_API_TOKEN")
    with pytest.raises(UsageError, match="set CLOUDFLARE_API_TOKEN") as caught:
        await open_store("d1:a/b")
    assert "permission" in caught.value.hint
