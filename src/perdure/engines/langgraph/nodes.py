"""Nodes of a LangGraph graph as steps of a turn, with what they show."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final, cast

from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import merge_configs, set_config_context
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.errors import GraphBubbleUp, GraphInterrupt, ParentCommand
from langgraph.pregel.main import Pregel  # pyright: ignore[reportMissingTypeStubs] - it has none

from perdure.core import frames
from perdure.core.frames import Frame
from perdure.core.jsonvalue import decode_value, encode_value
from perdure.core.records import JsonValue, StepKind, StepRecord
from perdure.engines.showing import Showing
from perdure.errors import NotSerializableError, UsageError
from perdure.turn.driving import closing
from perdure.turn.handout import Turn

START: Final = "__start__"
RUNTIME: Final = "__pregel_runtime"
"""Where a node's config has LangGraph's runtime, with the stream writer."""
SILENT: Final = "nostream"
"""The tag of a model whose tokens LangGraph does not stream either."""
CUSTOM_FRAME: Final = "custom"
NODE: Final = "node "
"""How the intents of nodes begin."""
FIRST_POSITION: Final = 2
"""Where the first node is: position 0 is the turn, and 1 its begin."""
PATIENCE_S: Final = 5.0
"""So long a node waits for one that took its position before it, in an earlier attempt."""

Graph = Any
"""A compiled graph: LangGraph's own type has four parameters, none of which matters here."""

_work: ContextVar[GraphWork] = ContextVar("perdure_graph_work")
_outer: ContextVar[str] = ContextVar("perdure_outer_node", default="")


class GraphWork:
    """A graph at work within a turn."""

    def __init__(
        self,
        turn: Turn,
        showing: Showing,
        serde: SerializerProtocol,
        kinds: Mapping[str, StepKind],
        recorded: Sequence[StepRecord],
    ) -> None:
        self.turn = turn
        self.showing = showing
        self.serde = serde
        self._kinds = kinds
        self._slots = _slots(recorded)
        self._moved = asyncio.Event()

    @contextmanager
    def current(self) -> Generator[None]:
        """Make it what nodes belong to that run within."""
        token = _work.set(self)
        try:
            yield
        finally:
            _work.reset(token)

    def kind_of(self, path: str) -> StepKind:
        return self._kinds.get(path, "logic")

    async def its_turn(self, intent: str) -> None:
        """Wait until all nodes have taken their positions that took theirs before in this turn.

        Nodes at once begin in an order that nothing fixes; the recorded one holds from then on. If
        another does not come, the code has changed: then the step itself says so.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while not self._fits(intent):
                    await self._moved.wait()
        if self._slots:
            del self._slots[0]
            self._moved.set()
            self._moved = asyncio.Event()

    def _fits(self, intent: str) -> bool:
        """Return whether the next position is that of the node, as far as the records tell."""
        if intent in self._slots:
            return self._slots[0] == intent
        return not self._slots or self._slots[0] is None


def _slots(recorded: Sequence[StepRecord]) -> list[str | None]:
    """Return what stands at the positions of nodes, in order; None: a step that left no record."""
    known = {step.step_index: step.intent for step in recorded}
    nodes = [at for at, intent in known.items() if intent.startswith(NODE)]
    positions = range(FIRST_POSITION, max(nodes, default=0) + 1)
    return [known.get(at) for at in positions]


def with_steps(graph: Graph) -> Graph:
    """Return the graph with nodes that are steps, wherever it runs within a turn."""
    nodes = {
        name: node if name == START else node.copy({"bound": _wrapped(node.bound, name)})
        for name, node in graph.nodes.items()
    }
    return graph.copy({"nodes": nodes})


def _wrapped(bound: Runnable[Any, Any], name: str) -> Runnable[Any, Any]:
    if isinstance(bound, Pregel):
        return _Subgraph(with_steps(bound), name)
    return _Node(bound, name)


class _Subgraph(Runnable[Any, Any]):
    """A graph that is a node: its own nodes are the steps."""

    def __init__(self, bound: Runnable[Any, Any], name: str) -> None:
        self._bound = bound
        self._name = name

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        raise _not_awaited()

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        token = _outer.set(f"{_label(self._name, config)}:")
        try:
            return await self._bound.ainvoke(input, config, **kwargs)
        finally:
            _outer.reset(token)


class _Node(Runnable[Any, Any]):
    """A node that is a step of the turn in which it runs."""

    def __init__(self, bound: Runnable[Any, Any], name: str) -> None:
        self._bound = bound
        self._name = name

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        raise _not_awaited()

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        work = _work.get()
        label = _label(self._name, config)
        kind = work.kind_of(self._path())
        await work.its_turn(NODE + label)
        shown = Showing()
        results: list[JsonValue] = []

        async def run() -> None:
            told = _Told(shown, counts=kind == "llm")
            listening = _listening(config, told)
            try:
                with set_config_context(listening) as context:
                    asked = self._bound.ainvoke(input, listening, **kwargs)
                    output = await asyncio.create_task(asked, context=context)
            except GraphBubbleUp as up:
                results.append(_bubbled(work.serde, up))
                return
            await told.rest(output)
            await told.flush()
            results.append(_output(work.serde, output))

        stream = work.turn.stream(
            NODE + label, lambda: shown.frames(run()), result=lambda _: results[0], kind=kind
        )
        items = aiter(stream)
        async with closing(items):
            async for frame in items:
                await work.showing.show(frame)
        return _returned(work.serde, cast("dict[str, Any]", stream.result))

    def _path(self) -> str:
        """Return the names of the nodes down to this one, as `kinds` has them."""
        outer = [part.partition(" ")[0] for part in _outer.get().split(":") if part]
        return ":".join([*outer, self._name])


class _Told(AsyncCallbackHandler):
    """Shows what chat models say within a node, and what they used."""

    def __init__(self, shown: Showing, *, counts: bool) -> None:
        self._shown = shown
        self._counts = counts
        self._has_spoken = False
        self._loop = asyncio.get_running_loop()
        self._written: list[Future[None]] = []

    def written(self, value: Any) -> None:
        """Show what a node gave to the stream writer, which does not wait."""
        frame = value if isinstance(value, Frame) else None
        if frame is None:
            frame = (
                frames.text(value)
                if isinstance(value, str)
                else frames.data(CUSTOM_FRAME, shown_as(value))
            )
        self._has_spoken = self._has_spoken or frame.kind == "text"
        # A node that is not awaited runs in a thread.
        self._written.append(asyncio.run_coroutine_threadsafe(self._shown.show(frame), self._loop))

    async def flush(self) -> None:
        """Wait until all that was written is shown."""
        await asyncio.gather(*map(asyncio.wrap_future, self._written))

    async def _show(self, frame: Frame) -> None:
        showing = self._shown.show(frame)
        if asyncio.get_running_loop() is self._loop:
            await showing
        else:
            # A model that is not awaited: LangChain runs this on a loop of its thread's own.
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(showing, self._loop))

    async def on_llm_new_token(
        self, token: Any, *, tags: list[str] | None = None, **_: Any
    ) -> None:
        if token and isinstance(token, str) and SILENT not in (tags or ()):
            self._has_spoken = True
            await self._show(frames.text(token))

    async def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        for generations in response.generations if self._counts else ():
            for each in generations:
                message: Any = getattr(each, "message", None)
                if isinstance(message, AIMessage) and message.usage_metadata is not None:
                    used = message.usage_metadata
                    await self._show(
                        frames.usage(
                            model=message.response_metadata.get("model_name"),
                            tokens_in=used["input_tokens"],
                            tokens_out=used["output_tokens"],
                        )
                    )

    async def rest(self, output: Any) -> None:
        """Show the messages of a model that did not stream."""
        if self._has_spoken or not isinstance(output, Mapping):
            return
        messages: Any = cast("Mapping[str, Any]", output).get("messages", ())
        spoken: Sequence[Any] = (messages,) if isinstance(messages, AIMessage) else messages
        for message in spoken:
            if isinstance(message, AIMessage) and isinstance(message.content, str):
                await self._show(frames.text(message.content))


def shown_as(value: Any) -> JsonValue:
    """Return a value as readers are shown it: what is not JSON as its text."""
    try:
        return decode_value(encode_value(value))
    except NotSerializableError:
        return str(value)


def _listening(config: RunnableConfig | None, told: _Told) -> RunnableConfig:
    """Return the config with which models tell what they say, and the stream writer shows it."""
    config = merge_configs(config, {"callbacks": [told]})
    configurable = config.get("configurable", {})
    runtime = configurable.get(RUNTIME)
    if runtime is None:
        return config
    before = runtime.stream_writer

    def write(value: Any) -> None:
        told.written(value)
        before(value)

    changed = {**configurable, RUNTIME: replace(runtime, stream_writer=write)}
    return {**config, "configurable": changed}


def _label(name: str, config: RunnableConfig | None) -> str:
    """Return the name of this execution of a node, the same in every attempt at a turn."""
    metadata = (config or {}).get("metadata", {})
    path = metadata.get("langgraph_path", ())
    place = f"/{path[1]}" if path and path[0] == "__pregel_push" else ""
    return f"{_outer.get()}{name} {metadata.get('langgraph_step')}{place}"


def _output(serde: SerializerProtocol, output: Any) -> dict[str, JsonValue]:
    """Return what is recorded of a node's output: plain JSON if it is that, else as LangGraph's."""
    try:
        if decode_value(encode_value(output)) == output:
            return {"value": output}
    except NotSerializableError:
        pass
    kind, data = serde.dumps_typed(output)
    return {"type": kind, "data": b64encode(data).decode()}


def _bubbled(serde: SerializerProtocol, up: GraphBubbleUp) -> dict[str, JsonValue]:
    if not isinstance(up, GraphInterrupt | ParentCommand):
        raise up
    name = "interrupt" if isinstance(up, GraphInterrupt) else "command"
    [told] = cast("Exception", up).args
    return {name: _output(serde, told)}


def _returned(serde: SerializerProtocol, recorded: Mapping[str, Any]) -> Any:
    """Return what a node returned, or raise what it told LangGraph by raising."""
    if "interrupt" in recorded:
        raise GraphInterrupt(_returned(serde, recorded["interrupt"]))
    if "command" in recorded:
        raise ParentCommand(_returned(serde, recorded["command"]))
    if "value" in recorded:
        return recorded["value"]
    return serde.loads_typed((recorded["type"], b64decode(recorded["data"])))


def _not_awaited() -> UsageError:
    return UsageError("a graph that answers turns is awaited: GraphTurns does it")
