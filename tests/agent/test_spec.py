"""The specification of a task is checked before anything is done about it (3.1)."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.spec import check_task, requirements_of
from perdure.core.records import AgentTaskSpec
from perdure.errors import UsageError, ValidationError

TASK = AgentTaskSpec("t", "Do it")
COLOUR = KnowledgeRequirement("colour", "the colour")


@pytest.mark.parametrize("name", ["id", "intent"])
@pytest.mark.parametrize("value", ["", " \n", None, 5])
def test_3_1_an_id_and_an_intent_are_texts_that_say_something(name: str, value: Any) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(ValidationError, match=f"task.{name}"):
        check_task(TASK._replace(**given))


@pytest.mark.parametrize("absent", [None, (), []])
def test_3_1_absent_requirements_are_none(absent: Any) -> None:
    assert requirements_of(TASK._replace(required_knowledge=absent)) == ()


@pytest.mark.parametrize(
    ("needed", "culprit"),
    [
        ("colour", "a list of requirements"),
        ({"id": "colour"}, "a list of requirements"),
        ([5], "no requirement"),
        ([COLOUR, COLOUR], "twice"),
        ([{"id": "x", "description": "the x", "importance": "urgent"}], "importance"),
        ([{"id": "", "description": "the x"}], "id of the requirement"),
    ],
)
def test_3_1_what_is_no_list_of_requirements_is_named(needed: Any, culprit: str) -> None:
    with pytest.raises(UsageError, match=culprit):
        requirements_of(TASK._replace(required_knowledge=needed))
