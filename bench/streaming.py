"""The model behind the service, streamed straight by a server that stores nothing.

    python -m bench.streaming PORT TOKEN_MS

It is what a service under load is compared with: the same tokens at the same pace, each made a line
by the generator that the response is sent from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from perdure.backends.protocol import Prompt
from perdure.backends.scripted import ScriptedBackend


def application(token_ms: float) -> Starlette:
    backend = ScriptedBackend(token_delay_ms=token_ms)

    async def lines(message: str) -> AsyncIterator[bytes]:
        async for frame in backend.stream(Prompt([{"role": "user", "content": message}])):
            yield json.dumps({"type": frame.kind, "data": dict(frame.data)}).encode() + b"\n"

    async def turn(request: Request) -> StreamingResponse:
        body = await request.json()
        return StreamingResponse(lines(body["message"]), media_type="application/x-ndjson")

    return Starlette(routes=[Route("/v1/sessions/{session}/turns", turn, methods=["POST"])])


def main() -> None:
    port, token_ms = int(sys.argv[1]), float(sys.argv[2])
    uvicorn.run(application(token_ms), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
