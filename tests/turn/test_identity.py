"""The run that a turn is: ids, hashes and manifests as the reference has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perdure.core import identity as ids
from perdure.core.recordjson import manifest_to_json
from perdure.core.records import SessionKey
from perdure.errors import UsageError
from perdure.turn.identity import (
    ChatTurnIdentity,
    chat_manifest,
    check_identity,
    identity_of,
    intent_of,
    run_id_of,
    session_key,
)
from tests.turn.stage import TURN, Stage

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "core" / "vectors.json").read_text("utf-8")
)
CHATS = [vector for vector in VECTORS if "chat" in vector]


@pytest.mark.parametrize("vector", CHATS, ids=lambda vector: vector["name"])
def test_a_turn_is_the_run_that_the_reference_makes_of_it(vector: dict[str, Any]) -> None:
    chat = vector["chat"]
    turn = ChatTurnIdentity(
        chat["identity"]["tenantId"],
        chat["identity"]["sessionId"],
        chat["identity"]["userId"],
        chat["identity"]["turnIndex"],
    )
    manifest = chat_manifest(
        turn,
        chat["userMessage"],
        project_id=chat["projectId"],
        domain=chat["domain"],
        model=chat["model"],
    )
    assert run_id_of(turn) == chat["runId"]
    assert intent_of(turn.turn_index) == chat["stepIntent"]
    assert ids.canonical_hash(manifest.input) == chat["inputHash"]
    assert ids.manifest_hash(manifest) == vector["sha256"]
    told = manifest_to_json(manifest)
    metadata = told["task"]["metadata"]
    assert metadata.pop("userId") == turn.user_id
    assert told == vector["manifest"]


def test_there_are_vectors() -> None:
    assert len(CHATS) >= 3


def test_a_revision_is_a_run_of_its_own_with_the_same_hash() -> None:
    again = TURN._replace(revision=2)
    assert run_id_of(again) == "chat:s:0~2"
    assert session_key(again) == SessionKey("s", 0, 2, owner_id="ann")


@pytest.mark.parametrize(
    ("turn", "named"),
    [
        (TURN._replace(tenant_id="a\n"), "tenant"),
        (TURN._replace(session_id=""), "session"),
        (TURN._replace(session_id="a\0"), "session"),
        (TURN._replace(user_id=""), "user_id"),
        (TURN._replace(turn_index=-1), "turn_index"),
        (TURN._replace(turn_index=True), "turn_index"),
        (TURN._replace(turn_index="0"), "turn_index"),  # type: ignore[arg-type] # from outside
        (TURN._replace(revision=2**60), "revision"),
    ],
)
def test_a_part_that_is_not_acceptable_is_named(turn: ChatTurnIdentity, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        check_identity(turn)


@pytest.mark.parametrize(("message", "model"), [(7, None), (None, None), ("Hi", 7)])
def test_a_message_and_a_model_are_text(message: Any, model: Any) -> None:
    with pytest.raises(UsageError, match="must be"):
        chat_manifest(TURN, message, project_id="p", domain="d", model=model)


async def test_a_stored_turn_knows_whose_it_is(stage: Stage) -> None:
    turn = ChatTurnIdentity("acme", "s:1", "ann", 3)
    engine = await stage.engine()
    submitted = await engine.submit(turn, "Hi")
    assert identity_of(submitted.run) == turn
    assert identity_of(await stage.run(turn)) == turn
