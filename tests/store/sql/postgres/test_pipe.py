"""The pipe: what libpq does with texts that are long, odd or many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest

from perdure.errors import LeaseLostError, StoreUnavailableError, UsageError
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.store.sql.postgres.pipe import Outcome, Pipe, Sent
from perdure.testing.samples import completed, hold
from tests.store.sql.outsider import end_connections, execute

LONG = "x" * 1_000_000
MANY = 12


async def test_more_than_a_socket_takes_at_once_arrives_whole(store: RunStore) -> None:
    leases = [await hold(store, f"run-{number}") for number in range(MANY)]
    await asyncio.gather(*(store.write(lease, completed(0, LONG)) for lease in leases))
    for number in range(MANY):
        assert (await store.read_steps(f"run-{number}"))[0].result == LONG


async def test_a_zero_in_a_text_is_refused_and_cuts_nothing_off(store: RunStore) -> None:
    lease = await hold(store)
    cut = lease._replace(token=f"{lease.token}\0more")
    with pytest.raises(UsageError, match="cannot be stored"):
        await store.write(cut, completed(0, "x"))
    assert await store.read_steps("run") == []


async def test_a_bad_value_in_a_shared_transaction_costs_the_others_nothing(
    store: RunStore,
) -> None:
    leases = [await hold(store, f"run-{number}") for number in range(4)]
    bad = leases[2]._replace(token="\ud800")
    answers = await asyncio.gather(
        *(store.write(lease, completed(0, "x")) for lease in [*leases[:2], bad, leases[3]]),
        return_exceptions=True,
    )
    assert [type(one) for one in answers if isinstance(one, Exception)] == [UsageError]
    for number in (0, 1, 3):
        assert len(await store.read_steps(f"run-{number}")) == 1


@pytest.mark.parametrize("pooled", ["", "&pooled=1"])
async def test_a_lost_lease_leaves_the_connection_fit_for_the_next(
    store: RunStore, url: str, pooled: str
) -> None:
    lease = await hold(store)
    handle = await open_store(f"{url}{pooled}")
    for position in range(3):
        with pytest.raises(LeaseLostError):
            await handle.write(lease._replace(token="another"), completed(position, "lost"))
        await handle.write(lease, completed(position, "whole"))
    assert [step.result for step in await handle.read_steps("run")] == ["whole"] * 3
    await handle.close()


async def test_a_connection_that_ends_while_nothing_is_asked_is_not_asked_any_more(
    store: RunStore, url: str
) -> None:
    lease = await hold(store)
    await store.write(lease, completed(0, "x"))
    await end_connections(url)
    # The loop hears of it before it is asked to write.
    await asyncio.sleep(0.1)
    await store.write(lease, completed(1, "y"))
    assert len(await store.read_steps("run")) == 2


async def test_a_connection_that_ends_under_a_write_is_told_of_as_lost(
    store: RunStore, url: str
) -> None:
    leases = [await hold(store, f"run-{number}") for number in range(MANY)]
    writes = [asyncio.ensure_future(store.write(lease, completed(0, LONG))) for lease in leases]
    await asyncio.sleep(0)
    await end_connections(url)
    for answer in await asyncio.gather(*writes, return_exceptions=True):
        assert not isinstance(answer, BaseException) or isinstance(answer, StoreUnavailableError)
    for lease in leases:
        await store.write(lease, completed(0, LONG))


# What is prepared ahead.

READY = Sent(b"ready!", b"SELECT $1::bigint + 1")
BROKEN = Sent(b"broken", b"SELECT nothing FROM nowhere")
PREPARED = Sent(b"", b"SELECT name FROM pg_prepared_statements WHERE name <> '' ORDER BY name")
Opened = Callable[[list[Sent]], Pipe]


@pytest.fixture
async def opened(url: str) -> AsyncIterator[Opened]:
    """Open the pipe of a connection with what is expected of it."""
    connection = await psycopg.AsyncConnection.connect(url.partition("?")[0], autocommit=True)
    pipes: list[Pipe] = []

    def open_pipe(expected: list[Sent]) -> Pipe:
        pipes.append(Pipe(connection, prepares=True, expected=expected))
        return pipes[0]

    yield open_pipe
    await pipes[0].close()


async def ask(pipe: Pipe, *statements: Sent) -> Outcome:
    over: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    pipe.send(statements, over.set_result)
    return await over


async def test_what_is_expected_is_prepared_before_it_is_sent(opened: Opened) -> None:
    pipe = opened([READY])
    assert await ask(pipe, PREPARED) == [[("ready!",)]]
    for number in range(3):
        assert await ask(pipe, READY._replace(values=[b"%d" % number])) == [[(number + 1,)]]


async def test_a_segment_that_is_sent_while_others_are_prepared_is_answered_by_itself(
    opened: Opened,
) -> None:
    # Nothing has been read from the server when it is sent.
    answer = await ask(opened([READY]), READY._replace(values=[b"1"]), PREPARED)
    assert answer == [[(2,)], [("ready!",)]]


async def test_what_cannot_be_prepared_fails_nobody_but_who_sends_it(opened: Opened) -> None:
    pipe = opened([BROKEN, READY])
    assert await ask(pipe, READY._replace(values=[b"1"])) == [[(2,)]]
    assert isinstance(await ask(pipe, BROKEN), psycopg.errors.UndefinedTable)
    assert await ask(pipe, READY._replace(values=[b"2"])) == [[(3,)]]


async def test_a_connection_that_ends_behind_a_preparation_is_told_of_as_lost(
    opened: Opened, url: str
) -> None:
    slow = Sent(b"slow", b"SELECT pg_sleep($1::bigint)")
    pipe = opened([slow])
    asked = asyncio.ensure_future(ask(pipe, slow._replace(values=[b"60"])))
    await end_connections(url)
    assert isinstance(await asked, psycopg.OperationalError)
    assert pipe.closed


async def test_the_connection_that_opened_a_store_is_the_first_that_writes(
    store: RunStore, url: str
) -> None:
    handle = await open_store(f"{url}&application_name=perdure-first")
    ours = "SELECT pid FROM pg_stat_activity WHERE application_name = 'perdure-first'"
    opened_it = await execute(url, ours)
    await handle.write(await hold(handle), completed(0, "x"))
    wrote = "query LIKE 'WITH fence%' AND query LIKE '%durable_steps%'"
    assert await execute(url, f"{ours} AND {wrote}") == opened_it
    assert len(opened_it) == 1
    await handle.close()
