"""A session store in use: several handles and writers at once, other tenants, ends of processes."""

from __future__ import annotations

import asyncio
from typing import Final

from perdure.agent.sessions import EventKeepingSessionStore, new_session, touched
from perdure.agent.stream_events import TextDeltaEvent
from perdure.testing.conforming import in_time
from perdure.testing.lab import same
from perdure.testing.session_store_lab import SessionStoreLab, session_in, texts_in

KIND: Final = "demo"
WRITERS: Final = 3
PIECES: Final = 10


async def another_handle_sees_what_is_kept(lab: SessionStoreLab) -> None:
    writer, reader = await lab.open(), await lab.open()
    await reader.get("s")
    await reader.list_events("s")
    session = new_session(KIND, session_id="s")
    await writer.put(session)
    await writer.append_event("s", TextDeltaEvent(text="a"))
    same(await reader.get("s"), session, "the session")
    same(await texts_in(reader, "s"), ["a"], "its events")


async def handles_that_take_turns_keep_the_order(lab: SessionStoreLab) -> None:
    handles = [await lab.open() for _ in range(WRITERS)]
    await handles[0].put(new_session(KIND, session_id="s"))
    expected: list[str] = []
    for number in range(4):
        for name, store in enumerate(handles):
            await _say(store, "s", f"{number}:{name}")
            expected.append(f"{number}:{name}")
        await handles[number % WRITERS].put(new_session(KIND, session_id="s"))
    for name, store in enumerate(handles):
        same(await texts_in(store, "s"), expected, f"the events, as handle {name} sees them")


async def events_of_many_writers_are_all_kept(lab: SessionStoreLab) -> None:
    await (await lab.open()).put(new_session(KIND, session_id="s"))

    async def write(name: int) -> None:
        store = await lab.open()
        for number in range(PIECES):
            await _say(store, "s", f"{name}:{number:02d}")

    await asyncio.gather(*map(write, range(WRITERS)))
    kept = await texts_in(await lab.open(), "s")
    same(len(kept), WRITERS * PIECES, "the number of events")
    for name in range(WRITERS):
        of_one = [text for text in kept if text.startswith(f"{name}:")]
        same(of_one, sorted(set(of_one)), f"the events of writer {name}")


async def to_put_a_session_while_events_come_loses_neither(lab: SessionStoreLab) -> None:
    session = new_session(KIND, session_id="s")
    teller, ender = await lab.open(), await lab.open()
    await teller.put(session)
    last = touched(session, status="completed")

    async def tell() -> None:
        for number in range(PIECES):
            await _say(teller, "s", str(number))

    async def end() -> None:
        for _ in range(PIECES):
            await ender.put(last)

    await asyncio.gather(tell(), end())
    store = await lab.open()
    same(await store.get("s"), last, "the session")
    same(await texts_in(store, "s"), [str(number) for number in range(PIECES)], "its events")


async def writers_of_several_sessions_leave_each_other_alone(lab: SessionStoreLab) -> None:
    ids = [f"s-{name}" for name in range(WRITERS)]
    texts = [str(number) for number in range(PIECES)]

    async def work(id: str) -> None:
        store = await lab.open()
        session = new_session(KIND, session_id=id)
        await store.put(session)
        for text in texts:
            await _say(store, id, text)
        await store.put(touched(session, status="completed"))

    await asyncio.gather(*map(work, ids))
    store = await lab.open()
    for id in ids:
        same((await session_in(store, id)).status, "completed", f"the status of {id}")
        same(await texts_in(store, id), texts, f"the events of {id}")


async def a_write_that_was_cancelled_is_whole_or_absent_and_holds_up_nobody(
    lab: SessionStoreLab,
) -> None:
    store, other = await lab.open(), await lab.open()
    await store.put(new_session(KIND, session_id="s"))
    for rounds in range(4):
        writing = asyncio.ensure_future(_say(store, "s", f"cancelled {rounds}"))
        for _ in range(rounds):
            await asyncio.sleep(0)
        writing.cancel()
        await in_time(asyncio.wait({writing}), "a write that was cancelled")
        for name, each in enumerate((store, other)):
            await in_time(
                _say(each, "s", f"{rounds}:{name}"), "a write behind one that was cut off"
            )
    kept = await texts_in(other, "s")
    whole = [text for text in kept if not text.startswith("cancelled")]
    same(whole, [f"{number}:{name}" for number in range(4) for name in range(2)], "the others")
    same(len(set(kept)), len(kept), "the number of events, each counted once")


async def what_is_kept_is_there_after_a_restart(lab: SessionStoreLab) -> None:
    store = await lab.open()
    session = new_session(KIND, session_id="s", resume_token="token-1", metadata={"n": 1})
    await store.put(session)
    for text in ("a", "b"):
        await _say(store, "s", text)
    if not await lab.restart():
        return
    store = await lab.open()
    same(await store.get("s"), session, "the session after a restart")
    await _say(store, "s", "c")
    same(await texts_in(await lab.open(), "s"), ["a", "b", "c"], "its events after a restart")


async def another_tenant_sees_nothing_of_it(lab: SessionStoreLab) -> None:
    mine, theirs = await lab.open(), await lab.open_elsewhere()
    if theirs is None:
        return
    session = new_session(KIND, session_id="s", metadata={"of": "mine"})
    await mine.put(session)
    await _say(mine, "s", "mine")
    same(await theirs.get("s"), None, "the session, for another tenant")
    same(list(await theirs.list_events("s")), [], "its events, for another tenant")
    other = new_session(KIND, session_id="s", metadata={"of": "theirs"})
    await theirs.put(other)
    await _say(theirs, "s", "theirs")
    same(await mine.get("s"), session, "the session behind one of its name elsewhere")
    same(await texts_in(mine, "s"), ["mine"], "its events behind those of its name elsewhere")
    same(await theirs.get("s"), other, "the session of the other tenant")
    same(await texts_in(theirs, "s"), ["theirs"], "the events of the other tenant")


async def _say(store: EventKeepingSessionStore, id: str, text: str) -> None:
    await store.append_event(id, TextDeltaEvent(text=text))
