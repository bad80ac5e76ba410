"""`perdure costs`: sums in groups, what is unknown of them, and where prices come from."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path

import pytest

from perdure.core.changes import IntendUsage, SettleUsage
from perdure.core.records import SessionKey
from perdure.store.ledger import GROUPINGS
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.samples import ended, hold
from tests.cli.commands import perdure, serving
from tests.cli.desk import Desk, url_in
from tests.store.postgres_server import PostgresServer

PRICES = """
version = "2026-11"
currency = "EUR"
[models."own"]
input = 1
output = 2
"""


async def answered(store: RunStore, run_id: str, *settled: SettleUsage, turn: int = 0) -> None:
    lease = await hold(store, run_id, session=SessionKey("s", turn))
    await store.write(lease, *(IntendUsage(each.call) for each in settled))
    await store.write(lease, *settled, ended("completed"))


async def fill(store: RunStore) -> None:
    """Make calls of two tenants: priced, of known and unknown models, lost, and under way."""
    paid = SettleUsage(
        0,
        model="gpt-4o",
        provider="openai",
        tokens_in=1_000,
        tokens_out=100,
        tokens_cached=10,
        tokens_reasoning=20,
        tokens_cache_written=30,
        price_version="list-3",
        cost_nanos=1_234_567_890,
        currency="USD",
    )
    await answered(store, "paid", paid)
    unpriced = paid._replace(cost_nanos=None, currency=None, tokens_cached=None, price_version=None)
    own = SettleUsage(1, model="own", tokens_in=1_000, tokens_out=1_000)
    await answered(store.for_tenant("acme"), "unpriced", unpriced, own)
    await answered(store, "lost", SettleUsage(0, "unknown"), turn=1)
    await store.write(await hold(store, "open"), IntendUsage(0))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_an_empty_store_has_no_calls(each_desk: Desk) -> None:
    async def nothing(_store: RunStore) -> None:
        pass

    each_desk.work(nothing)
    assert each_desk.run("costs").out == "no calls\n"
    assert each_desk.json("costs") == []


def test_a_day_is_told_in_columns_with_what_is_unknown(each_desk: Desk) -> None:
    clock = ManualClock()
    each_desk.work(fill, clock=clock)
    shown = each_desk.run("costs", "--prices", "off")
    assert shown.code == 0
    header, day, total, *remarks = shown.out.splitlines()
    tokens = ["TOKENS IN", "CACHED", "WRITTEN", "TOKENS OUT", "REASONING"]
    heads = ["DAY", "CALLS", *tokens, "COST", "NOTE"]
    assert cells(header) == heads
    numbers = ["5", "3,000", "10", "60", "1,200", "40", "at least 1.234568 USD"]
    note = "1 unknown, 1 under way, 2 without a price"
    assert cells(day) == [clock.iso()[:10], *numbers, note]
    assert cells(total) == ["total", *numbers, note]
    assert [remark.split(":")[0] for remark in remarks] == [
        "unknown",
        "Prices are those of list-3.",
        "pip install 'perdure[prices]' knows what many models cost.",
    ]
    assert "\x1b" not in shown.out


def test_prices_come_from_the_package_and_before_it_from_a_file(
    each_desk: Desk, tmp_path: Path
) -> None:
    each_desk.work(fill)
    [package] = each_desk.json("costs")
    assert package["costNanos"] == {"USD": 1_234_567_890 + 3_500_000}
    assert package["unpriced"] == 3
    path = tmp_path / "prices.toml"
    path.write_text(PRICES)
    [both] = each_desk.json("costs", "--prices", str(path))
    assert both["costNanos"].keys() == {"EUR", "USD"}
    assert both["costNanos"]["EUR"] == 3_000_000
    assert {"2026-11", "list-3"} < set(both["priceVersions"])
    shown = each_desk.run("costs", "--prices", str(path)).out
    assert "at least 0.003000 EUR + 1.238068 USD" in shown
    assert "2 of the costs were not recorded with their calls." in shown
    path.write_text("nothing")
    refused = each_desk.run("costs", "--prices", str(path))
    assert refused.code != 0
    assert "no list of prices" in refused.err


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ("session", {("s", "", 2), ("s", "acme", 2), (None, "", 1)}),
        ("tenant", {("", "", 3), ("acme", "acme", 2)}),
        ("model", {("gpt-4o", None, 2), ("own", None, 1), (None, None, 2)}),
        ("run", {("paid", "", 1), ("lost", "", 1), ("open", "", 1), ("@acme/unpriced", "acme", 2)}),
    ],
)
def test_it_is_told_by_what_is_asked_for(
    each_desk: Desk, by: str, keys: set[tuple[str | None, str | None, int]]
) -> None:
    each_desk.work(fill)
    found = each_desk.json("costs", "--by", by)
    assert {(each["key"], each["tenant"], each["calls"]) for each in found} == keys
    assert {each["by"] for each in found} == {by}
    shown = each_desk.run("costs", "--by", by).out.splitlines()
    assert shown[0].startswith(by.upper())
    assert len([line for line in shown[1:] if cells(line)[0] != "total"]) >= len(keys)


def test_what_has_no_name_is_told_so(each_desk: Desk) -> None:
    each_desk.work(fill)
    shown = {by: each_desk.run("costs", "--by", by).out for by in ("session", "model", "tenant")}
    assert "(in no session)  (default)" in shown["session"]
    assert "(not named)" in shown["model"]
    assert "(default)" in shown["tenant"]


def test_only_what_is_wanted_is_counted(each_desk: Desk) -> None:
    async def at_two_times(store: RunStore) -> None:
        used = SettleUsage(0, model="m", tokens_in=1, tokens_out=1)
        await answered(store, "early", used)
        clock.advance(2 * 24 * 60 * 60 * 1_000)
        await answered(store.for_tenant("acme"), "late", used)

    clock = ManualClock()
    early = clock.iso()[:10]
    each_desk.work(at_two_times, clock=clock)
    late = clock.iso()[:10]

    def calls(*arguments: str) -> list[str]:
        return sorted(each["key"] for each in each_desk.json("costs", *arguments))

    assert calls() == [early, late]
    assert calls("--since", late) == [late]
    assert calls("--until", late) == [early]
    assert calls("--tenant", "acme") == [late]
    assert calls("--session", "s", "--tenant", "") == [early]
    assert calls("--session", "other") == []
    assert calls("--limit", "1") == [late]
    assert calls("--limit", "1", "--all") == [early, late]
    shown = each_desk.run("costs", "--limit", "1").out
    assert cells(shown.splitlines()[2])[:2] == ["total", "2"]
    assert "… and more" in shown
    refused = each_desk.run("costs", "--until", "tomorrow")
    assert "--until" in refused.err
    assert refused.code != 0


def test_a_cost_is_never_told_as_less_than_it_is(each_desk: Desk) -> None:
    async def a_nano(store: RunStore) -> None:
        used = SettleUsage(0, tokens_in=1, tokens_out=1, cost_nanos=1, currency=None)
        await answered(store, "run", used)

    each_desk.work(a_nano)
    assert "0.000001 ?" in each_desk.run("costs").out


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    ended = perdure("costs", "--store", f"sqlite:{tmp_path / 'none.db'}")
    assert ended.code != 0
    assert not list(tmp_path.iterdir())


def test_a_service_records_costs_where_it_has_prices(tmp_path: Path) -> None:
    prices, url = tmp_path / "prices.toml", f"sqlite:{tmp_path / 'runs.db'}"
    prices.write_text(PRICES.replace("own", "scripted-1"))
    options = ("--store", url, "--token-delay-ms", "0", "--prices", str(prices))
    with serving(*options) as service:
        asked = urllib.request.Request(
            f"{service.origin}/v1/sessions/s/turns",
            data=json.dumps({"turnIndex": 0, "message": "12 * 34"}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked) as answer:
            assert answer.status == 201
        service.end(signal.SIGTERM)  # It finishes what it was asked.
    ended = perdure("costs", "--prices", "off", "--by", "model", "--json", "--store", url)
    [found] = [json.loads(line) for line in ended.out.splitlines()]
    cost = 1_000 * found["tokensIn"] + 2_000 * found["tokensOut"]
    assert (found["key"], found["unpriced"], found["costNanos"]) == ("scripted-1", 0, {"EUR": cost})


def test_a_service_refuses_a_list_of_prices_that_is_none(tmp_path: Path) -> None:
    ended = perdure("serve", "--store", "memory:", "--prices", str(tmp_path / "none.toml"))
    assert ended.code == 2
    assert "none.toml" in ended.err


def test_every_kind_of_store_tells_the_same(
    tmp_path: Path, postgres: PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    told: dict[str, list[str]] = {}
    urls = (url_in(tmp_path, "file"), f"sqlite:{tmp_path / 'runs.db'}", postgres.new_store())
    for url in urls:
        desk = Desk(url, capsys)
        desk.work(fill, clock=ManualClock())
        asked = [("--by", by, *more) for by in GROUPINGS for more in ((), ("--tenant", "acme"))]
        told[url.partition(":")[0]] = [desk.run("costs", *each).out for each in asked]
    assert told["file"] == told["sqlite"] == told["postgresql"]
    assert all("at least" in text for text in told["file"][::2])


def test_what_no_provider_has_told_is_no_zero(each_desk: Desk) -> None:
    each_desk.work(lambda store: answered(store, "r", SettleUsage(0, tokens_in=7, tokens_out=0)))
    numbers = cells(each_desk.run("costs").out.splitlines()[1])[2:7]
    assert numbers == ["7", "-", "-", "0", "-"]
    [found] = each_desk.json("costs")
    assert (found["tokensOut"], found["tokensCached"], found["tokensReasoning"]) == (0, None, None)
