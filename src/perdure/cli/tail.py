"""`perdure tail`: a chat turn, while it is answered."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from perdure.cli.exits import NO
from perdure.cli.opening import Place, opened, place_of, ran
from perdure.cli.output import harmless, has_colours, one_line, shortened
from perdure.core.frames import Frame
from perdure.core.records import RunRecord
from perdure.core.transitions import TERMINAL_STATES
from perdure.errors import UsageError
from perdure.turn.ending import answer_of
from perdure.turn.reading import Reading, Silence, Tail, lines, open_reading
from perdure.turn.wire.codecs import codec_for


def tail(options: argparse.Namespace) -> int:
    """Follow a turn to its end; return the exit code."""
    return ran(_tail, options)


async def _tail(options: argparse.Namespace) -> int:
    async with opened(options) as store:
        place = place_of(store, options)
        run = await place.read()
        if run.session_id is None:
            raise UsageError(
                f"the run {place.run_id!r} is no chat turn, nobody can follow it: look at it with "
                f"`perdure show {place.stored_id}`"
            )
        reading = await open_reading(place.store, run, after=options.after, find_ring=_no_ring)
        if options.json:
            await _print_lines(reading)
        else:
            await _print_text(place, reading)
        ended = await place.read()
    return 0 if ended.state in TERMINAL_STATES else NO


def _no_ring() -> None:
    """The turn lives in another process: what it says is read from the store."""


async def _print_lines(reading: Reading) -> None:
    async with aclosing(lines(reading, codec_for("envelope"))) as encoded:
        async for line in encoded:
            print(line.decode("ascii"), end="", flush=True)


async def _print_text(place: Place, reading: Reading) -> None:
    page = _Page()
    if reading.is_over and reading.after is None:
        answer = answer_of(await place.store.read_steps(place.run_id))
        page.text(str(answer.get("finalText", "")))
        page.end(reading.run)
        return
    following = Tail(reading)
    try:
        async with aclosing(following.follow()) as batches:
            async for batch in batches:
                if isinstance(batch, Silence):
                    page.silence(batch)
                else:
                    page.frames(batch)
    finally:
        following.leave()
    page.end(await place.read())


class _Page:
    """The answer goes to stdout; what else is to be told goes to stderr."""

    def __init__(self) -> None:
        self._is_within_line = False

    def frames(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            if frame.kind == "text":
                self.text(frame.data["delta"])
            elif frame.kind == "reasoning":
                self._reasoning(frame.data["delta"])
            elif frame.kind in _NOTES:
                self._note(_NOTES[frame.kind](frame.data))
        sys.stdout.flush()

    def text(self, text: str) -> None:
        if text:
            print(harmless(text), end="", flush=False)
            self._is_within_line = not text.endswith("\n")

    def _reasoning(self, text: str) -> None:
        # Between the words of an answer it would only confuse whoever keeps them in a file.
        if has_colours() and text:
            print(f"\x1b[2m{harmless(text)}\x1b[0m", end="")
            self._is_within_line = not text.endswith("\n")

    def silence(self, silence: Silence) -> None:
        if silence is Silence.RECOVERING:
            self._note("nobody works on it just now")

    def end(self, run: RunRecord) -> None:
        told = run.state if run.reason is None else f"{run.state}: {run.reason}"
        attempts = f" in attempt {run.epoch}" if run.epoch > 1 else ""
        self._note(f"{told}{attempts}")

    def _note(self, text: str) -> None:
        if self._is_within_line:
            print(flush=True)
            self._is_within_line = False
        sys.stdout.flush()
        shown = f"\x1b[2m{one_line(text)}\x1b[0m" if sys.stderr.isatty() else one_line(text)
        print(f"· {shown}", file=sys.stderr, flush=True)


def _tool_call(data: Mapping[str, Any]) -> str:
    return f"{data['name']} {shortened(data['args'])}"


def _tool_result(data: Mapping[str, Any]) -> str:
    if "error" in data:
        return f"failed: {shortened(data['error'])}"
    return f"gave {shortened(data['result'])}"


def _source(data: Mapping[str, Any]) -> str:
    return f"source: {data['url']}"


def _restarted(data: Mapping[str, Any]) -> str:
    return (
        f"begun again (attempt {data['attempt']}, {data['reason']}): "
        "what stands above is no part of the answer"
    )


def _failed(data: Mapping[str, Any]) -> str:
    ref = f" (ref {data['ref']} in the log)" if "ref" in data else ""
    return f"{data['code']}: {data['message']}{ref}"


_NOTES: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "tool_call": _tool_call,
    "tool_result": _tool_result,
    "source": _source,
    "restarted": _restarted,
    "failed": _failed,
}
