"""How a control loop ends: the words for each cause, and the exception that carries them out."""

from __future__ import annotations

from dataclasses import dataclass

from perdure.agent.calls import Cut
from perdure.agent.steps import StopCause, StoppedBy
from perdure.errors import DurableRunError, StepFailedError, StoreError


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a loop ended; it is over because somebody said so, or because it could not go on."""

    stopped_by: StoppedBy
    cause: StopCause
    reason: str
    score: float | None = None
    failure_class: str | None = None
    passed: bool = False


class Ended(Exception):
    """Leaves a loop from wherever it is; it does not get out of `ControlLoop.run`."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


def cut_off(cut: Cut) -> Ended:
    """Return the end of a loop whose caller has lost interest, or whose time is up."""
    if cut == "cancelled":
        return Ended(Ending("abort", "cancelled", "the task was cancelled", None, "cancelled"))
    return Ended(Ending("budget", "wall_time", "the time is used up", None, "timeout"))


def ends_only_the_attempt(error: Exception) -> bool:
    """Return whether `error` ends only this attempt at a durable task, not the task."""
    if isinstance(error, StepFailedError):
        return False
    return isinstance(error, DurableRunError | StoreError)


def failed(reason: str) -> Ended:
    """Return the end of a loop that a failure broke off."""
    return Ended(Ending("runtime-error", "error", reason, None, "unknown"))
