"""Attachments: references that are part of a message, from the submit to the model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure.backends.protocol import Prompt
from perdure.core.frames import Frame, text, upstream_end
from perdure.core.limits import ATTACHMENTS_MAX
from perdure.errors import (
    AttachmentsNotShownError,
    NotSerializableError,
    RunInputMismatchError,
    UsageError,
)
from perdure.turn.answering import answer_with, attachment_text, image_part
from perdure.turn.attachments import (
    Attachment,
    attachments_from_json,
    attachments_to_json,
    check_urls,
    checked_schemes,
)
from perdure.turn.identity import chat_manifest
from tests.turn.stage import FAILED, NEXT, TURN, Reader, Script, Stage, words

PLAN = Attachment("file-1", "application/pdf", name="plan.pdf", size_bytes=1_024, sha256="ab")
PHOTO = Attachment("file-2", "image/png", url="https://files.example/2")


class Model:
    """A backend that remembers what it was asked."""

    name = "model"
    model = "m"

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []

    async def aclose(self) -> None:
        """Do nothing: it holds nothing."""

    async def stream(self, prompt: Prompt) -> AsyncIterator[Frame]:
        self.prompts.append(prompt)
        yield text("Seen")
        yield upstream_end("stop")


async def part_of(attachment: Attachment) -> dict[str, Any]:
    return {"type": "file", "file": attachment.id}


def test_what_is_stored_comes_back() -> None:
    stored = attachments_to_json([PLAN, PHOTO])
    assert stored == [
        {
            "id": "file-1",
            "mediaType": "application/pdf",
            "name": "plan.pdf",
            "sizeBytes": 1_024,
            "sha256": "ab",
        },
        {"id": "file-2", "mediaType": "image/png", "url": "https://files.example/2"},
    ]
    assert attachments_from_json(stored) == [PLAN, PHOTO]
    assert attachments_from_json(None) == []


def test_a_turn_without_attachments_has_the_manifest_of_the_reference() -> None:
    made = chat_manifest(TURN, "Hi", project_id="p", domain="chat", model=None)
    assert made.input == {"userMessage": "Hi", "model": None}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, r"attachments\[0\]\.id must be a text"),
        ({"id": "1", "mediaType": ""}, "mediaType must be a text"),
        ({"id": "1", "mediaType": "a/b", "sizeBytes": "1"}, "sizeBytes must be of type int"),
        ({"id": "1", "mediaType": "a/b", "sizeBytes": True}, "sizeBytes must be of type int"),
        ({"id": "1", "mediaType": "a/b", "data": "x"}, "no field 'data'"),
        ({"id": "1", "mediaType": "a/b", "url": "DATA:text/plain,x"}, "carries the file itself"),
        ("file-1", "must be an object"),
    ],
)
def test_what_is_no_reference_is_named(wrong: object, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        attachments_from_json([wrong])


def test_attachments_are_few_and_short() -> None:
    attachments_to_json([PLAN] * ATTACHMENTS_MAX)
    with pytest.raises(UsageError, match="32 attachments at most"):
        attachments_to_json([PLAN] * (ATTACHMENTS_MAX + 1))
    with pytest.raises(NotSerializableError, match=r"attachments\[0\]"):
        attachments_to_json([PLAN._replace(name="x" * 5_000)])


async def test_a_producer_is_handed_attachments_and_those_of_the_history(stage: Stage) -> None:
    script = Script(words("One"), words("Two"))
    engine = await stage.engine(script)
    for turn, attached in ((TURN, [PLAN]), (NEXT, [PHOTO])):
        submitted = await engine.submit(turn, "Look", attachments=attached)
        await Reader().follow(submitted.lines(wire="envelope"))
    assert script.turns[0].attachments == [PLAN]
    assert script.turns[1].attachments == [PHOTO]
    assert script.turns[1].history[0] == {
        "role": "user",
        "content": "Look",
        "attachments": attachments_to_json([PLAN]),
    }


async def test_other_attachments_are_another_message(stage: Stage) -> None:
    engine = await stage.engine(Script(words("One")))
    await engine.submit(TURN, "Look", attachments=[PLAN])
    again = await engine.submit(TURN, "Look", attachments=[PLAN])
    assert not again.created
    for others in ([], [PLAN._replace(sha256="cd")]):
        with pytest.raises(RunInputMismatchError):
            await engine.submit(TURN, "Look", attachments=others)


async def test_a_regenerated_turn_keeps_them_and_an_edited_one_does_not(stage: Stage) -> None:
    script = Script(words("One"))
    engine = await stage.engine(script)
    await Reader().follow(
        (await engine.submit(TURN, "Look", attachments=[PLAN])).lines(wire="envelope")
    )
    for message in (None, "Look again"):
        again = await engine.submit(TURN, message, regenerate=True)
        await Reader().follow(again.lines(wire="envelope"))
    assert [list(turn.attachments) for turn in script.turns] == [[PLAN], [PLAN], []]


async def test_a_model_is_shown_what_is_made_of_them(stage: Stage) -> None:
    model = Model()
    engine = await stage.engine(answer_with(model, attachment_part=part_of))
    for turn, attached in ((TURN, [PLAN]), (NEXT, None)):
        submitted = await engine.submit(turn, "Look", attachments=attached)
        await Reader().follow(submitted.lines(wire="envelope"))
    shown = {
        "role": "user",
        "content": [{"type": "text", "text": "Look"}, {"type": "file", "file": "file-1"}],
    }
    assert model.prompts[0].messages == [shown]
    assert model.prompts[1].messages == [
        shown,
        {"role": "assistant", "content": "Seen"},
        {"role": "user", "content": "Look"},
    ]


async def test_a_message_whose_attachments_no_model_would_see_is_refused(stage: Stage) -> None:
    engine = await stage.engine(answer_with(Model()))
    with pytest.raises(AttachmentsNotShownError, match="attachment_part"):
        await engine.submit(TURN, "Look", attachments=[PLAN])
    assert await engine.store.list_runs() == []


async def test_a_conversation_with_attachments_that_cannot_be_shown_fails_by_name(
    stage: Stage,
) -> None:
    script, model = Script(words("One")), Model()
    first = await stage.engine(script)
    await Reader().follow(
        (await first.submit(TURN, "Look", attachments=[PLAN])).lines(wire="envelope")
    )
    engine = await stage.engine(answer_with(model))
    submitted = await engine.submit(NEXT, "And now?")
    told = b"".join([line async for line in submitted.lines(wire="envelope")]).decode()
    assert "A message has attachments" in told
    assert FAILED in told
    assert model.prompts == []


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        "java\tscript:alert(1)",
        " https://files.example/1",
        "vbscript:x",
        "blob:https://files.example/1",
        "file:///etc/passwd",
        "s3://bucket/1",
        "/files/1",
        "//files.example/1",
        "https:",
        "https:files.example",
        "https:///",
        "https:\\\\files.example",
    ],
)
async def test_an_address_that_nobody_should_open_is_refused(stage: Stage, url: str) -> None:
    engine = await stage.engine(Script(words("One")))
    with pytest.raises(UsageError, match=r"attachments\[1\]\.url"):
        await engine.submit(TURN, "Look", attachments=[PHOTO, PLAN._replace(url=url)])
    assert await engine.store.list_runs() == []


def test_an_application_declares_further_schemes() -> None:
    schemes = checked_schemes(["S3"])
    assert schemes == ("http", "https", "s3")
    check_urls([PHOTO, PLAN, PLAN._replace(url="s3://bucket/1")], schemes=schemes)
    for never in ("javascript", "DATA", "s3:", ""):
        with pytest.raises(UsageError, match="scheme"):
            checked_schemes([never])
    with pytest.raises(UsageError, match="list"):
        checked_schemes("s3")


def test_a_model_is_told_of_a_file_and_shown_an_image() -> None:
    text_of_plan = "[Attachment plan.pdf (application/pdf, 1024 bytes)]"
    assert attachment_text(PLAN) == image_part(PLAN) == {"type": "text", "text": text_of_plan}
    assert image_part(PHOTO) == {"type": "image_url", "image_url": {"url": PHOTO.url}}
    elsewhere = PHOTO._replace(url="s3://b/2")
    told = "[Attachment file-2 (image/png): s3://b/2]"
    assert image_part(elsewhere) == {"type": "text", "text": told}
