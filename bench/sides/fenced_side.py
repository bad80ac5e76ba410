"""The floor of our own promise: leases, fences and the whole journal, by hand and nothing else."""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.sides import floor_side
from bench.sides.asked import Asked, answer
from bench.sides.floor_side import AnyFloor


async def opened(asked: Asked) -> AnyFloor:
    # The driver is a package of its own, which only its store needs.
    if asked.store == "postgres":
        from bench.fenced_postgres import FencedPostgres

        return await FencedPostgres.open(asked.place, synchronous=asked.durability)
    from bench.fenced_sqlite import FencedSqlite

    durability: Any = asked.durability
    return FencedSqlite(asked.file("fenced.db"), synchronous=durability)


if __name__ == "__main__":
    works = {"steps": floor_side.steps, "runs": floor_side.runs}
    answer({name: partial(work, open_floor=opened) for name, work in works.items()})
