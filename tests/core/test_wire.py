"""Records become JSON under camelCase names, and come back as they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from perdure.agent.steps import ControlRunResult
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.core.secret import Secret
from perdure.core.wire import WIRE, from_wire, to_wire
from perdure.errors import UsageError


@dataclass(frozen=True)
class Leaf:
    leaf_id: str
    passed: bool | None = field(default=None, metadata={WIRE: "pass"})
    weight: float = 1.0


@dataclass(frozen=True)
class Blossom:
    petals: int
    type: Literal["blossom"] = "blossom"


@dataclass(frozen=True)
class Twig:
    type: Literal["twig"] = "twig"


@dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf, ...]
    end: Blossom | Twig
    free_values: Mapping[str, JsonValue] | None = None
    root: Any = None


TREE = Tree((Leaf("a", passed=True), Leaf("b")), Blossom(5), {"snake_key": {"inner_key": None}})


def test_1_1_r1_r3_names_are_camel_case_and_absent_values_are_left_out() -> None:
    assert to_wire(TREE) == {
        "leaves": [{"leafId": "a", "pass": True, "weight": 1.0}, {"leafId": "b", "weight": 1.0}],
        "end": {"petals": 5, "type": "blossom"},
        "freeValues": {"snake_key": {"inner_key": None}},
    }


def test_1_1_r3_the_run_of_a_loop_without_a_trace_is_null() -> None:
    result = ControlRunResult(
        intent="Pay", passed=True, completed=True, reason="done", stopped_by="policy",
        stop_cause="decided",
    )  # fmt: skip
    written: Any = to_wire(result)
    assert written["runId"] is None
    assert "score" not in written
    assert from_wire(ControlRunResult, written) == result


def test_1_1_r4_what_went_out_comes_back_equal() -> None:
    assert from_wire(Tree, to_wire(TREE)) == TREE
    other = Tree((), Twig(), None, root=[1, {"a": 2}])
    assert from_wire(Tree, to_wire(other)) == other


def test_named_tuples_are_records_too() -> None:
    spec = AgentTaskSpec("t", "do it", inputs={"a_b": 1})
    wire = to_wire(spec)
    assert wire == {"id": "t", "intent": "do it", "inputs": {"a_b": 1}, "requiredKnowledge": []}
    assert from_wire(AgentTaskSpec, wire) == spec


def test_1_1_r4_unknown_keys_are_ignored() -> None:
    assert from_wire(Leaf, {"leafId": "a", "colour": "green", "weight": 2}) == Leaf("a", None, 2.0)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"leaves": []}, "Tree has no end"),
        ({"leaves": [{"pass": True}], "end": {"type": "twig"}}, r"Tree.leaves\[0\] has no leafId"),
        ({"leaves": [{"leafId": 7}], "end": {"type": "twig"}}, r"leaves\[0\].leafId must be a str"),
        ({"leaves": {}, "end": {"type": "twig"}}, "Tree.leaves must be a list"),
        ({"leaves": [], "end": {"type": "stone"}}, "end"),
        ([], "Tree must be an object"),
    ],
)
def test_what_does_not_fit_is_named(value: JsonValue, place: str) -> None:
    with pytest.raises(UsageError, match=place):
        from_wire(Tree, value)


def test_a_bool_is_no_number() -> None:
    with pytest.raises(UsageError):
        from_wire(Blossom, {"petals": True, "type": "blossom"})


def test_a_secret_goes_out_redacted() -> None:
    assert to_wire(Tree((), Twig(), {"key": Secret("x")}))["freeValues"] == {"key": "[redacted]"}
