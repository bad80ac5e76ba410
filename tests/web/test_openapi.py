"""What the OpenAPI document says is so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from perdure.core.jsonvalue import encode_value
from perdure.turn.wire.codecs import codec_for
from perdure.web import shapes
from perdure.web.openapi import DESCRIPTIONS
from tests.turn.stage import until
from tests.web.asking import TURN, TURNS, halting
from tests.web.routing import document_of, routed

BODY = {"turnIndex": 0, "message": "Hi"}


def facts_of(operation: Any) -> dict[str, Any]:
    return {
        "summary": operation["summary"],
        "in": [f"{each['in']} {each['name']}" for each in operation.get("parameters", [])],
        "out": {
            status: sorted(answer.get("content", {}))
            for status, answer in operation["responses"].items()
        },
    }


def main_facts() -> dict[str, Any]:
    usual = dict.fromkeys(["400", "401", "404", "503", "default"], JSON_ONLY)
    session, turn = ["path session_id"], ["path session_id", "path turn_index"]
    base = "/api/v1/sessions/{session_id}"
    return {
        f"POST {base}/turns": {
            "summary": "Submit a turn, and stream its answer",
            "in": [*session, "query envelope", "query wire"],
            "out": {
                **{"200": STREAMS, "201": STREAMS, **usual},
                **dict.fromkeys(["408", "409", "413", "415", "429"], JSON_ONLY),
            },
        },
        f"GET {base}/turns/{{turn_index}}/stream": {
            "summary": "Stream a turn from behind a cursor",
            "in": [
                *turn,
                *("query revision", "query after", "header Last-Event-ID"),
                *("query envelope", "query wire"),
            ],
            "out": {"200": STREAMS, "204": [], **usual, "410": JSON_ONLY, "429": JSON_ONLY},
        },
        f"GET {base}/turns/{{turn_index}}": {
            "summary": "Look at a turn",
            "in": [*turn, "query revision"],
            "out": {"200": JSON_ONLY, **usual},
        },
        f"POST {base}/turns/{{turn_index}}/stop": {
            "summary": "Stop a turn",
            "in": [*turn, "query revision"],
            "out": {"200": JSON_ONLY, **usual},
        },
        **approval_facts(base, turn, usual),
        f"GET {base}": {
            "summary": "Look at a conversation",
            "in": session,
            "out": {"200": JSON_ONLY, **usual},
        },
        f"DELETE {base}": {
            "summary": "Delete a conversation, with everything of it",
            "in": [*session, "query stop"],
            "out": {"200": JSON_ONLY, **usual, "409": JSON_ONLY},
        },
        "DELETE /api/v1/me": {
            "summary": "Delete every conversation of the caller",
            "in": ["query stop"],
            "out": dict.fromkeys(["200", "400", "401", "409", "503", "default"], JSON_ONLY),
        },
        "GET /api/healthz": {
            "summary": "Is the process alive?",
            "in": [],
            "out": {"200": JSON_ONLY},
        },
        "GET /api/readyz": {
            "summary": "Can it work?",
            "in": [],
            "out": {"200": JSON_ONLY, "503": JSON_ONLY},
        },
    }


def approval_facts(base: str, turn: list[str], usual: dict[str, Any]) -> dict[str, Any]:
    where, asked = f"{base}/turns/{{turn_index}}/approvals", [*turn, "query revision"]
    return {
        f"GET {where}": {
            "summary": "Look at the calls that wait for a human",
            "in": asked,
            "out": {"200": JSON_ONLY, **usual},
        },
        f"POST {where}": {
            "summary": "Decide a call that waits for a human",
            "in": asked,
            "out": {**usual, **dict.fromkeys(["200", "408", "413", "415"], JSON_ONLY)},
        },
    }


JSON_ONLY, STREAMS = ["application/json"], ["application/x-ndjson", "text/event-stream"]


def test_the_document_states_the_main_facts() -> None:
    document = document_of(routed(prefix="/api"))
    facts = {
        f"{method.upper()} {path}": facts_of(operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert facts == main_facts()


def test_the_body_of_a_submit_is_typed_and_answers_are_named() -> None:
    document = document_of(routed())
    submit = document["paths"]["/v1/sessions/{session_id}/turns"]["post"]
    body = submit["requestBody"]["content"]["application/json"]["schema"]
    assert body["title"] == "Submission"
    assert body["required"] == ["turnIndex"]
    assert body["anyOf"][0] == {"required": ["message"]}
    fields = {"turnIndex", "message", "model", "retry", "revision", "regenerate", "busy"}
    fields.add("attachments")
    assert set(body["properties"]) == fields
    schemas = document["components"]["schemas"]
    assert {"Turn", "Session", "Refusal", "Health"} <= set(schemas)
    ids = [
        operation["operationId"]
        for operations in document["paths"].values()
        for operation in operations.values()
    ]
    assert len(set(ids)) == len(ids)
    json.dumps(document)


BODIES = [
    BODY,
    {**BODY, "model": None},
    {**BODY, "model": "m", "retry": True},
    {**BODY, "turnIndex": -1},
    {**BODY, "turnIndex": True},
    {**BODY, "turnIndex": "0"},
    {**BODY, "turnIndex": 0.5},
    {**BODY, "message": ""},
    {**BODY, "message": 1},
    {**BODY, "message": None},
    {**BODY, "model": ""},
    {**BODY, "model": 1},
    {**BODY, "retry": 1},
    {**BODY, "retry": None},
    {**BODY, "more": 1},
    {"message": "Hi"},
    {"turnIndex": 0},
    {**BODY, "revision": 0, "busy": "queue"},
    {**BODY, "revision": -1},
    {**BODY, "revision": "1"},
    {**BODY, "busy": None, "regenerate": False},
    {**BODY, "busy": "wait"},
    {**BODY, "regenerate": 1},
    {"turnIndex": 0, "regenerate": False},
    {**BODY, "regenerate": True, "retry": True},
    {**BODY, "regenerate": True, "revision": 0},
    [],
]


@pytest.mark.parametrize("body", BODIES, ids=str)
async def test_the_type_of_the_body_accepts_what_the_service_accepts(body: Any) -> None:
    answer = await routed().ask("POST", TURNS, send=body)
    assert answer.status in (201, 400)
    if answer.status == 201:
        shapes.Submission.model_validate(body)
    else:
        with pytest.raises(ValidationError):
            shapes.Submission.model_validate(body)


async def test_every_answer_is_of_the_type_that_the_document_names() -> None:
    service = routed()
    await service.submit()
    await service.submit(index=1)
    for shape, target in (
        (shapes.Turn, TURN),
        (shapes.Session, "/v1/sessions/s"),
        (shapes.Health, "/readyz"),
        (shapes.Refusal, f"{TURNS}/7"),
    ):
        kind: type[BaseModel] = shape
        kind.model_validate_json((await service.ask("GET", target)).body)


async def test_the_session_of_a_live_turn_is_of_its_type_too() -> None:
    go_on = asyncio.Event()
    service = routed(halting(go_on))
    reading = asyncio.create_task(service.submit())
    await until(lambda: service.script.calls)
    answer = await service.ask("GET", "/v1/sessions/s")
    assert shapes.Session.model_validate_json(answer.body).inFlight is not None
    shapes.Turn.model_validate_json((await service.ask("GET", TURN)).body)
    go_on.set()
    await reading


@pytest.mark.parametrize("shape", [shapes.Submission, shapes.Turn, shapes.Session])
def test_the_examples_are_of_their_types(shape: type[BaseModel]) -> None:
    shape.model_validate_json(json.dumps(shape.model_json_schema()["example"]))


def test_the_examples_of_streams_are_lines_of_their_wires() -> None:
    content: Mapping[str, Any] = DESCRIPTIONS["stream"].responses[200]["content"]
    examples = {
        name: example["value"]
        for media_type in content.values()
        for name, example in media_type["examples"].items()
    }
    assert set(examples) == {"plain", "envelope", "sse"}
    event = json.loads(examples["plain"])
    cursor = json.loads(examples["envelope"].splitlines()[0])["id"]
    assert encode_value(event, name="event") + "\n" == examples["plain"]
    for name in ("envelope", "sse"):
        codec = codec_for(name)
        assert codec.content_type in content
        assert examples[name].startswith(f'{{"id":"{cursor}"' if name != "sse" else f"id: {cursor}")
