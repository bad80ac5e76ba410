"""A picture of the budget: a bar for each bound, which has to end before the line."""

from __future__ import annotations

from html import escape
from typing import Final

from bench.budget import BUDGET, Bound, Measured

_ROW: Final = 22
_LEFT: Final = 470
_WIDTH: Final = 960
_GATE: Final = 120
"""So far from the left end of a bar its bound is."""
MOST: Final = 2.0
"""So many times its bound a bar is long at most: there it is cut."""
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#334155}"
    ".met{fill:#0f766e}.missed{fill:#b45309}.gate{stroke:#64748b}.cut{stroke:#fff;stroke-width:3}"
    ".goal{fill:#0f172a;stroke:#fff}"
    "@media (prefers-color-scheme: dark){text{fill:#cbd5e1}"
    ".met{fill:#2dd4bf}.missed{fill:#f59e0b}.gate{stroke:#cbd5e1}}"
)


def gates(measured: Measured) -> str:
    """Return an SVG picture of the bounds that have a figure."""
    found = [(bound, bound.find(measured)) for bound in BUDGET]
    known = [(bound, each.value) for bound, each in found if each is not None]
    bottom = (len(known) + 1) * _ROW + 4
    title = "How near each figure is to its bound; a dot is its goal"
    parts = [
        _text(0, 14, title),
        _text(_LEFT + _GATE - 18, 14, "bound"),
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
    length = _GATE * min(MOST, _share(bound, value))
    parts = [
        _text(0, top + 14, bound.work.replace("`", "")),
        f'<rect class="{"missed" if is_missed else "met"}" x="{_LEFT}" y="{top + 4}" '
        f'width="{max(length, 1):.1f}" height="{_ROW - 8}" rx="3"/>',
    ]
    parts.append(_text(_LEFT + 2 * _GATE + 12, top + 14, bound.told(value)))
    if _share(bound, value) > MOST:
        # A bar that is cut has an end like the edge of a torn page.
        parts.append(f'<path class="cut" d="M{_LEFT + 2 * _GATE - 8} {top + 2}l4 {_ROW - 4}"/>')
    if bound.goal is not None and bound.goal != bound.line and _share(bound, bound.goal) < MOST:
        goal = _LEFT + _GATE * _share(bound, bound.goal)
        parts.append(f'<circle class="goal" cx="{goal:.1f}" cy="{top + _ROW // 2}" r="3"/>')
    return parts


def _share(bound: Bound, value: float) -> float:
    """Return how much of what is allowed a value uses up; more than 1 is too much."""
    return bound.line / value if bound.at_least else value / bound.line


def _text(x: int, y: int, content: str) -> str:
    return f'<text x="{x}" y="{y}">{escape(content)}</text>'
