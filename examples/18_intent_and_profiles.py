"""Intent and profiles: who should answer, chosen without a model, and is that profile real?."""

from __future__ import annotations

from perdure.agent import (
    AgentProfile,
    AgentSubagentProfile,
    ChatTurnOverlay,
    ProfilePrompt,
    SubagentMatcher,
    check_profile_conformance,
    classify_intent,
    compose_turn_profile,
)

PROFILE = AgentProfile(
    name="front desk",
    prompt=ProfilePrompt(system_prompt="You help people who come to the front desk."),
    tools={"calendar": True, "bash": True},
    subagents={
        "legal": AgentSubagentProfile(
            description="Reads contracts and says what in them is unusual.",
            prompt="Read it clause by clause. Name what is unusual. Never advise anybody to sign.",
            metadata={"matchers": SubagentMatcher(["nda", "contract"], [r"section \d+"])},
        ),
        "billing": AgentSubagentProfile(
            description="Explains invoices.",
            metadata={
                "matchers": SubagentMatcher(["invoice", "section"]),
                "status": "scaffold",
            },
        ),
    },
)


def main() -> None:
    subagents = PROFILE.subagents or {}
    for message in ("Please review the NDA, section 7", "My invoice is wrong", "Good morning"):
        chosen = classify_intent(message, subagents, whole_words=True)
        print(f"{message!r}: {chosen.id} with {chosen.score:g}, ahead by {chosen.margin:g}")

    result = check_profile_conformance(PROFILE)
    for issue in [*result.errors, *result.warnings]:
        print(f"{issue.severity}: {issue.path} {issue.message}")

    overlay = ChatTurnOverlay(prompt_overlay={"instructions": ["The customer's tier is gold."]})
    composed = compose_turn_profile(PROFILE, overlay)
    print("this turn only:", composed["prompt"]["instructions"])
    print(f"valid: {result.valid}, {len(result.errors)} errors, {len(result.warnings)} warning")


if __name__ == "__main__":
    main()
