"""The LangGraph checkpointer: LangGraph's own suite, and what it does not ask."""

from __future__ import annotations

import asyncio
import operator
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import Capability
from langgraph.checkpoint.conformance.report import CapabilityReport, ProgressCallbacks
from langgraph.checkpoint.conformance.test_utils import (
    generate_checkpoint,
    generate_config,
    generate_metadata,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from perdure import MemoryStore, erase_user, open_store, protect, sync
from perdure.durable.retention import collect_garbage
from perdure.encryption import EnvelopeSealer, LocalKeys
from perdure.engines.langgraph import PerdureSaver
from perdure.errors import SessionBusyError, UsageError
from perdure.store.protocol import RunStore
from perdure.testing import crash_everywhere
from tests.contract.test_stores import LABS
from tests.store.d1_server import D1Server
from tests.store.postgres_server import PostgresServer

CONFIG: Any = {"configurable": {"thread_id": "t"}}


async def conformance(store: RunStore) -> tuple[CapabilityReport, list[str]]:
    """Run LangGraph's suite; return its report, and each test that ran with how it went."""
    ran: list[str] = []

    @checkpointer_test(name="PerdureSaver")
    async def savers() -> AsyncIterator[PerdureSaver]:
        yield PerdureSaver(store)

    def note(capability: str, name: str, passed: bool, error: str | None) -> None:
        ran.append(f"{capability} {name} {'passed' if passed else error}")

    return await validate(savers, progress=ProgressCallbacks(on_test_result=note)), ran


async def check_full(store: RunStore) -> None:
    """Assert that every capability there is was tested and passed, since the report would not."""
    report, ran = await conformance(store)
    assert [line for line in ran if not line.endswith(" passed")] == []
    assert set(report.results) == {capability.value for capability in Capability}
    for name, result in report.results.items():
        assert (result.detected, result.passed, result.tests_skipped) == (True, True, 0), name
        assert result.tests_passed == sum(line.startswith(f"{name} ") for line in ran) > 0
    assert len(ran) == 81
    await store.close()


async def test_every_capability_is_tested_and_passes_in_memory() -> None:
    await check_full(MemoryStore())


async def test_every_capability_is_tested_and_passes_on_sqlite(tmp_path: Path) -> None:
    await check_full(await open_store(f"sqlite:{tmp_path / 'runs.db'}"))


async def test_every_capability_passes_where_values_are_sealed() -> None:
    keys = LocalKeys({"k": os.urandom(32)}, current="k")
    await check_full(protect(MemoryStore().for_tenant("acme"), sealer=EnvelopeSealer(keys)))


@pytest.mark.campaign
async def test_every_capability_passes_on_files(tmp_path: Path) -> None:
    await check_full(await open_store(f"file:{tmp_path}"))


async def test_every_capability_passes_on_postgresql(postgres: PostgresServer) -> None:
    await check_full(await open_store(postgres.new_store()))


@pytest.mark.campaign
@pytest.mark.node
@pytest.mark.timeout(300)
async def test_every_capability_passes_on_d1(d1: D1Server) -> None:
    await check_full(d1.store(d1.binding(d1.clean())))


class Word(TypedDict):
    word: str


class State(TypedDict):
    said: Annotated[list[str], operator.add]


def graph(saver: Any, *names: str, **bodies: Any) -> Any:
    """Return a graph of nodes one after the other; each says its own name."""
    builder = StateGraph(State)
    for name in names:
        builder.add_node(name, bodies.get(name) or (lambda state, name=name: {"said": [name]}))
    for one, next_one in zip((START, *names), (*names, END), strict=True):
        builder.add_edge(one, next_one)
    return builder.compile(checkpointer=saver)


async def test_a_thread_goes_on_in_another_process_and_stops_for_a_human(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'runs.db'}"

    def ask(state: State) -> State:
        return {"said": [interrupt("May I?")]}

    first = await open_store(url)
    asked = await graph(PerdureSaver(first), "a", "ask", ask=ask).ainvoke({"said": []}, CONFIG)
    assert asked["__interrupt__"][0].value == "May I?"
    await first.close()
    second = await open_store(url)
    done = await graph(PerdureSaver(second), "a", "ask", ask=ask).ainvoke(
        Command(resume="yes"), CONFIG
    )
    assert done == {"said": ["a", "yes"]}
    await second.close()


async def test_going_back_in_time_is_no_race() -> None:
    app = graph(PerdureSaver(MemoryStore()), "a", "b")
    await app.ainvoke({"said": []}, CONFIG)
    past = [state async for state in app.aget_state_history(CONFIG)]
    before_b = next(state for state in past if state.next == ("b",))
    for _ in range(2):
        assert await app.ainvoke(None, before_b.config) == {"said": ["a", "b"]}
    await app.aupdate_state(before_b.config, {"said": ["changed"]})
    assert (await app.aget_state(CONFIG)).values == {"said": ["a", "changed"]}


async def test_of_two_who_go_on_at_once_one_is_told(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'runs.db'}"
    one, other = await open_store(url), await open_store(url)
    both = asyncio.Barrier(2)

    async def meet(state: State) -> State:
        await both.wait()
        return {"said": ["met"]}

    await graph(PerdureSaver(one), "a").ainvoke({"said": []}, CONFIG)
    ends = await asyncio.gather(
        graph(PerdureSaver(one), "meet", meet=meet).ainvoke({"said": ["one"]}, CONFIG),
        graph(PerdureSaver(other), "meet", meet=meet).ainvoke({"said": ["other"]}, CONFIG),
        return_exceptions=True,
    )
    lost = [end for end in ends if isinstance(end, SessionBusyError)]
    assert len(lost) == 1
    assert "somebody else has gone on with the thread 't'" in str(lost[0])
    state = await graph(PerdureSaver(other), "meet").aget_state(CONFIG)
    assert state.values["said"] in (["a", "one", "met"], ["a", "other", "met"])
    await one.close()
    await other.close()


async def test_of_two_who_begin_a_thread_at_once_one_is_told() -> None:
    saver = PerdureSaver(MemoryStore())
    ends = await asyncio.gather(
        *(graph(saver, "a").ainvoke({"said": [who]}, CONFIG) for who in ("one", "other")),
        return_exceptions=True,
    )
    assert sorted(type(end).__name__ for end in ends) == ["SessionBusyError", "dict"]


async def test_a_checkpoint_may_be_larger_than_a_value(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:{tmp_path / 'runs.db'}")
    long = ["x" * 3_000_000]
    await graph(PerdureSaver(store), "a").ainvoke({"said": long}, CONFIG)
    await PerdureSaver(store).aprune(["t"])
    state = await graph(PerdureSaver(store), "a").aget_state(CONFIG)
    assert state.values == {"said": [*long, "a"]}
    await store.close()


async def test_who_knew_a_thread_sees_that_it_was_pruned_copied_or_deleted() -> None:
    store = MemoryStore()
    knows, other = PerdureSaver(store), PerdureSaver(store)
    await graph(knows, "a").ainvoke({"said": []}, CONFIG)
    await other.aprune(["t"])
    assert len([each async for each in knows.alist(CONFIG)]) == 1
    assert await graph(knows, "a").ainvoke({"said": []}, CONFIG) == {"said": ["a", "a"]}
    await other.acopy_thread("t", "copy")
    await other.adelete_thread("t")
    assert await knows.aget_tuple(CONFIG) is None
    assert await graph(knows, "a").ainvoke({"said": []}, CONFIG) == {"said": ["a"]}
    copy = await graph(other, "a").aget_state({"configurable": {"thread_id": "copy"}})
    assert copy.values == {"said": ["a", "a"]}


async def test_what_is_written_while_a_thread_is_pruned_stays() -> None:
    store = MemoryStore()
    saver, other = PerdureSaver(store), PerdureSaver(store)
    parent = None
    for step in range(30):
        config = generate_config("t")
        if parent is not None:
            config["configurable"]["checkpoint_id"] = parent["configurable"]["checkpoint_id"]
        write = saver.aput(config, generate_checkpoint(), generate_metadata(step=step), {})
        parent, _ = await asyncio.gather(write, other.aprune(["t"]))
    newest = await other.aget_tuple(generate_config("t"))
    assert newest is not None
    assert newest.metadata["step"] == 29


async def test_a_thread_survives_a_crash_at_every_write_of_a_graph_and_of_pruning() -> None:
    async def scenario(store: RunStore) -> Any:
        app = graph(PerdureSaver(store), "a", "b")
        state = await app.aget_state(CONFIG)
        if not state.values.get("said"):
            await app.ainvoke(None if state.next else {"said": []}, CONFIG, durability="sync")
        elif state.next:
            await app.ainvoke(None, CONFIG, durability="sync")
        await PerdureSaver(store).aprune(["t"])
        await app.aupdate_state(CONFIG, {"said": ["c"]}) if len(state.values) < 3 else None
        await PerdureSaver(store).aprune(["t"])
        kept = [each async for each in PerdureSaver(store).alist(None)]
        runs = [run.run_id for run in await store.list_runs() if "#" not in run.run_id]
        return kept[0].checkpoint["channel_values"]["said"][:2], len(kept), len(runs)

    report = await crash_everywhere(scenario, lambda: LABS["memory"](Path()))
    assert report.outcome == (["a", "b"], 1, 1)
    assert len(report.points) > 30


async def test_pruned_values_are_gone_from_the_store() -> None:
    store = MemoryStore()
    saver = PerdureSaver(store)

    def forget(state: Word) -> Word:
        return {"word": "harmless"}

    builder = StateGraph(Word)
    builder.add_node("forget", forget)
    builder.add_edge(START, "forget")
    await builder.compile(checkpointer=saver).ainvoke({"word": "hunter2"}, CONFIG)
    await saver.aprune(["t"])
    runs = await store.list_runs()
    assert [run.run_id for run in runs] == ["langgraph:t~1"]
    kept = str([each async for each in PerdureSaver(store).alist(None)])
    assert "harmless" in kept
    assert "hunter2" not in kept


def appended(old: list[str], writes: list[list[str]]) -> list[str]:
    return [*old, *(word for write in writes for word in write)]


class Deltas(TypedDict):
    said: Annotated[list[str], DeltaChannel(appended, list, snapshot_frequency=5)]


def two_at_once(saver: Any) -> Any:
    """Return a graph of two nodes at once, whose words are kept as deltas."""
    builder = StateGraph(Deltas)
    for name in ("a", "b"):
        builder.add_node(name, lambda state, name=name: {"said": [f"{name}{len(state['said'])}"]})
        builder.add_edge(START, name)
    return builder.compile(checkpointer=saver)


@pytest.mark.parametrize("durability", ["async", "exit"])
async def test_delta_channels_are_put_together_again_and_survive_pruning(durability: str) -> None:
    store, other = MemoryStore(), InMemorySaver()
    kept: list[int] = []
    for turn in range(4):
        given: Any = {"said": [f"in{turn}"]}
        expected = await two_at_once(other).ainvoke(given, CONFIG, durability=durability)
        got = await two_at_once(PerdureSaver(store)).ainvoke(given, CONFIG, durability=durability)
        assert got == expected
        await PerdureSaver(store).aprune(["t"])
        state = await two_at_once(PerdureSaver(store)).aget_state(CONFIG)
        assert state.values == expected
        kept.append(len([each async for each in PerdureSaver(store).alist(CONFIG)]))
    assert 1 < max(kept) < 8


async def test_threads_belong_to_tenants_and_to_users() -> None:
    store = MemoryStore()
    await graph(PerdureSaver(store.for_tenant("acme"), owner_id="ann"), "a").ainvoke(
        {"said": []}, CONFIG
    )
    assert await PerdureSaver(store).aget_tuple(CONFIG) is None
    assert [each async for each in PerdureSaver(store).alist(None)] == []
    assert (await erase_user(store.for_tenant("acme"), "ann")).sessions == 1
    assert await PerdureSaver(store.for_tenant("acme")).aget_tuple(CONFIG) is None


async def test_retention_deletes_a_thread_that_is_not_used_any_more() -> None:
    store = MemoryStore()
    await graph(PerdureSaver(store), "a").ainvoke({"said": []}, CONFIG)
    await graph(PerdureSaver(store), "a").ainvoke({"said": []}, CONFIG)
    runs = [run.run_id for run in await store.list_runs()]
    assert [run_id.partition("#")[0] for run_id in runs] == ["langgraph:t~0"] * 2
    assert (await collect_garbage(store, runs_after_ms=0)).runs == 2
    assert await PerdureSaver(store).aget_tuple(CONFIG) is None


def test_a_graph_that_is_not_awaited_uses_a_store_of_the_synchronous_door(tmp_path: Path) -> None:
    with sync.open_store(f"sqlite:{tmp_path / 'runs.db'}") as store:
        app = graph(PerdureSaver(store), "a", "b")
        assert app.invoke({"said": []}, CONFIG) == {"said": ["a", "b"]}
        assert [state.next for state in app.get_state_history(CONFIG)] == [
            (), ("b",), ("a",), ("__start__",)
        ]  # fmt: skip
        assert asyncio.run(app.ainvoke({"said": []}, CONFIG)) == {"said": ["a", "b", "a", "b"]}


async def test_waiting_on_the_loop_of_the_store_is_refused_and_in_a_thread_it_works() -> None:
    saver = PerdureSaver(MemoryStore())
    with pytest.raises(UsageError, match=r"await the graph \(ainvoke, astream\)"):
        saver.get_tuple(CONFIG)
    app = graph(saver, "a")
    assert await asyncio.to_thread(app.invoke, {"said": []}, CONFIG) == {"said": ["a"]}


def test_a_config_without_a_thread_is_refused() -> None:
    with (
        sync.open_store("memory:") as store,
        pytest.raises(UsageError, match="the config names no thread"),
    ):
        PerdureSaver(store).get_tuple({"configurable": {}})


@pytest.mark.parametrize("store", ["file.db", None])
def test_what_is_no_store_is_refused_by_what_it_is(store: Any) -> None:
    with pytest.raises(UsageError, match=rf"no {store!r}: .*open_store"):
        PerdureSaver(store)
