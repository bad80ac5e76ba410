"""The chat turns of an engine as services of Restate: an object by session, a workflow by turn."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any, Final

from perdure.core import identity as ids
from perdure.core.records import RunRecord
from perdure.engines.hosted_turn import HostedTurns
from perdure.engines.restate.calls import CONFLICT, RestateCalls
from perdure.engines.restate.tasks import RestateHost, emit, refused
from perdure.errors import (
    AttachmentsNotShownError,
    NotSerializableError,
    RunInputMismatchError,
    RunNotFoundError,
    UsageError,
)
from perdure.turn.attachments import attachments_from_json
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.identity import Asked, ChatTurnIdentity, check_identity, run_id_of

try:
    import restate
except ImportError as error:
    raise ImportError("Restate needs its SDK: pip install 'perdure[restate]'") from error

TURN_PATIENCE_MS: Final = 3_600_000
"""A model may say nothing, and a turn ask Restate for nothing, for so long before it suspends."""
_HOPELESS: Final = (
    AttachmentsNotShownError,
    NotSerializableError,
    RunInputMismatchError,
    RunNotFoundError,
    UsageError,
)
"""What no other attempt would mend."""


class RestateSessions:
    """The chat turns of `engine` as two services of Restate, for `restate.app(x.services)`.

    `sessions`, named like the engine, is a virtual object with one key for each session. Of its
    handler `ask` one call runs at a time, so the turns of a session are answered in the order in
    which they were asked. It takes `{"turn_index", "message", "user_id"}` and, where it is needed,
    `"tenant_id"`, `"revision"`, `"model"` and `"attachments"`, and returns `{"run_id", "state",
    "reason"}` once the turn has ended: completed, stopped, failed or parked.

    `turns`, named like the engine with `-turns` behind it, is the workflow that answers one turn.
    Its key is the turn's stored id (`stored_id_of`). Cancelling either invocation stops the turn,
    which keeps its partial answer. The handler `emit` of `turns` takes `{"key", "payload"}` for
    `turn.await_event`, and returns whether it was the first of its key.

    The stream is in the engine's store: read and stop turns there, in any process.
    """

    def __init__(self, engine: ChatTurnEngine) -> None:
        self._engine = engine
        self._hosted = HostedTurns(engine)
        patience = timedelta(milliseconds=TURN_PATIENCE_MS)
        self.sessions = restate.VirtualObject(engine.name, inactivity_timeout=patience)
        self.turns = restate.Workflow(f"{engine.name}-turns", inactivity_timeout=patience)

        # Restate reads the arguments of a handler from its signature.
        async def ask(context: restate.ObjectContext, asked: dict[str, Any]) -> dict[str, Any]:
            turn = _turn_of(context.key(), asked)
            call = {**asked, "session_id": turn.session_id}
            try:
                return await context.workflow_call(run, key=stored_id_of(turn), arg=call)
            except restate.TerminalError as error:
                if error.status_code != CONFLICT:
                    raise
                # Answered before, or cancelled: how it ended is in the store.
                return await context.run_typed("ended", partial(self._ended, turn, asked))

        async def run(context: restate.WorkflowContext, asked: dict[str, Any]) -> dict[str, Any]:
            return await self._answer(context, asked)

        self.sessions.handler("ask")(ask)
        run = self.turns.main("run")(run)
        self.turns.handler("emit")(emit)

    @property
    def services(self) -> tuple[Any, ...]:
        return (self.sessions, self.turns)

    async def _answer(self, context: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
        turn = _turn_of(asked.get("session_id"), asked)
        calls = RestateCalls(context)
        attending = self._attend(turn, asked, RestateHost(calls))
        run = await calls.over(attending, on_cancel=partial(self._engine.stop, turn))
        return _told_of(run)

    async def _ended(self, turn: ChatTurnIdentity, asked: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return _told_of(await self._hosted.ended(turn, _question_of(asked)))
        except _HOPELESS as error:
            raise refused(error) from error

    async def _attend(
        self, turn: ChatTurnIdentity, asked: Mapping[str, Any], host: RestateHost
    ) -> RunRecord:
        try:
            return await self._hosted.attend(turn, _question_of(asked), host)
        except _HOPELESS as error:
            raise refused(error) from error


def stored_id_of(turn: ChatTurnIdentity) -> str:
    """Return the key of the workflow that answers `turn`."""
    return ids.stored_id(turn.tenant_id, run_id_of(turn))


def _turn_of(session_id: object, asked: Mapping[str, Any]) -> ChatTurnIdentity:
    known = {"tenant_id": "", "revision": 0, **asked, "session_id": session_id}
    parts: dict[str, Any] = {name: known.get(name) for name in ChatTurnIdentity._fields}
    try:
        return check_identity(ChatTurnIdentity(**parts))
    except UsageError as error:
        raise refused(error) from error


def _question_of(asked: Mapping[str, Any]) -> Asked:
    attachments = attachments_from_json(asked.get("attachments"))
    return Asked(asked.get("message"), asked.get("model"), attachments)


def _told_of(run: RunRecord) -> dict[str, Any]:
    return {"run_id": run.run_id, "state": run.state, "reason": run.reason}
