"""The specification of a task: checked, its requirements read, and made the manifest of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from perdure.agent.knowledge import KnowledgeRequirement
from perdure.core.records import AgentTaskSpec, JsonValue, RunManifest
from perdure.core.wire import from_wire, to_wire
from perdure.errors import ValidationError


def check_task(task: AgentTaskSpec) -> None:
    """Raise ValidationError for what is no task, and for one whose id or intent is no text."""
    if not isinstance(cast("object", task), AgentTaskSpec):
        raise ValidationError(f"task must be an AgentTaskSpec, not {task!r:.60}")
    for name, value in (("task.id", task.id), ("task.intent", task.intent)):
        if not isinstance(cast("object", value), str):
            raise ValidationError(f"{name} must be a text, not {value!r:.60}")
        if not value.strip():
            raise ValidationError(f"{name} must not be empty")


def requirements_of(task: AgentTaskSpec) -> tuple[KnowledgeRequirement, ...]:
    """Return what the task needs to know; a requirement may be given in wire form.

    Raises ValidationError for what is neither, and for an id that appears twice; UsageError for
    a wire form that does not fit.
    """
    found: dict[str, KnowledgeRequirement] = {}
    needed = cast("object", task.required_knowledge)
    if not isinstance(needed, Sequence | None) or isinstance(needed, str):
        raise ValidationError(
            f"task.required_knowledge must be a list of requirements, not {needed!r:.60}"
        )
    for each in task.required_knowledge or ():
        requirement = _requirement(each)
        if requirement.id in found:
            raise ValidationError(
                f"task.required_knowledge has the id {requirement.id!r:.60} twice"
            )
        found[requirement.id] = requirement
    return tuple(found.values())


def _requirement(value: object) -> KnowledgeRequirement:
    if isinstance(value, KnowledgeRequirement):
        return value
    if not isinstance(value, Mapping):
        raise ValidationError(f"task.required_knowledge has {value!r:.60}, which is no requirement")
    return from_wire(KnowledgeRequirement, dict(cast("Mapping[str, JsonValue]", value)))


def manifest_of(
    task: AgentTaskSpec,
    *,
    project_id: str,
    scenario_id: str | None,
    variant_id: str | None = None,
) -> RunManifest:
    """Return the manifest of the durable run of `task`; it recognises the task and its inputs.

    The variant is a tag of the run, by which it is not recognised.
    """
    inputs = dict(task.inputs or {})
    needed = [to_wire(each) for each in requirements_of(task)]
    return RunManifest(
        project_id=project_id,
        task=task._replace(required_knowledge=needed),
        input=inputs,
        scenario_id=scenario_id or task.id,
        tags=None if variant_id is None else {"variantId": variant_id},
    )
