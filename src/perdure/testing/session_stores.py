"""The contract of session stores as a product: every case that every session store must pass.

With pytest, a lab with fresh data for each case:

    @pytest.mark.parametrize("case", SESSION_STORE_CASES, ids=lambda case: case.__name__)
    async def test_my_sessions(case):
        async with new_lab() as lab:
            await case(lab)

Without a test framework: `await session_store_conformance(new_lab)`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from perdure.agent.sessions import ComparingSessionStore
from perdure.testing.cases import agent_sessions, comparing_sessions, sessions_at_once
from perdure.testing.conforming import cases_in, run_cases
from perdure.testing.session_store_lab import NewSessionStoreLab, SessionStoreLab

SessionStoreCase = Callable[[SessionStoreLab], Awaitable[None]]

SESSION_STORE_CASES: Final[tuple[SessionStoreCase, ...]] = (
    *cases_in(agent_sessions),
    *cases_in(sessions_at_once),
)
"""Every case: an async function that takes a SessionStoreLab, named as what it proves."""

COMPARING_SESSION_STORE_CASES: Final[tuple[SessionStoreCase, ...]] = cases_in(comparing_sessions)
"""What a session store must pass that settles races: one that has `put_if`."""


async def session_store_conformance(new_lab: NewSessionStoreLab) -> int:
    """Run every case in a fresh lab, and return how many were run.

    The cases of `put_if` are among them if the store has one. Raises one ExceptionGroup of all
    failures, each with the name of its case as a note.
    """
    async with new_lab() as lab:
        compares = isinstance(await lab.open(), ComparingSessionStore)
    cases = SESSION_STORE_CASES + (COMPARING_SESSION_STORE_CASES if compares else ())
    return await run_cases(cases, new_lab)
