"""Bars for the page: one row for each side, its length the ratio to the floor on a log scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

from bench.suite import FLOOR, OURS, Compared, Figure

_ROW: Final = 22
_LEFT: Final = 110
_WIDTH: Final = 720
_RIGHT: Final = 90
_STYLE: Final = (
    "text{font:13px system-ui,sans-serif;fill:#334155}"
    ".title{font-weight:600}"
    f".{OURS}{{fill:#0f766e}}.{FLOOR}{{fill:#94a3b8}}.other{{fill:#cbd5e1}}"
    "@media (prefers-color-scheme: dark){text{fill:#cbd5e1}"
    f".{OURS}{{fill:#2dd4bf}}.{FLOOR}{{fill:#94a3b8}}.other{{fill:#475569}}}}"
)


def bars(compared: Sequence[Compared]) -> str:
    """Return an SVG picture with a group of bars for each comparison."""
    parts = [_text(0, 14, "How many times the floor each side needs, on a logarithmic scale")]
    top = 8 + _ROW
    longest = max(_times(one, figure) for one in compared for figure in one.figures)
    for one in compared:
        parts.append(_text(0, top + 14, one.comparison.title, "title"))
        top += _ROW
        for figure in one.figures:
            parts += _bar(one, figure, top, longest)
            top += _ROW
        top += 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" role="img" '
        'aria-labelledby="title">\n<title id="title">How many times the floor each side needs'
        f"</title>\n<desc>{escape(_told(compared))}</desc>\n<style>{_STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _told(compared: Sequence[Compared]) -> str:
    return "; ".join(
        f"{one.comparison.title}: "
        + ", ".join(f"{figure.side} {_times(one, figure):.2f}" for figure in one.figures)
        for one in compared
    )


def _times(one: Compared, figure: Figure) -> float:
    """Return how many times the floor's effort a side needs: more is worse, whatever the unit."""
    return 1 / figure.ratio if one.comparison.more_is_better else figure.ratio


def _bar(one: Compared, figure: Figure, top: int, longest: float) -> list[str]:
    times = _times(one, figure)
    full = _WIDTH - _LEFT - _RIGHT
    # The floor has a bar, too: a tenth of the scale stands for one.
    share = 0.1 + 0.9 * max(0.0, math.log(times) / math.log(longest)) if longest > 1 else 0.1
    kind = figure.side if figure.side in (OURS, FLOOR) else "other"
    return [
        _text(8, top + 14, figure.side),
        f'<rect x="{_LEFT}" y="{top + 3}" width="{full * share:.1f}" height="{_ROW - 7}" '
        f'rx="3" class="{kind}"/>',
        _text(_LEFT + full * share + 6, top + 14, f"{_short(times)}×"),
    ]


def _short(times: float) -> str:
    return f"{times:,.0f}" if times >= 100 else f"{times:.1f}" if times >= 10 else f"{times:.2f}"


def _text(x: float, y: float, content: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y}"{mark}>{escape(content)}</text>'
