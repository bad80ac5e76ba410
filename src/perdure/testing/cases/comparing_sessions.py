"""What `put_if` of a session store promises: of all who begin or resume a session, one wins."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace
from typing import Any, Final

from perdure.agent.sessions import RuntimeSession, new_session, touched
from perdure.agent.stream_events import TextDeltaEvent
from perdure.core.secret import Secret
from perdure.testing.lab import same
from perdure.testing.session_store_lab import SessionStoreLab

KIND: Final = "demo"
MOMENT: Final = "2026-05-10T00:00:00.000Z"
RIVALS: Final = 4


async def a_free_id_is_taken_once(lab: SessionStoreLab) -> None:
    store = await _comparing(lab)
    first = new_session(KIND, session_id="s", metadata={"n": 1})
    same(await store.put_if(first, None), True, "what put_if says of a free id")
    again = new_session(KIND, session_id="s", metadata={"n": 2})
    same(await store.put_if(again, None), False, "what it says of one that is taken")
    same(await store.get("s"), first, "the session")


async def only_what_was_expected_is_replaced(lab: SessionStoreLab) -> None:
    store = await _comparing(lab)
    first = new_session(KIND, session_id="s", resume_token="token")
    await store.put(first)
    last = touched(first, status="completed")
    same(await store.put_if(last, first), True, "what put_if says of what was expected")
    same(await store.get("s"), last, "the session")
    same(await store.put_if(touched(last, status="active"), first), False, "of what has changed")
    same(await store.get("s"), last, "the session behind a refusal")


async def every_part_of_a_session_is_compared(lab: SessionStoreLab) -> None:
    store = await _comparing(lab)
    kept = new_session(KIND, session_id="s", resume_token="token", metadata={"n": [1]})
    await store.put(kept)
    others = (
        replace(kept, backend="another"),
        replace(kept, status="failed"),
        replace(kept, created_at=MOMENT),
        replace(kept, updated_at=MOMENT),
        replace(kept, resume_token=Secret("another")),
        replace(kept, resume_token=None),
        replace(kept, metadata={"n": [2]}),
        replace(kept, metadata=None),
    )
    for other in others:
        differing = next(
            field.name
            for field in fields(RuntimeSession)
            if getattr(other, field.name) != getattr(kept, field.name)
        )
        taken = await store.put_if(touched(kept, status="completed"), other)
        same(taken, False, f"what put_if says where the {differing} is another than expected")
    same(await store.get("s"), kept, "the session behind all refusals")


async def what_is_not_there_is_not_replaced(lab: SessionStoreLab) -> None:
    store = await _comparing(lab)
    session = new_session(KIND, session_id="s")
    same(await store.put_if(session, session), False, "what put_if says of an unknown session")
    same(await store.get("s"), None, "the session")


async def another_handle_sees_who_has_won(lab: SessionStoreLab) -> None:
    one, other = await _comparing(lab), await _comparing(lab)
    first = new_session(KIND, session_id="s")
    await one.put(first)
    same(await other.get("s"), first, "the session")
    second = touched(first, status="completed")
    same(await one.put_if(second, first), True, "what put_if says of the first change")
    third = touched(first, status="failed")
    same(await other.put_if(third, first), False, "what it says of one that comes late")
    same(await other.get("s"), second, "the session")


async def to_replace_a_session_keeps_its_events(lab: SessionStoreLab) -> None:
    store = await _comparing(lab)
    first = new_session(KIND, session_id="s")
    await store.put(first)
    await store.append_event("s", TextDeltaEvent(text="kept"))
    same(await store.put_if(touched(first, status="completed"), first), True, "put_if")
    same(len(await store.list_events("s")), 1, "the number of events")


async def of_all_who_begin_a_session_at_once_one_wins(lab: SessionStoreLab) -> None:
    async def begin(number: int) -> Any:
        store = await _comparing(lab)
        session = new_session(KIND, session_id="s", metadata={"n": number})
        return session if await store.put_if(session, None) else None

    begun = await asyncio.gather(*map(begin, range(RIVALS)))
    winners = [session for session in begun if session is not None]
    same(len(winners), 1, "the number of winners")
    same(await (await lab.open()).get("s"), winners[0], "the session")


async def of_all_who_resume_a_session_at_once_one_wins(lab: SessionStoreLab) -> None:
    first = new_session(KIND, session_id="s")
    await (await lab.open()).put(first)

    async def resume(number: int) -> bool:
        store = await _comparing(lab)
        return bool(await store.put_if(new_session(f"{KIND}-{number}", session_id="s"), first))

    won = await asyncio.gather(*map(resume, range(RIVALS)))
    same(won.count(True), 1, "the number of winners")


async def _comparing(lab: SessionStoreLab) -> Any:
    return await lab.open()
