"""The floor on D1 over HTTP: one INSERT in one request. No leases, no fences, no history."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from perdure.store.sql.d1.address import read_address

_SCHEMA = (
    "CREATE TABLE run (id TEXT PRIMARY KEY, status TEXT, output TEXT)",
    "CREATE TABLE step (run TEXT, seq INTEGER, out TEXT, PRIMARY KEY (run, seq))",
)


class D1Floor:
    """Rows in D1, each written by a request of its own."""

    def __init__(self, url: str) -> None:
        address = read_address(url)
        path = f"accounts/{address.account_id}/d1/database/{address.database_id}/query"
        self._url = f"{address.base_url}/{path}"
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {address.token}"}, timeout=30
        )

    @classmethod
    async def open(cls, url: str) -> D1Floor:
        floor = cls(url)
        for statement in _SCHEMA:
            await floor.write(statement)
        return floor

    async def write(self, sql: str, *values: object) -> list[dict[str, Any]]:
        body = {"sql": sql, "params": [str(value) for value in values]}
        answer = await self._client.post(self._url, json=body)
        rows: list[dict[str, Any]] = answer.raise_for_status().json()["result"][0]["results"]
        return rows

    async def run_steps(self, run_id: str, count: int) -> None:
        await self.write("INSERT INTO run VALUES (?, 'running', NULL)", run_id)
        for position in range(count):
            text = json.dumps({"i": position, "status": "ok"})
            await self.write("INSERT INTO step VALUES (?, ?, ?)", run_id, position, text)
        await self.write("UPDATE run SET status = 'done' WHERE id = ?", run_id)

    async def replay(self, run_id: str) -> list[Any]:
        rows = await self.write("SELECT out FROM step WHERE run = ? ORDER BY seq", run_id)
        return [json.loads(row["out"]) for row in rows]

    async def close(self) -> None:
        await self._client.aclose()
