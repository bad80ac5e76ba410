"""Asks a question through Restate, and reads the answer from the journal."""

import asyncio
import json
import os
import sys
import urllib.request

from perdure import ChatTurnEngine, ChatTurnIdentity, RunNotFoundError, open_store

DATABASE = os.environ.get("DATABASE_URL", "sqlite:///restate-example.db")
INGRESS = os.environ.get("RESTATE_INGRESS", "http://127.0.0.1:8080")


def post(path, body):
    request = urllib.request.Request(f"{INGRESS}/{path}", json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request) as response:
        return json.load(response)


async def main(question):
    asked = {"turn_index": 0, "message": question, "user_id": "ann"}
    await asyncio.to_thread(post, "chat/holiday/ask/send", asked)
    if "approve" in question:
        approval = {"key": "approval", "payload": {"by": "Ben"}}
        await asyncio.to_thread(post, "chat-turns/chat:holiday:0/emit", approval)

    # A reader needs no worker and no Restate, only the database. This engine answers nothing.
    store = await open_store(DATABASE)
    reader = ChatTurnEngine(store, produce=lambda turn: None)
    turn = ChatTurnIdentity("", "holiday", "ann", turn_index=0)
    while True:
        try:
            async for lines in reader.read(turn):
                print(lines.decode(), end="", flush=True)
            break
        except RunNotFoundError:
            await asyncio.sleep(0.05)  # No worker has begun it yet.
    await store.close()


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "hello, please approve"))
