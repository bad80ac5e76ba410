"""Profiles laid over each other (14.1) and checked (14.3), rule by rule."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from perdure.agent.conformance import (
    ConformanceOptions,
    ConformanceResult,
    assert_profile_conformance,
    check_profile_conformance,
)
from perdure.agent.profile import (
    AgentProfile,
    AgentSubagentProfile,
    ProfilePrompt,
    ProfileResources,
    merge_agent_profiles,
)
from perdure.errors import ProfileConformanceError, ValidationError

REAL: dict[str, Any] = {
    "prompt": {"systemPrompt": "x" * 800},
    "tools": {"search": True},
    "mcp": {"search": {"url": "https://mcp.example"}},
    "subagents": {"legal": {"description": "d" * 40, "prompt": "p" * 100}},
}


def test_14_1_r1_two_absent_profiles_are_none() -> None:
    assert merge_agent_profiles(None, None) is None
    assert merge_agent_profiles(None, {"name": "a"}) == {"name": "a"}
    assert merge_agent_profiles({"name": "a"}, None) == {"name": "a"}


def test_14_1_r1_an_overlay_counts_where_it_says_something() -> None:
    merged = merge_agent_profiles(
        {"name": "a", "version": "1", "own": {"a": 1}},
        {"name": None, "version": "2", "own": {"b": 2}},
    )
    assert merged == {"name": "a", "version": "2", "own": {"b": 2}}


def test_14_1_r2_instructions_and_resource_lists_are_joined() -> None:
    lists = ("files", "tools", "skills", "agents", "commands")
    merged = merge_agent_profiles(
        {
            "prompt": {"instructions": ["a", "b"]},
            "resources": {name: [f"{name}-1"] for name in lists},
        },
        {
            "prompt": {"instructions": ["b"]},
            "resources": {name: [f"{name}-1", f"{name}-2"] for name in lists},
        },
    )
    assert merged == {
        "prompt": {"instructions": ["a", "b", "b"]},
        "resources": {name: [f"{name}-1", f"{name}-1", f"{name}-2"] for name in lists},
    }


def test_14_1_r3_prompts_models_scalars_and_tags_are_replaced() -> None:
    base = {
        "prompt": {"systemPrompt": "old"},
        "resources": {"instructions": "old", "failOnError": True},
        "model": {"default": "m", "small": "s"},
        "tags": ["a"],
        "description": "old",
    }
    overlay = {
        "prompt": {"systemPrompt": "new"},
        "resources": {"instructions": {"kind": "inline"}, "failOnError": False},
        "model": {"default": "n"},
        "tags": ["b"],
        "description": "new",
    }
    assert merge_agent_profiles(base, overlay) == overlay


@pytest.mark.parametrize(
    "name",
    ["permissions", "tools", "mcp", "subagents", "hooks", "modes", "metadata", "extensions"],
)
def test_14_1_r4_objects_by_name_are_merged_one_level_deep(name: str) -> None:
    base = {name: {"kept": {"x": 1}, "both": {"x": 1}, "held": {"x": 1}}}
    overlay = {name: {"both": {"y": 2}, "new": {"y": 2}, "held": None}}
    assert merge_agent_profiles(base, overlay) == {
        name: {"kept": {"x": 1}, "both": {"y": 2}, "held": {"x": 1}, "new": {"y": 2}}
    }


def test_14_1_r5_nothing_given_is_changed_and_nothing_is_left_as_none() -> None:
    base: dict[str, Any] = {"prompt": {"instructions": ["a"]}, "metadata": {"x": None}}
    overlay: dict[str, Any] = {
        "prompt": {"instructions": ["b"], "systemPrompt": None},
        "model": None,
    }
    before = copy.deepcopy((base, overlay))
    merged = merge_agent_profiles(base, overlay)
    assert merged == {"prompt": {"instructions": ["a", "b"]}, "metadata": {}}
    assert merged is not None
    merged["prompt"]["instructions"].append("c")
    assert (base, overlay) == before


def test_14_1_records_and_wire_forms_serve_alike() -> None:
    base = AgentProfile(
        name="a",
        prompt=ProfilePrompt(system_prompt="old", instructions=["one"]),
        subagents={"legal": AgentSubagentProfile(max_steps=3)},
    )
    overlay = AgentProfile(
        prompt=ProfilePrompt(instructions=("two",)), resources=ProfileResources(fail_on_error=False)
    )
    merged = merge_agent_profiles(base, overlay)
    assert merged == {
        "name": "a",
        "prompt": {"systemPrompt": "old", "instructions": ["one", "two"]},
        "subagents": {"legal": {"maxSteps": 3}},
        "resources": {"failOnError": False},
    }


@pytest.mark.parametrize("profile", ["text", 7, {"prompt": "text"}, {"tools": ["bash"]}])
def test_14_1_what_is_no_profile_is_refused(profile: Any) -> None:
    with pytest.raises(ValidationError, match="profile"):
        merge_agent_profiles(profile, None)
    with pytest.raises(ValidationError, match="profile"):
        check_profile_conformance(profile)


# Conformance…


def found(profile: Any, **options: Any) -> list[tuple[str, str, str]]:
    result = check_profile_conformance({**REAL, **profile}, ConformanceOptions(**options))
    issues = [*result.errors, *result.warnings]
    return [(issue.severity, issue.code, issue.path) for issue in issues]


def test_14_3_a_real_profile_is_valid() -> None:
    assert check_profile_conformance(REAL) == ConformanceResult()
    assert assert_profile_conformance(REAL).valid


@pytest.mark.parametrize("prompt", [None, {}, {"systemPrompt": " " * 800 + "x" * 799}])
def test_14_3_a_system_prompt_has_a_length_to_speak_of(prompt: Any) -> None:
    short = [("error", "system-prompt-too-short", "prompt.systemPrompt")]
    assert found({"prompt": prompt}) == short
    assert found({"prompt": {"systemPrompt": "hi"}}, system_prompt_chars_min=2) == []


@pytest.mark.parametrize("name", ["bash", "sh", "python", "node", "curl", "web", "browser"])
@pytest.mark.parametrize("value", [True, False])
def test_14_3_a_capability_of_the_shell_is_no_tool_whatever_it_says(name: str, value: bool) -> None:
    wrong = [("error", "shell-capability-as-tool", f"tools.{name}")]
    assert found({"tools": {name: value}}) == wrong
    assert found({"tools": {name: value}, "mcp": {name: {}}}) == wrong


@pytest.mark.parametrize(
    "server", [None, False, {"enabled": False}, {"disabled": True, "url": "https://x.example"}]
)
def test_14_3_a_tool_is_wired_by_an_enabled_server_of_its_name(server: Any) -> None:
    changed = {"tools": {"search": True}, "mcp": {"search": server}}
    assert found(changed) == [("error", "decorative-tool-without-mcp", "tools.search")]
    assert found(changed, tools_allowed_without_mcp=["search"]) == []
    assert found({**changed, "tools": {"search": False}}) == []


def test_14_3_what_is_a_capability_of_the_shell_may_be_said() -> None:
    changed = {"tools": {"bash": True}, "mcp": {"bash": {}}}
    assert found(changed, known_shell_capabilities=["zsh"]) == []


@pytest.mark.parametrize(
    "metadata", [{"status": "scaffold"}, {"status": "not-implemented"}, {"implemented": False}]
)
def test_14_3_a_scaffold_is_warned_of_or_refused(metadata: Any) -> None:
    legal = {**REAL["subagents"]["legal"], "metadata": metadata}
    changed = {"subagents": {"legal": legal}}
    place = ("subagent-scaffold-shipped", "subagents.legal")
    assert found(changed) == [("warn", *place)]
    assert check_profile_conformance({**REAL, **changed}).valid
    assert found(changed, strict_no_scaffolds=True) == [("error", *place)]


def test_14_3_subagents_say_what_they_are_for_and_how() -> None:
    subagents = {
        "a": {},
        "b": {"description": "  " + "d" * 39, "prompt": "p" * 100},
        "c": {"description": "d" * 40, "prompt": "p" * 99 + " "},
    }
    assert found({"subagents": subagents}) == [
        ("error", "subagent-description-too-short", "subagents.a.description"),
        ("error", "subagent-prompt-too-short", "subagents.a.prompt"),
        ("error", "subagent-description-too-short", "subagents.b.description"),
        ("error", "subagent-prompt-too-short", "subagents.c.prompt"),
    ]


def test_14_3_issues_come_in_the_order_of_the_profile() -> None:
    codes = [
        code
        for _, code, _ in found(
            {
                "prompt": {},
                "tools": {"search": True, "web": True},
                "mcp": {},
                "subagents": {"a": {"metadata": {"implemented": False}}},
            },
            strict_no_scaffolds=True,
        )
    ]
    assert codes == [
        "system-prompt-too-short",
        "decorative-tool-without-mcp",
        "shell-capability-as-tool",
        "subagent-scaffold-shipped",
        "subagent-description-too-short",
        "subagent-prompt-too-short",
    ]


def test_14_3_to_assert_is_to_raise_with_what_was_found() -> None:
    with pytest.raises(ProfileConformanceError, match="systemPrompt has 2 char") as raised:
        assert_profile_conformance(AgentProfile(prompt=ProfilePrompt(system_prompt="hi")))
    assert [issue.code for issue in raised.value.result.errors] == ["system-prompt-too-short"]
    assert isinstance(raised.value, ValidationError)
