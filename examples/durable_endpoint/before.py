"""A chat endpoint that streams the words of a model."""

from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from model import ask_model

app = FastAPI()


async def answer(message: str) -> AsyncIterator[str]:
    async for word in ask_model(message):
        yield word


@app.post("/v1/sessions/{session_id}/turns")
async def submit(body: dict[str, str]) -> StreamingResponse:
    return StreamingResponse(answer(body["message"]))
