"""Long answers go out piece by piece, so that slow clients are told from stalled ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message, Scope

from perdure.web.responses import PIECE_BYTES, WRITE_STALL_MS, StreamAnswer

SCOPE: Scope = {"type": "http", "method": "GET"}


async def one_chunk(size: int) -> AsyncGenerator[bytes, None]:
    yield b"x" * size


async def still_there() -> Message:
    await asyncio.Event().wait()
    return {}


def answer(size: int, *, write_stall_ms: float = WRITE_STALL_MS) -> StreamAnswer:
    return StreamAnswer(
        one_chunk(size),
        status=200,
        content_type="text/plain",
        closing=asyncio.Event(),
        write_stall_ms=write_stall_ms,
    )


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES - 1])
async def test_no_piece_is_longer_than_what_a_connection_buffers(size: int) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await answer(size)(SCOPE, still_there, send)
    pieces = [message["body"] for message in sent[1:]]
    assert b"".join(pieces) == b"x" * size
    assert max(map(len, pieces)) <= PIECE_BYTES
    assert [message["more_body"] for message in sent[1:]][-2:] == [True, False][-len(pieces) :]


async def test_a_client_who_does_not_take_the_last_bytes_is_cut_off_too() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        if message.get("more_body") is False:
            await asyncio.Event().wait()
        sent.append(message)

    async with asyncio.timeout(10):
        await answer(10, write_stall_ms=20)(SCOPE, still_there, send)
    assert all(message.get("more_body", True) for message in sent)
