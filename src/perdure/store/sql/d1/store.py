"""D1DurableRunStore: the store on D1 under the name that the TypeScript library gives it."""

from __future__ import annotations

from perdure.core.effects import Clock
from perdure.store.sql.d1.binding import D1Binding
from perdure.store.sql.d1.driver import D1
from perdure.store.sql.store import SqlStore


class D1DurableRunStore(SqlStore):
    """Runs in a D1 database, given a Worker's binding (`env.DB`) or a `D1Api`.

    It is `SqlStore(D1(binding))` in one name. It never changes the schema by itself, unless it
    is told to `migrate`: a database that lacks something is refused with SchemaError, one that
    the TypeScript library created is taken over by `perdure migrate`.
    """

    def __init__(
        self,
        binding: D1Binding,
        *,
        tenant: str = "",
        code_version: str | None = None,
        clock: Clock | None = None,
        migrate: bool = False,
    ) -> None:
        self._d1 = D1(binding, migrate=migrate, clock=clock)
        super().__init__(self._d1, tenant=tenant, code_version=code_version)

    async def get_schema_version(self) -> int | None:
        """Return the highest applied version of the TypeScript library's schema; None if none.

        Our own migrations are not counted by it, so that both libraries read the same number.
        """
        return await self._d1.schema_version()
