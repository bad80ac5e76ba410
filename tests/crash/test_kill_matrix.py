"""The kill matrix: SIGKILL before and after each call that a turn makes of its store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from perdure.store.sql.d1.address import TOKEN_VARIABLE
from tests.crash.conftest import NewUrl
from tests.crash.killing import Point, When
from tests.crash.matrix import Kill, survive, trace
from tests.store.d1_server import DATABASES, TOKEN, D1Server

NewStore = Callable[[], str]

SCHEMES = ("sqlite", "file", "postgresql")
AT_ONCE = 3
"""So many cells at a time; also how many databases the D1 of the tests has."""
POINTS_MIN = 80
"""Deaths on each store, of first processes and of heirs together."""

IN_THE_MIDDLE = Kill("submit", Point("AppendFrames#6", "after"))
"""A death that leaves a recorded answer, a recorded tool and half of a second answer behind."""

SAMPLE: dict[str, tuple[Kill, ...]] = {
    "the claim": (Kill("submit", Point("start_or_resume#1", "after")),),
    "a begin": (Kill("submit", Point("BeginStep#2", "after")),),
    "the first frames": (Kill("submit", Point("AppendFrames#1", "after")),),
    "a result": (Kill("submit", Point("CompleteStep#2", "before")),),
    "the end": (Kill("submit", Point("EndRun#1", "after")),),
    "a hook that was called": (Kill("submit", Point("settle_delivery#1", "before")),),
    "a takeover": (IN_THE_MIDDLE, Kill("recover", Point("Restart#1", "after"))),
}
ELSEWHERE = ("a result", "the end", "a takeover")
CELLS = [("sqlite", name) for name in SAMPLE] + [
    (scheme, name) for scheme in SCHEMES[1:] for name in ELSEWHERE
]


@pytest.mark.parametrize(("scheme", "name"), CELLS)
async def test_a_turn_survives_sigkill_at(
    tmp_path: Path, new_url: NewUrl, scheme: str, name: str
) -> None:
    kills = SAMPLE[name]
    assert await survive(tmp_path / "scene", new_url(scheme), *kills) == len(kills)


def points_of(calls: Sequence[str]) -> list[Point]:
    moments: tuple[When, When] = ("before", "after")
    return [Point(call, when) for call in calls for when in moments]


@pytest.fixture(params=[*SCHEMES, pytest.param("d1", marks=pytest.mark.node)])
def makers(
    request: pytest.FixtureRequest, new_url: NewUrl, monkeypatch: pytest.MonkeyPatch
) -> list[NewStore]:
    """Return as many makers of a fresh store as there may be cells at a time."""
    scheme = str(request.param)
    if scheme != "d1":
        return [partial(new_url, scheme)] * AT_ONCE
    d1: D1Server = request.getfixturevalue("d1")
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)

    def clean(name: str) -> str:
        return d1.url(d1.clean(name))

    return [partial(clean, name) for name in DATABASES[:AT_ONCE]]


@pytest.mark.campaign
async def test_a_turn_survives_sigkill_at_every_call(
    tmp_path: Path, makers: list[NewStore], record_property: Callable[[str, object], None]
) -> None:
    numbers = (tmp_path / str(number) for number in count())
    first = await trace(next(numbers), makers[0](), role="submit")
    heir = await trace(next(numbers), makers[0](), IN_THE_MIDDLE, role="recover")
    cells: list[tuple[Kill, ...]] = [(Kill("submit", point),) for point in points_of(first)]
    cells += [(IN_THE_MIDDLE, Kill("recover", point)) for point in points_of(heir)]
    free: asyncio.Queue[NewStore] = asyncio.Queue()
    for maker in makers:
        free.put_nowait(maker)

    async def one(kills: tuple[Kill, ...]) -> bool:
        fresh = await free.get()
        try:
            return await survive(next(numbers), fresh(), *kills) == len(kills)
        except BaseException as error:
            error.add_note(", then ".join(map(str, kills)))
            raise
        finally:
            free.put_nowait(fresh)

    died = sum(await asyncio.gather(*map(one, cells)))
    record_property("cells", len(cells))
    record_property("deaths", died)
    assert died >= POINTS_MIN, f"only {died} of {len(cells)} points were reached"
