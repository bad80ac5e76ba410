"""A chat endpoint that streams the words of a model."""

from collections.abc import AsyncIterator

from fastapi import FastAPI
from model import ask_model

from perdure import ChatTurnEngine, Frame, Sqlite, SqlStore, Turn, frames
from perdure.web.fastapi import Caller, chat_router

app = FastAPI()


async def answer(turn: Turn) -> AsyncIterator[Frame]:
    async for word in ask_model(turn.user_message):
        yield frames.text(word)


engine = ChatTurnEngine(SqlStore(Sqlite("chat.db")), produce=answer)
app.include_router(chat_router(engine, authorize=lambda: Caller("", "me")))
