"""When a loop stops by itself: it is done, it gets nowhere, or it does the same over and over."""

from __future__ import annotations

import json
from collections.abc import Sequence

from perdure.agent.evals import ControlEvalResult, are_harmless, mean_score
from perdure.agent.steps import ControlStopPolicies, StopDecision
from perdure.core.records import JsonValue


def stop_if_harmless(evals: Sequence[ControlEvalResult]) -> StopDecision:
    """Return the default policy's word: stop, passed, once there are evals and none does harm."""
    if not evals or not are_harmless(evals):
        return StopDecision(stop=False)
    return StopDecision(
        stop=True, passed=True, reason="every check passed or is harmless", score=mean_score(evals)
    )


def fingerprint(value: JsonValue) -> str:
    """Return a text that equal values share: scalars as they are, else JSON with sorted keys."""
    if value is None or isinstance(value, str | bool | int | float):
        return str(value)
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError):
        return str(value)


class Streaks:
    """Counts, over the steps of one loop, repetitions of an action and steps without progress."""

    def __init__(self, policies: ControlStopPolicies) -> None:
        self._policies = policies
        self._state_of = policies.state_fingerprint or fingerprint
        self._action_of = policies.action_fingerprint or fingerprint
        self._last_action: str | None = None
        self._repeated = 0
        self._still = 0

    def repeats(self, action: JsonValue) -> bool:
        """Count the choice of `action`; return whether it was chosen too often in a row."""
        if self._policies.max_repeated_actions is None:
            return False
        action_print = self._action_of(action)
        self._repeated = self._repeated + 1 if action_print == self._last_action else 1
        self._last_action = action_print
        return self._repeated >= self._policies.max_repeated_actions

    def stands_still(
        self,
        before: JsonValue,
        after: JsonValue,
        *,
        evals_before: Sequence[ControlEvalResult],
        evals_after: Sequence[ControlEvalResult],
    ) -> bool:
        """Count a step; return whether too many in a row made no progress."""
        if self._policies.max_no_progress_steps is None:
            return False
        same = self._state_of(before) == self._state_of(after)
        then, now = mean_score(evals_before), mean_score(evals_after)
        moved = then != now and (
            then is None or now is None or abs(now - then) >= self._policies.min_score_delta
        )
        self._still = self._still + 1 if same and not moved else 0
        return self._still >= self._policies.max_no_progress_steps
