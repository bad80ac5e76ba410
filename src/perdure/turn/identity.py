"""Who a chat turn belongs to, and the run that it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from perdure.core import identity
from perdure.core.records import AgentTaskSpec, JsonValue, RunManifest, RunRecord, SessionKey
from perdure.errors import UsageError
from perdure.turn.attachments import Attachment, attachments_to_json


class Asked(NamedTuple):
    """What a user asks in a turn. None: as in the turn that is answered once more."""

    message: str | None
    model: str | None = None
    attachments: Sequence[Attachment] | None = None


class ChatTurnIdentity(NamedTuple):
    """One turn of one session: turns count from 0, revisions of a turn too.

    `tenant_id` is the workspace, or the user in a product without workspaces; '' is the default
    tenant. `user_id` owns the session from its first turn on.
    """

    tenant_id: str
    session_id: str
    user_id: str
    turn_index: int
    revision: int = 0


def check_identity(turn: ChatTurnIdentity) -> ChatTurnIdentity:
    """Return `turn` if all of its parts are acceptable; UsageError names the one that is not."""
    if not isinstance(cast("object", turn), ChatTurnIdentity):
        raise UsageError(f"the identity must be a ChatTurnIdentity, not {turn!r:.60}")
    identity.check_tenant(turn.tenant_id)
    identity.check_session_id(turn.session_id)
    identity.check_id(turn.user_id, name="user_id")
    identity.check_index(turn.turn_index, name="turn_index")
    identity.check_index(turn.revision, name="revision")
    return turn


def run_id_of(turn: ChatTurnIdentity) -> str:
    """Return the logical id of the run that the turn is."""
    return identity.turn_run_id(turn.session_id, turn.turn_index, turn.revision)


def session_key(turn: ChatTurnIdentity, *, parent: str | None = None) -> SessionKey:
    """Return the turn's place in its session, behind the run `parent` if one is named."""
    return SessionKey(turn.session_id, turn.turn_index, turn.revision, turn.user_id, parent)


def intent_of(turn_index: int) -> str:
    """Return the label of a turn's step 0 (the reference's)."""
    return f"chat:turn-{turn_index}"


def chat_manifest(
    turn: ChatTurnIdentity,
    user_message: str,
    *,
    project_id: str,
    domain: str,
    model: str | None,
    attachments: Sequence[Attachment] = (),
) -> RunManifest:
    """Return the manifest of a turn, which hashes like the reference's."""
    if type(user_message) is not str:
        raise UsageError("the user's message must be a str")
    if model is not None and type(model) is not str:
        raise UsageError("the model must be named by a str, or be None")
    session_id, turn_index = turn.session_id, turn.turn_index
    asked: dict[str, JsonValue] = {"userMessage": user_message, "model": model}
    if attachments:
        asked["attachments"] = attachments_to_json(attachments)
    return RunManifest(
        project_id=project_id,
        scenario_id=session_id,
        task=AgentTaskSpec(
            id=f"{project_id}:chat:{session_id}:{turn_index}",
            intent=f"Run a {domain} chat turn with workspace context.",
            domain=domain,
            metadata={
                "tenantId": turn.tenant_id,
                "sessionId": session_id,
                "turnIndex": turn_index,
                "userId": turn.user_id,
            },
        ),
        input=asked,
        tags={"session_id": session_id, "tenant_id": turn.tenant_id},
    )


def identity_of(run: RunRecord) -> ChatTurnIdentity:
    """Return the identity of a stored turn, as its caller gave it.

    The manifest knows it; a row without one (of a TypeScript worker) has at least its columns.
    """
    metadata = run.manifest.task.metadata if run.manifest is not None else None
    known = metadata or {}
    return ChatTurnIdentity(
        tenant_id=known.get("tenantId", run.tenant),
        session_id=run.session_id or "",
        user_id=run.owner_id or known.get("userId", ""),
        turn_index=run.turn_index or 0,
        revision=run.revision,
    )
