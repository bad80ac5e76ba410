"""Checking that an agent's profile is real: prompts to speak of, tools that are wired."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

from perdure.agent.profile import AgentProfile, wire_profile
from perdure.core.records import JsonValue
from perdure.errors import ProfileConformanceError

Wire = Mapping[str, JsonValue]

SHELL_CAPABILITIES: Final = frozenset(
    {"bash", "sh", "python", "node", "curl", "web", "browser", "shell"}
)
SYSTEM_PROMPT_CHARS_MIN: Final = 800
DESCRIPTION_CHARS_MIN: Final = 40
PROMPT_CHARS_MIN: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceOptions:
    """What is asked of a profile.

    `known_shell_capabilities` are what a shell has anyway, so they are no tools.
    `strict_no_scaffolds` makes an error of a subagent that is not implemented.
    `tools_allowed_without_mcp` are tools that something else than an MCP server provides.
    """

    known_shell_capabilities: Collection[str] = SHELL_CAPABILITIES
    strict_no_scaffolds: bool = False
    tools_allowed_without_mcp: Collection[str] = ()
    system_prompt_chars_min: int = SYSTEM_PROMPT_CHARS_MIN


@dataclass(frozen=True, slots=True)
class ConformanceIssue:
    """One thing that is wrong with a profile: a stable code, where it is, and words for people."""

    severity: Literal["error", "warn"]
    code: str
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class ConformanceResult:
    """What a check of a profile found, in the order of the profile; warnings leave it valid."""

    errors: tuple[ConformanceIssue, ...] = ()
    warnings: tuple[ConformanceIssue, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether there are no errors."""
        return not self.errors


def check_profile_conformance(
    profile: AgentProfile | Wire, options: ConformanceOptions | None = None
) -> ConformanceResult:
    """Return what keeps a profile from being real: for tests, and for a start that would lie.

    A system prompt, and the description and prompt of each subagent, must have a length to speak
    of. A tool must be wired by an enabled `mcp` entry of its name, or be allowed without, and a
    capability of the shell is no tool. A subagent that says it is a scaffold is warned of.

    Raises ValidationError for what is no profile.
    """
    asked = options or ConformanceOptions()
    known = wire_profile(profile)
    issues = [
        *_prompt_issues(known, asked.system_prompt_chars_min),
        *_tool_issues(known, asked),
        *_scaffold_issues(known, strict=asked.strict_no_scaffolds),
        *_subagent_issues(known),
    ]
    return ConformanceResult(
        errors=tuple(issue for issue in issues if issue.severity == "error"),
        warnings=tuple(issue for issue in issues if issue.severity == "warn"),
    )


def assert_profile_conformance(
    profile: AgentProfile | Wire, options: ConformanceOptions | None = None
) -> ConformanceResult:
    """Check like `check_profile_conformance`, and return the result of a valid profile.

    Raises ProfileConformanceError, whose `result` is what was found, for any other.
    """
    result = check_profile_conformance(profile, options)
    if not result.valid:
        told = "; ".join(f"{issue.path} {issue.message}" for issue in result.errors)
        raise ProfileConformanceError(f"the profile is not real: {told}", result=result)
    return result


def _prompt_issues(profile: Wire, chars_min: int) -> Iterator[ConformanceIssue]:
    yield from _too_short(
        _object(profile.get("prompt")).get("systemPrompt"),
        chars_min,
        code="system-prompt-too-short",
        path="prompt.systemPrompt",
    )


def _tool_issues(profile: Wire, options: ConformanceOptions) -> Iterator[ConformanceIssue]:
    servers = _object(profile.get("mcp"))
    for name, value in _object(profile.get("tools")).items():
        path = f"tools.{name}"
        if name in options.known_shell_capabilities:
            yield _error("shell-capability-as-tool", path, "is a capability of the shell, no tool")
        elif (
            name not in options.tools_allowed_without_mcp
            and value is not False
            and not _is_wired(servers.get(name))
        ):
            yield _error(
                "decorative-tool-without-mcp", path, "has no enabled MCP server of its name"
            )


def _is_wired(server: JsonValue) -> bool:
    if isinstance(server, Mapping):
        members = cast("Wire", server)
        return members.get("enabled") is not False and members.get("disabled") is not True
    return server is not None and server is not False


def _scaffold_issues(profile: Wire, *, strict: bool) -> Iterator[ConformanceIssue]:
    for id, subagent in _object(profile.get("subagents")).items():
        metadata = _object(_object(subagent).get("metadata"))
        is_scaffold = metadata.get("status") in ("scaffold", "not-implemented")
        if is_scaffold or metadata.get("implemented") is False:
            yield ConformanceIssue(
                "error" if strict else "warn",
                "subagent-scaffold-shipped",
                f"subagents.{id}",
                "says of itself that it is not implemented",
            )


def _subagent_issues(profile: Wire) -> Iterator[ConformanceIssue]:
    for id, subagent in _object(profile.get("subagents")).items():
        for name, chars_min in (
            ("description", DESCRIPTION_CHARS_MIN),
            ("prompt", PROMPT_CHARS_MIN),
        ):
            yield from _too_short(
                _object(subagent).get(name),
                chars_min,
                code=f"subagent-{name}-too-short",
                path=f"subagents.{id}.{name}",
            )


def _too_short(
    value: JsonValue, chars_min: int, *, code: str, path: str
) -> Iterator[ConformanceIssue]:
    length = len(value.strip()) if isinstance(value, str) else 0
    if length < chars_min:
        yield _error(code, path, f"has {length} characters, it needs {chars_min}")


def _object(value: JsonValue) -> Wire:
    return cast("Wire", value) if isinstance(value, Mapping) else {}


def _error(code: str, path: str, message: str) -> ConformanceIssue:
    return ConformanceIssue("error", code, path, message)
