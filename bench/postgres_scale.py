"""What PostgreSQL does for a claim, a list, a sweep and a delivery, however many old runs it has.

    python -m bench.postgres_scale [--runs 10000 1000000]

Fills an empty schema by SQL, and shows for each statement, with the plan that the server settles
on, the pages that it looks at, its time, and the tables that it reads from end to end.
"""

from __future__ import annotations

import argparse

import psycopg

from perdure.store.sql.postgres.address import read_address
from tests.store.postgres_server import running_server
from tests.store.sql.scale import STATEMENTS, Looked, fill, look


def measure(url: str, runs: int) -> dict[str, Looked]:
    address = read_address(url)
    with psycopg.connect(address.conninfo, autocommit=True) as connection:
        fill(connection, address.schema, runs)
        return {name: look(connection, address.schema, name) for name in STATEMENTS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, nargs="+", default=[10_000, 1_000_000])
    options = parser.parse_args()
    with running_server() as server:
        found = [measure(server.new_store(), runs) for runs in options.runs]
    print(f"{'':<24}" + "".join(f"{f'{runs:,} runs':>24}" for runs in options.runs))
    for name in STATEMENTS:
        figures = [each[name] for each in found]
        shown = "".join(f"{one.pages:>11} p {one.ms:>8.2f} ms" for one in figures)
        whole = sorted({table for one in figures for table in one.read_whole})
        print(f"{name:<24}{shown}  {', '.join(whole)}")


if __name__ == "__main__":
    main()
