"""The JSON forms of records: how manifests, outcomes and step errors are stored and sent.

A JSON name is the reference's (camelCase); an absent optional value is left out. Reading takes
what either language wrote: unknown members are ignored, and null counts as absent.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Final

from perdure.core.jsonvalue import encode_value, kind_of
from perdure.core.limits import ERROR_TEXT_BYTES_MAX
from perdure.core.records import AgentTaskSpec, JsonValue, RunManifest, RunOutcome, StepError
from perdure.core.wire import to_wire
from perdure.errors import StoreCorruptError, UsageError

_FLAT: Final = frozenset({str, int, float, bool, type(None)})
_PARTS_OF_TASK: Final = AgentTaskSpec._fields.index("inputs")
_NO_PARTS: Final = (None, (), None, None)


def check_manifest(manifest: RunManifest) -> None:
    """Raise UsageError that names the first field of `manifest` that has a wrong type."""
    _expect("manifest", manifest, RunManifest)
    _expect("manifest.project_id", manifest.project_id, str)
    _expect_optional("manifest.scenario_id", manifest.scenario_id, str)
    _expect("manifest.input", manifest.input, Mapping)
    _expect_optional("manifest.tags", manifest.tags, Mapping)
    task = manifest.task
    _expect("manifest.task", task, AgentTaskSpec)
    _expect("manifest.task.id", task.id, str)
    _expect("manifest.task.intent", task.intent, str)
    _expect_optional("manifest.task.domain", task.domain, str)
    _expect_optional("manifest.task.inputs", task.inputs, Mapping)
    _expect("manifest.task.required_knowledge", task.required_knowledge, Sequence)
    _expect_optional("manifest.task.budget", task.budget, Mapping)
    _expect_optional("manifest.task.metadata", task.metadata, Mapping)


def manifest_to_json(manifest: RunManifest) -> dict[str, JsonValue]:
    """Return the whole manifest as `{projectId, scenarioId?, task, input, tags?}`.

    What the task must know may be given as records. Raises UsageError that names a field of a
    wrong type.
    """
    check_manifest(manifest)
    task = manifest.task
    return _known(
        projectId=manifest.project_id,
        scenarioId=manifest.scenario_id,
        task=_known(
            id=task.id,
            intent=task.intent,
            domain=task.domain,
            inputs=_as_dict(task.inputs),
            requiredKnowledge=[to_wire(each) for each in task.required_knowledge],
            budget=_as_dict(task.budget),
            metadata=_as_dict(task.metadata),
        ),
        input=_as_dict(manifest.input),
        tags=_as_dict(manifest.tags),
    )


def manifest_from_json(value: JsonValue) -> RunManifest:
    """Return the manifest of its JSON form; StoreCorruptError if it is none."""
    fields = _Fields(value, "manifest")
    task = _Fields(fields.required("task", dict), "manifest.task")
    return RunManifest(
        project_id=fields.required("projectId", str),
        task=AgentTaskSpec(
            id=task.required("id", str),
            intent=task.required("intent", str),
            domain=task.optional("domain", str),
            inputs=task.optional("inputs", dict),
            required_knowledge=tuple(task.optional("requiredKnowledge", list) or ()),
            budget=task.optional("budget", dict),
            metadata=task.optional("metadata", dict),
        ),
        input=fields.required("input", dict),
        scenario_id=fields.optional("scenarioId", str),
        tags=fields.optional("tags", dict),
    )


def copied_if_flat(manifest: RunManifest) -> RunManifest | None:
    """Return a copy of a manifest that was read, which shares nothing that anybody can change.

    None: it holds lists or objects beside its input, or within it.
    """
    project_id, task, given, scenario_id, tags = manifest
    if tags is not None or task[_PARTS_OF_TASK:] != _NO_PARTS:
        return None
    if not _FLAT.issuperset(map(kind_of, given.values())):
        return None
    return RunManifest(project_id, task, dict(given), scenario_id)


def outcome_text(outcome: RunOutcome) -> str:
    """Return what is stored of an outcome. Raises UsageError, NotSerializableError."""
    return encode_value(outcome_to_json(outcome), name="outcome")


def outcome_to_json(outcome: RunOutcome) -> dict[str, JsonValue]:
    """Return the outcome as `{pass?, score?, notes?, metadata?}`.

    Raises UsageError that names a field of a wrong type.
    """
    _expect_optional("outcome.passed", outcome.passed, bool)
    _expect_optional("outcome.score", outcome.score, int, float)
    _expect_optional("outcome.notes", outcome.notes, str)
    _expect_optional("outcome.metadata", outcome.metadata, Mapping)
    return _known(
        **{"pass": outcome.passed},
        score=outcome.score,
        notes=outcome.notes,
        metadata=_as_dict(outcome.metadata),
    )


def outcome_from_json(value: JsonValue) -> RunOutcome:
    """Return the outcome of its JSON form; StoreCorruptError if it is none."""
    fields = _Fields(value, "outcome")
    return RunOutcome(
        passed=fields.optional("pass", bool),
        score=fields.optional("score", int, float),
        notes=fields.optional("notes", str),
        metadata=fields.optional("metadata", dict),
    )


def step_error_to_json(error: StepError) -> dict[str, JsonValue]:
    """Return the error as `{message, code?, stack?, type?, taken?}`."""
    return _known(**error._asdict())


def step_error_from_json(value: JsonValue) -> StepError:
    """Return the step error of its JSON form; StoreCorruptError if it is none."""
    fields = _Fields(value, "error")
    code = fields.optional("code", str, int, float)
    return StepError(
        message=fields.required("message", str),
        # Errors of Node and of HTTP clients have numbers as codes.
        code=None if code is None else str(code),
        stack=fields.optional("stack", str),
        type=fields.optional("type", str),
        taken=fields.optional("taken", int),
    )


def step_error_of(exception: BaseException) -> StepError:
    """Return what is recorded of a step that raised `exception`.

    `code` is the exception's attribute where that is a str. Message and stack are cut to
    ERROR_TEXT_BYTES_MAX bytes of UTF-8 each: the message at its end, the stack at its begin.
    """
    summary = traceback.TracebackException.from_exception(exception)
    code = getattr(exception, "code", None)
    return StepError(
        message=_head(str(summary)),
        code=code if type(code) is str else None,
        stack=_tail("".join(summary.format())),
        type=type(exception).__qualname__,
    )


def _expect(name: str, value: object, *types: type) -> None:
    if not isinstance(value, types):
        wanted = " or ".join(kind.__name__ for kind in types)
        raise UsageError(f"{name} must be a {wanted}, not {value!r:.60}")


def _expect_optional(name: str, value: object, *types: type) -> None:
    if value is not None:
        _expect(name, value, *types)


def _known(**members: JsonValue) -> dict[str, JsonValue]:
    return {name: value for name, value in members.items() if value is not None}


def _as_dict(value: Mapping[str, JsonValue] | None) -> dict[str, JsonValue] | None:
    return None if value is None else dict(value)


def _head(text: str) -> str:
    data = text.encode("utf-8", "surrogatepass")
    if len(data) <= ERROR_TEXT_BYTES_MAX:
        return text
    return data[: ERROR_TEXT_BYTES_MAX - 3].decode("utf-8", "ignore") + "…"


def _tail(text: str) -> str:
    data = text.encode("utf-8", "surrogatepass")
    if len(data) <= ERROR_TEXT_BYTES_MAX:
        return text
    return "…" + data[3 - ERROR_TEXT_BYTES_MAX :].decode("utf-8", "ignore")


class _Fields:
    """The members of one JSON object, taken by name and type."""

    __slots__ = ("_members", "_name")

    def __init__(self, value: JsonValue, name: str) -> None:
        if not isinstance(value, dict):
            raise StoreCorruptError(f"the stored {name} is not a JSON object")
        self._members: dict[str, JsonValue] = value
        self._name = name

    def optional(self, member: str, *types: type) -> Any:
        value = self._members.get(member)
        if value is None or isinstance(value, types):
            return value
        raise StoreCorruptError(f"the stored {self._name}.{member} is {value!r:.60}")

    def required(self, member: str, *types: type) -> Any:
        value = self._members.get(member)
        if isinstance(value, types):
            return value
        if value is None:
            raise StoreCorruptError(f"the stored {self._name} has no {member}")
        return self.optional(member, *types)
