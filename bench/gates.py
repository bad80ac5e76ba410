"""A picture of the budget: for each bound a bar, which has to end before the line of its gate."""

from __future__ import annotations

from html import escape
from typing import Final

from bench.budget import BUDGET, Bound, Measured

_ROW: Final = 22
_LEFT: Final = 470
_WIDTH: Final = 720
_GATE: Final = 120
"""So far from the left end of a bar its gate is; twice as far is where it is cut."""
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#334155}"
    ".met{fill:#0f766e}.missed{fill:#b45309}.gate{stroke:#64748b}.goal{fill:#0f172a;stroke:#fff}"
    "@media (prefers-color-scheme: dark){text{fill:#cbd5e1}"
    ".met{fill:#2dd4bf}.missed{fill:#f59e0b}.gate{stroke:#cbd5e1}}"
)


def gates(measured: Measured) -> str:
    """Return an SVG picture of the bounds that have a figure."""
    found = [(bound, bound.find(measured)) for bound in BUDGET]
    known = [(bound, each.value) for bound, each in found if each is not None]
    bottom = (len(known) + 1) * _ROW + 4
    title = "How near each figure is to its gate; a dot is its goal"
    parts = [
        _text(0, 14, title),
        _text(_LEFT + _GATE - 12, 14, "gate"),
        f'<line class="gate" x1="{_LEFT + _GATE}" y1="{_ROW}" x2="{_LEFT + _GATE}" y2="{bottom}"/>',
    ]
    for row, (bound, value) in enumerate(known, 1):
        parts += _bar(bound, value, row * _ROW)
    told = "; ".join(f"{bound.work}: {bound.verdict(value)}" for bound, value in known)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom}" role="img" '
        f'aria-labelledby="title">\n<title id="title">{title}</title>\n'
        f"<desc>{escape(told)}</desc>\n<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _bar(bound: Bound, value: float, top: int) -> list[str]:
    is_missed = "missed" in bound.verdict(value)
    length = _GATE * min(2.0, _share(bound, value))
    parts = [
        _text(0, top + 14, bound.work.replace("`", "")),
        f'<rect class="{"missed" if is_missed else "met"}" x="{_LEFT}" y="{top + 4}" '
        f'width="{max(length, 1):.1f}" height="{_ROW - 8}" rx="3"/>',
    ]
    if bound.gate is not None and bound.goal is not None:
        goal = _LEFT + _GATE * _share(bound, bound.goal)
        parts.append(f'<circle class="goal" cx="{goal:.1f}" cy="{top + _ROW // 2}" r="3"/>')
    return parts


def _share(bound: Bound, value: float) -> float:
    """Return how much of what is allowed a value uses up; more than 1 is too much."""
    allowed = bound.gate if bound.gate is not None else bound.goal
    assert allowed is not None
    return allowed / value if bound.at_least else value / allowed


def _text(x: int, y: int, content: str) -> str:
    return f'<text x="{x}" y="{y}">{escape(content)}</text>'
