"""Agent profiles: the record, and one laid over another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from perdure.core.records import JsonValue
from perdure.core.wire import to_wire
from perdure.errors import ValidationError

Wire = Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilePrompt:
    """What an agent is told before anybody asks it something."""

    system_prompt: str | None = None
    instructions: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileModel:
    """Which models an agent uses: `default`, and a `small` one for small work."""

    default: str | None = None
    small: str | None = None
    provider: str | None = None
    metadata: Wire | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileResources:
    """What an agent finds in its place of work; each file is `{path, resource, executable?}`."""

    files: Sequence[Wire] | None = None
    tools: Sequence[JsonValue] | None = None
    skills: Sequence[JsonValue] | None = None
    agents: Sequence[JsonValue] | None = None
    commands: Sequence[JsonValue] | None = None
    instructions: str | Wire | None = None
    fail_on_error: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSubagentProfile:
    """An agent that another one hands work to; `description` says which."""

    description: str | None = None
    prompt: str | None = None
    model: str | None = None
    tools: Mapping[str, bool] | None = None
    permissions: Wire | None = None
    max_steps: int | None = None
    metadata: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentProfile:
    """Who an agent is, and what it may do; nothing of it must be given.

    Wherever a profile is taken, a dict of its wire form (camelCase names) serves as well, and
    keys of it that are not named here are kept.
    """

    name: str | None = None
    description: str | None = None
    version: str | None = None
    tags: Sequence[str] | None = None
    prompt: ProfilePrompt | None = None
    model: ProfileModel | None = None
    permissions: Wire | None = None
    tools: Mapping[str, bool] | None = None
    mcp: Mapping[str, JsonValue] | None = None
    subagents: Mapping[str, AgentSubagentProfile | Wire] | None = None
    resources: ProfileResources | None = None
    hooks: Wire | None = None
    modes: Wire | None = None
    metadata: Wire | None = None
    extensions: Wire | None = None


BY_KEY: Final = (
    "permissions",
    "tools",
    "mcp",
    "subagents",
    "hooks",
    "modes",
    "metadata",
    "extensions",
)
"""The parts of a profile that are objects by names of the user; they are merged name by name."""

JOINED: Final[Mapping[str, Sequence[str]]] = {
    "prompt": ("instructions",),
    "resources": ("files", "tools", "skills", "agents", "commands"),
}
"""The parts that are records, and the lists in each that are joined."""


def merge_agent_profiles(
    base: AgentProfile | Wire | None, overlay: AgentProfile | Wire | None
) -> dict[str, JsonValue] | None:
    """Return `overlay` laid over `base`, as a new profile in wire form; None if both are None.

    What the overlay leaves out, or has as None, stays as in the base. `prompt.instructions` and
    the lists of `resources` are joined, base first. `permissions`, `tools`, `mcp`, `subagents`,
    `hooks`, `modes`, `metadata` and `extensions` are merged name by name, one level deep. Of
    everything else, `model` as a whole included, the overlay's value counts. A part that says
    nothing adds nothing.

    Raises ValidationError for what is no profile.
    """
    if base is None and overlay is None:
        return None
    under, over = wire_profile(base), wire_profile(overlay)
    merged = {**under, **over}
    for name in (*BY_KEY, *JOINED):
        parts = [part for part in (under.get(name), over.get(name)) if part is not None]
        if parts:
            merged[name] = _merged(parts, JOINED.get(name, ()))
            if not merged[name] and name not in under:
                del merged[name]
    return merged


def _merged(parts: Sequence[dict[str, JsonValue]], joined: Sequence[str]) -> dict[str, JsonValue]:
    merged: dict[str, JsonValue] = {}
    for part in parts:
        for key, value in part.items():
            if value is None:
                continue
            earlier = merged.get(key) if key in joined else None
            if isinstance(earlier, list) and isinstance(value, list):
                merged[key] = [*earlier, *value]
            else:
                merged[key] = value
    return merged


def wire_profile(profile: object) -> dict[str, JsonValue]:
    """Return a profile in wire form, without what is None. Raises ValidationError."""
    wire = to_wire({} if profile is None else profile)
    if not isinstance(wire, dict):
        raise ValidationError(f"a profile is an object, not a {type(profile).__qualname__}")
    members = cast("dict[str, JsonValue]", wire)
    for name in (*BY_KEY, *JOINED):
        part = members.get(name)
        if not isinstance(part, dict | None):
            kind = type(part).__qualname__
            raise ValidationError(f"{name} of a profile is an object, not a {kind}")
    return {name: value for name, value in members.items() if value is not None}
