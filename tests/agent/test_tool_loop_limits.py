"""Where a tool loop ends that does not end by itself, and that it says so once."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from perdure.agent.model_backend import ModelOptions
from perdure.agent.tool_approval import Approval, answer_approval, pending_approvals
from perdure.agent.tool_limits import ModelUsage, ToolLimits, free_at_ms, usd_by
from perdure.agent.tool_loop import LIMIT_FRAME, ToolLoop
from perdure.agent.tools import Tool
from perdure.backends.scripted import ScriptedBackend
from perdure.core import frames
from perdure.core.frames import Frame
from perdure.core.pricing import ModelCall, Price
from perdure.core.records import JsonValue
from perdure.errors import BackendTransportError, UsageError
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.protocol import RunStore
from tests.agent.looping import PURE, degrees, run, told
from tests.agent.strict_provider import StrictProvider, calls, says

FARO = calls(("c", "degrees", {"city": "Faro"}))


@pytest.fixture
def store() -> RunStore:
    return MemoryStore(MemoryData())


def limit_of(seen: Sequence[Frame]) -> list[Any]:
    return [
        frame.data["value"]["end"]
        for frame in seen
        if frame.kind == "data" and frame.data["name"] == LIMIT_FRAME
    ]


async def test_a_model_that_never_answers_is_called_so_often_only(store: RunStore) -> None:
    numbers = iter(range(100))
    provider = StrictProvider(*(calls((f"c{n}", "degrees", {"city": str(n)})) for n in numbers))
    seen: list[Frame] = []
    loop = ToolLoop(provider.backend(), [PURE], limits=ToolLimits(model_calls_max=4))
    result = await run(store, loop, on_frame=seen.append)
    assert (result.end, result.detail) == ("model_calls", "the model was called 4 times")
    assert len(provider.prompts) == 4
    assert limit_of(seen) == ["model_calls"]
    # The conversation can go on from there.
    follow_up = [*result.messages, {"role": "user", "content": "And?"}]
    await run(MemoryStore(MemoryData()), ToolLoop(provider.backend(), [PURE]), follow_up)
    assert provider.refused == []


@pytest.mark.parametrize("limit", ["model_calls", "tool_calls", "no_progress"])
async def test_a_model_may_say_what_it_has_once_it_can_call_no_more(
    store: RunStore, limit: str
) -> None:
    look = calls(("c", "degrees", {"city": "Faro"}))
    most = {"model_calls": 3, "tool_calls": 2, "no_progress": 2}[limit]
    limits = {
        "model_calls": ToolLimits(model_calls_max=3, on_limit="answer"),
        "tool_calls": ToolLimits(tool_calls_max=1, on_limit="answer"),
        "no_progress": ToolLimits(same_calls_max=1, on_limit="answer"),
    }[limit]
    provider = StrictProvider(*[look] * most if limit != "model_calls" else [look] * 2, says("So."))
    seen: list[Frame] = []
    loop = ToolLoop(provider.backend(), [PURE], limits=limits)
    result = await run(store, loop, on_frame=seen.append)
    assert (result.end, result.text, result.model_calls) == (limit, "So.", 3)
    assert limit_of(seen) == [limit]
    assert seen[-2] == frames.text("So.")
    choices = [prompt.get("tool_choice") for prompt in provider.prompts]
    assert choices == [None, None, "none"]
    assert provider.refused == []
    assert [step.intent for step in await store.read_steps("run")][-1] == "loop: model 3"


async def test_a_last_answer_that_calls_nevertheless_leaves_a_valid_conversation(
    store: RunStore,
) -> None:
    numbers = range(9)
    provider = StrictProvider(*(calls((f"c{n}", "degrees", {"city": str(n)})) for n in numbers))
    limits = ToolLimits(model_calls_max=2, on_limit="answer")
    result = await run(store, ToolLoop(provider.backend(), [PURE], limits=limits))
    assert (result.end, result.model_calls, result.tool_calls) == ("model_calls", 2, 1)
    assert "not_called" in str(result.messages[-1]["content"])


async def test_money_that_is_spent_leaves_no_last_answer(store: RunStore) -> None:
    provider = StrictProvider(FARO, says("So."))
    limits = ToolLimits(cost_usd_max=0.5, on_limit="answer")
    loop = ToolLoop(provider.backend(), [PURE], limits=limits, cost_usd=lambda _: 1.0)
    result = await run(store, loop)
    assert (result.end, result.model_calls) == ("cost", 1)


@pytest.mark.parametrize("at_once_max", [1, 2, None])
async def test_no_more_calls_of_an_answer_run_at_once_than_may(
    store: RunStore, at_once_max: int | None
) -> None:
    running: set[str] = set()
    most: list[int] = []
    order: list[str] = []

    async def look(place: str) -> str:
        running.add(place)
        order.append(place)
        most.append(len(running))
        await asyncio.sleep(0)
        running.discard(place)
        return place

    asked = [(f"c{place}", "look", {"place": place}) for place in "abcde"]
    provider = StrictProvider(calls(*asked), says("Done."))
    loop = ToolLoop(
        provider.backend(),
        [Tool(look, effect="idempotent")],
        limits=ToolLimits(calls_at_once_max=at_once_max),
    )
    await run(store, loop)
    assert max(most) == (at_once_max or 5)
    assert order == list("abcde")
    intents = [step.intent for step in await store.read_steps("run") if step.kind == "tool"]
    assert intents == [f"loop: look 1.{number}" for number in range(1, 6)]
    assert told(provider) == list("abcde")


async def test_a_call_that_waits_for_its_place_has_not_begun(store: RunStore) -> None:
    hangs = asyncio.Event()

    async def look(place: str) -> str:
        hangs.set()
        await asyncio.Event().wait()
        return place

    asked = [(f"c{place}", "look", {"place": place}) for place in "ab"]
    provider = StrictProvider(calls(*asked), says("Done."))
    limits = ToolLimits(calls_at_once_max=1)
    going = asyncio.create_task(run(store, ToolLoop(provider.backend(), [look], limits=limits)))
    await hangs.wait()
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    begun = [step.intent for step in await store.read_steps("run") if step.kind == "tool"]
    assert begun == ["loop: look 1.1"]


async def test_the_same_call_again_and_again_is_no_progress(store: RunStore) -> None:
    provider = StrictProvider(calls(("c", "degrees", {"city": "Faro"})))
    seen: list[Frame] = []
    result = await run(store, ToolLoop(provider.backend(), [PURE]), on_frame=seen.append)
    assert result.end == "no_progress"
    assert "'degrees' was asked for with equal arguments 4 times" in result.detail
    assert len(await store.read_steps("run")) == 7
    assert limit_of(seen) == ["no_progress"]
    assert "not_called" in str(result.messages[-1]["content"])


async def test_a_tool_that_looks_whether_something_is_done_may_repeat(store: RunStore) -> None:
    provider = StrictProvider(*[FARO] * 6, says("At last."))
    loop = ToolLoop(provider.backend(), [Tool(degrees, effect="pure", may_repeat=True)])
    assert (await run(store, loop)).text == "At last."


async def test_too_many_tool_calls_end_the_loop_before_they_are_made(store: RunStore) -> None:
    asked = [(f"c{n}", "degrees", {"city": str(n)}) for n in range(5)]
    provider = StrictProvider(calls(*asked))
    loop = ToolLoop(provider.backend(), [PURE], limits=ToolLimits(tool_calls_max=4))
    result = await run(store, loop)
    assert (result.end, result.model_calls) == ("tool_calls", 1)
    assert len(await store.read_steps("run")) == 1


def cents(usage: ModelUsage) -> float | None:
    return None if usage.tokens_in is None else usage.tokens_in / 100


async def test_money_is_spent_up_to_its_limit(store: RunStore) -> None:
    numbers = iter(range(100))
    provider = StrictProvider(*(calls((f"c{n}", "degrees", {"city": str(n)})) for n in numbers))
    limits = ToolLimits(cost_usd_max=0.3)
    result = await run(store, ToolLoop(provider.backend(), [PURE], limits=limits, cost_usd=cents))
    assert (result.end, result.model_calls) == ("cost", 3)
    assert result.cost_usd == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("cost", "limit", "most"), [(0.1, 0.8, 8), (0.1, 1.0, 10), (0.07, 0.7, 10)]
)
async def test_money_is_added_up_as_people_do(
    store: RunStore, cost: float, limit: float, most: int
) -> None:
    replies = (calls((f"c{n}", "degrees", {"city": str(n)})) for n in range(12))
    provider = StrictProvider(*replies)
    limits = ToolLimits(cost_usd_max=limit)
    loop = ToolLoop(provider.backend(), [PURE], limits=limits, cost_usd=lambda _: cost)
    result = await run(store, loop)
    assert (result.end, result.model_calls, result.cost_usd) == ("cost", most, limit)


class Table:
    """Asks a thousandth of the currency for each token."""

    def __init__(self, currency: str = "USD") -> None:
        self._currency = currency

    def price(self, call: ModelCall) -> Price | None:
        if (call.provider, call.model) != ("strict", "strict-1"):
            return None
        return Price((call.tokens_in + call.tokens_out) * 1_000_000, self._currency, "1")


@pytest.mark.parametrize(("currency", "cost"), [("USD", 0.03), ("EUR", None)])
async def test_a_table_of_prices_tells_what_calls_cost(
    store: RunStore, currency: str, cost: float | None
) -> None:
    provider = StrictProvider(FARO, says("Warm."))
    loop = ToolLoop(provider.backend(), [PURE], cost_usd=usd_by(Table(currency)))
    result = await run(store, loop)
    assert result.cost_usd == (None if cost is None else pytest.approx(cost))


def test_what_is_not_known_of_a_call_has_no_price() -> None:
    cost_usd = usd_by(Table())
    assert cost_usd(ModelUsage("strict", "strict-1", 1, 1)) == 0.002
    assert cost_usd(ModelUsage("strict", "strict-1", 1, None)) is None
    assert cost_usd(ModelUsage("strict", None, 1, 1)) is None
    assert cost_usd(ModelUsage("strict", "strict-2", 1, 1)) is None


async def test_a_cost_that_nobody_knows_ends_a_loop_with_a_limit_of_money(store: RunStore) -> None:
    provider = StrictProvider(calls(("c", "degrees", {"city": "Faro"})), says("Warm."))
    loop = ToolLoop(
        provider.backend(),
        [PURE],
        limits=ToolLimits(cost_usd_max=1),
        cost_usd=lambda usage: None,
    )
    result = await run(store, loop)
    assert (result.end, result.cost_usd, result.model_calls) == ("cost", None, 1)


@pytest.mark.parametrize("given", [KeyError("m"), float("nan"), -0.1, "0.1", True])
async def test_a_price_that_cannot_be_computed_does_not_lose_the_answer(
    store: RunStore, given: Any
) -> None:
    def cost(usage: ModelUsage) -> float:
        if isinstance(given, Exception):
            raise given
        return given  # type: ignore[no-any-return]  # what a careless function returns

    provider = StrictProvider(says("Warm."))
    result = await run(store, ToolLoop(provider.backend(), [PURE], cost_usd=cost))
    assert (result.text, result.cost_usd) == ("Warm.", None)


async def test_time_cuts_off_a_model_that_hangs(store: RunStore) -> None:
    script: list[Frame | asyncio.Event] = [frames.text("Well"), asyncio.Event()]
    loop = ToolLoop(ScriptedBackend(script), [PURE], limits=ToolLimits(wall_ms_max=30))
    seen: list[Frame] = []
    result = await run(store, loop, on_frame=seen.append)
    again = await run(store, ToolLoop(ScriptedBackend([]), [PURE], limits=loop.limits))
    assert (result.end, result.text) == ("wall_time", "Well")
    assert limit_of(seen) == ["wall_time"]
    assert again == result


async def test_time_cuts_off_a_tool_that_hangs(store: RunStore) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    provider = StrictProvider(calls(("c", "hang", {})), says("never"))
    loop = ToolLoop(provider.backend(), [Tool(hang)], limits=ToolLimits(wall_ms_max=50))
    result = await run(store, loop)
    assert (result.end, len(provider.prompts)) == ("wall_time", 1)
    assert "not known whether it took effect" in str(result.messages[-1]["content"])


async def test_a_tool_that_waits_for_its_place_is_not_called_once_the_time_is_over(
    store: RunStore,
) -> None:
    begun: list[str] = []

    async def hang(place: str) -> None:
        begun.append(place)
        await asyncio.Event().wait()

    asked = [(f"c{place}", "hang", {"place": place}) for place in "abc"]
    provider = StrictProvider(calls(*asked), says("never"))
    limits = ToolLimits(wall_ms_max=50, calls_at_once_max=2)
    result = await run(store, ToolLoop(provider.backend(), [Tool(hang)], limits=limits))
    codes = [json.loads(str(each["content"]))["error"]["code"] for each in result.messages[-3:]]
    assert codes == ["tool_timeout", "tool_timeout", "not_called"]
    assert (result.end, begun, len(provider.prompts)) == ("wall_time", ["a", "b"], 1)
    again = await run(store, ToolLoop(provider.backend(), [Tool(hang)], limits=limits))
    assert again == result


async def test_calls_behind_a_human_have_the_time_that_the_others_left(store: RunStore) -> None:
    begun: list[str] = []

    async def hang(place: str) -> None:
        begun.append(place)
        await asyncio.Event().wait()

    asking = Tool(hang, name="ask", needs_approval=True)
    provider = StrictProvider(
        calls(("a", "hang", {"place": "a"}), ("b", "ask", {"place": "b"})), says("never")
    )
    loop = ToolLoop(provider.backend(), [Tool(hang), asking], limits=ToolLimits(wall_ms_max=50))
    working = asyncio.ensure_future(run(store, loop))
    while not (requests := await pending_approvals(store, "run")):
        await store.wait_for_change("run", timeout_ms=50)
    await answer_approval(store, "run", requests[0], Approval(True))
    result = await working
    assert (result.end, begun) == ("wall_time", ["a"])


@pytest.mark.parametrize(
    ("durations", "places", "free"),
    [
        ([], 2, [0.0, 0.0]),
        ([5.0], 2, [0.0, 5.0]),
        ([5.0, 3.0], 2, [3.0, 5.0]),
        ([5.0, 3.0, 4.0], 2, [5.0, 7.0]),
        ([5.0, 3.0, 4.0], 1, [12.0]),
        ([None, 3.0], 2, [3.0, math.inf]),
        ([None, 3.0, 4.0], 2, [7.0, math.inf]),
    ],
)
def test_calls_stand_one_behind_the_other_where_there_are_fewer_places(
    durations: list[float | None], places: int, free: list[float]
) -> None:
    assert free_at_ms(durations, places) == free


def test_a_loop_that_cannot_work_is_refused() -> None:
    backend = ScriptedBackend([])
    with pytest.raises(UsageError, match="two tools are named 'degrees'"):
        ToolLoop(backend, [degrees, PURE])
    with pytest.raises(UsageError, match="cost_usd_max needs"):
        ToolLoop(backend, [], limits=ToolLimits(cost_usd_max=1))
    with pytest.raises(UsageError, match="given to the loop"):
        ToolLoop(backend, [], options=ModelOptions(tools=({},)))
    with pytest.raises(UsageError, match="64 characters"):
        ToolLoop(backend, [], name="n" * 65)
    with pytest.raises(UsageError, match="model_calls_max"):
        ToolLimits(model_calls_max=0)
    with pytest.raises(UsageError, match="cost_usd_max"):
        ToolLimits(cost_usd_max=float("nan"))
    with pytest.raises(UsageError, match="calls_at_once_max"):
        ToolLimits(calls_at_once_max=0)
    with pytest.raises(UsageError, match="'end' or 'answer'"):
        ToolLimits(on_limit="stop")  # type: ignore[arg-type]  # no such policy
    with pytest.raises(UsageError, match="keeps one call back"):
        ToolLimits(on_limit="answer", model_calls_max=1)


class Joinable(ScriptedBackend):
    """An answer that goes on upstream until somebody ends it."""

    def __init__(self, *, failing: bool = False) -> None:
        super().__init__([frames.upstream_begin("handle"), frames.text("Well"), asyncio.Event()])
        self.cancelled: list[JsonValue] = []
        self._failing = failing

    def attach(self, handle: JsonValue) -> AsyncIterator[Frame]:
        raise NotImplementedError

    async def cancel(self, handle: JsonValue) -> None:
        self.cancelled.append(handle)
        if self._failing:
            raise BackendTransportError("lost", backend="joinable")


@pytest.mark.parametrize("failing", [False, True])
async def test_an_answer_that_is_cut_off_is_ended_upstream(store: RunStore, failing: bool) -> None:
    backend = Joinable(failing=failing)
    loop = ToolLoop(backend, [PURE], limits=ToolLimits(wall_ms_max=20))
    result = await run(store, loop)
    assert (result.end, result.text) == ("wall_time", "Well")
    assert backend.cancelled == ["handle"]
