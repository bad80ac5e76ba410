"""classify_intent: choose a subagent for a message by its declared keywords and patterns."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard, cast

from perdure.agent.profile import AgentSubagentProfile
from perdure.core.finite import is_finite
from perdure.core.records import JsonValue
from perdure.core.wire import to_wire
from perdure.errors import ValidationError

PATTERN_FACTOR: Final = 1.5
"""A pattern says more than a keyword, by so much."""

Subagent = AgentSubagentProfile | Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class SubagentMatcher:
    """What a subagent listens for; it stands in its `metadata["matchers"]`, alone or in a list.

    Each keyword that is found counts `weight`, each pattern one and a half of it. `patterns` are
    regular expressions; those given as text are read without regard to case. `min_score` is what
    the subagent needs to be chosen (None: what the caller says).

    Raises ValidationError for what would never be found: no list, or a weight that is no number.
    """

    keywords: Sequence[str] = ()
    patterns: Sequence[str | re.Pattern[str]] = ()
    weight: float = 1.0
    min_score: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("keywords", self.keywords), ("patterns", self.patterns)):
            if not isinstance(value, list | tuple):
                raise ValidationError(f"{name} of a matcher must be a list, not {value!r:.60}")
        if not is_finite(self.weight):
            raise ValidationError(f"weight of a matcher must be a number, not {self.weight!r:.40}")


@dataclass(frozen=True, slots=True)
class IntentEvaluation:
    """How one subagent did: what was found, and the score that it needs."""

    keyword_hits: int
    pattern_hits: int
    min_score: float


@dataclass(frozen=True, slots=True)
class ClassifyIntentResult:
    """Which subagent was chosen, as it was given; None if none reached its own `min_score`.

    `ranked` are the ids of all that did, the best first. `margin` is how far the chosen one is
    ahead of the next, and 0 for a tie: a caller may ask the user then.
    """

    id: str | None = None
    subagent: Subagent | None = None
    score: float = 0.0
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    evaluated: Mapping[str, IntentEvaluation] = field(default_factory=dict[str, IntentEvaluation])
    ranked: tuple[str, ...] = ()
    margin: float = 0.0


def classify_intent(
    message: str,
    subagents: Mapping[str, Subagent],
    *,
    default_min_score: float = 1.0,
    skip: Collection[str] = (),
    filter: Callable[[Subagent, str], bool] | None = None,
    whole_words: bool = False,
) -> ClassifyIntentResult:
    """Choose the subagent whose matchers fit `message` best; no model is asked.

    `subagents` are those of a profile, by id. One with several matchers gets the sum of their
    scores, and needs the last `min_score` among them; one without any has the score 0 and is
    never chosen. Of equal scores the first in the mapping wins. What is in `skip`, or refused by
    `filter`, is not evaluated. With `whole_words` a keyword inside another word does not count.

    Raises ValidationError that names the subagent for a matcher that cannot be read.
    """
    if not isinstance(cast("object", subagents), Mapping):
        raise ValidationError(f"subagents must be a mapping by id, not {subagents!r:.60}")
    if isinstance(skip, str):
        raise ValidationError(f"skip must be a list of ids, not the text {skip!r:.60}")
    evaluated: dict[str, IntentEvaluation] = {}
    scores: dict[str, float] = {}
    eligible: list[str] = []
    for id, subagent in subagents.items():
        if id in skip or (filter is not None and not filter(subagent, id)):
            continue
        matchers = [_Matcher(found, id) for found in _declared(subagent, id)]
        hits = [matcher.hits(message, whole_words=whole_words) for matcher in matchers]
        needed = [one.min_score for one in matchers if one.min_score is not None]
        evaluated[id] = IntentEvaluation(
            keyword_hits=sum(keywords for keywords, _ in hits),
            pattern_hits=sum(patterns for _, patterns in hits),
            min_score=needed[-1] if needed else default_min_score,
        )
        scores[id] = sum(map(_Matcher.score, matchers, hits), 0.0)
        if matchers and scores[id] >= evaluated[id].min_score:
            eligible.append(id)
    ranked = sorted(eligible, key=lambda id: -scores[id])
    if not ranked:
        return ClassifyIntentResult(scores=scores, evaluated=evaluated)
    best = ranked[0]
    return ClassifyIntentResult(
        id=best,
        subagent=subagents[best],
        score=scores[best],
        scores=scores,
        evaluated=evaluated,
        ranked=tuple(ranked),
        margin=scores[best] - (scores[ranked[1]] if len(ranked) > 1 else 0.0),
    )


class _Matcher:
    """A matcher as it was read: what to look for, ready to be searched."""

    def __init__(self, declared: Mapping[str, JsonValue], id: str) -> None:
        weight = _number(declared.get("weight"))
        self.weight = 1.0 if weight is None else weight
        self.min_score = _min_score(declared)
        self._keywords = [_keyword(each, id).casefold() for each in _list(declared, "keywords")]
        self._patterns = [_pattern(each, id) for each in _list(declared, "patterns")]

    def hits(self, message: str, *, whole_words: bool) -> tuple[int, int]:
        """Return how many keywords and how many patterns are found, each at most once."""
        folded = message.casefold()
        keywords = [keyword for keyword in self._keywords if keyword]
        if whole_words:
            words = [re.compile(rf"(?<!\w){re.escape(keyword)}(?!\w)") for keyword in keywords]
            keyword_hits = sum(word.search(folded) is not None for word in words)
        else:
            keyword_hits = sum(keyword in folded for keyword in keywords)
        return keyword_hits, sum(each.search(message) is not None for each in self._patterns)

    def score(self, hits: tuple[int, int]) -> float:
        keywords, patterns = hits
        return self.weight * (keywords + PATTERN_FACTOR * patterns)


def _declared(subagent: object, id: str) -> list[Mapping[str, JsonValue]]:
    """Return the matchers of a subagent: what has keywords, patterns or a score."""
    wire = to_wire(subagent)
    if not isinstance(wire, dict):
        raise ValidationError(f"the subagent {id!r} is a {type(subagent).__qualname__}, no profile")
    metadata = cast("Mapping[str, JsonValue]", wire).get("metadata")
    if not isinstance(metadata, dict):
        return []
    members = cast("Mapping[str, JsonValue]", metadata)
    found = members.get("matchers")
    found = members.get("matcher") if found is None else found
    entries = cast("list[object]", found) if isinstance(found, list) else [found]
    objects = [cast("dict[str, JsonValue]", each) for each in entries if isinstance(each, dict)]
    return [
        each
        for each in objects
        if isinstance(each.get("keywords"), list)
        or isinstance(each.get("patterns"), list)
        or _min_score(each) is not None
    ]


def _min_score(declared: Mapping[str, JsonValue]) -> float | None:
    return _number(declared.get("minScore", declared.get("min_score")))


def _number(value: JsonValue) -> float | None:
    return float(value) if is_finite(value) else None


def _list(declared: Mapping[str, JsonValue], name: str) -> Sequence[object]:
    value = declared.get(name)
    return cast("list[object]", value) if isinstance(value, list) else ()


def _keyword(value: object, id: str) -> str:
    if not isinstance(value, str):
        raise ValidationError(f"a keyword of the subagent {id!r} is no text: {value!r:.40}")
    return value


def _pattern(value: object, id: str) -> re.Pattern[str]:
    try:
        if isinstance(value, str):
            return re.compile(value, re.IGNORECASE)
    except re.error as error:
        raise ValidationError(
            f"the pattern {value!r:.60} of the subagent {id!r} cannot be read: {error}"
        ) from error
    if not _is_pattern(value):
        raise ValidationError(f"a pattern of the subagent {id!r} is no text: {value!r:.40}")
    return value


def _is_pattern(value: object) -> TypeGuard[re.Pattern[str]]:
    return isinstance(value, re.Pattern) and isinstance(cast("Any", value).pattern, str)
