"""PerdureSession: a session of the OpenAI Agents SDK in any RunStore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from agents.items import TResponseInputItem
from agents.memory import SessionABC, SessionSettings

from perdure.engines.log_runs import LogKind
from perdure.engines.row_log import Row, RowLog
from perdure.store.protocol import RunStore

SESSIONS: Final = LogKind(
    "agents", "agents-sessions", "Keep the items of a session of the OpenAI Agents SDK"
)


class PerdureSession(SessionABC):
    """Keeps a conversation's items in a RunStore: memory, files, SQLite, PostgreSQL or D1.

    It is a session of the store, `agents:<session id>`, with the store's durability, tenant and
    protection: `erase_session` and `erase_user` (by `owner_id`) delete it, and `collect_garbage`
    does once it was not used for as long as runs are kept. What one call adds is one write, and
    nobody's is lost when two processes add at once; an item that is popped is popped once. With
    `owner_id`, one that belongs to somebody else raises RunNotFoundError.

    Pass it to the SDK's `Runner`. Within durable turns `AgentTurns(agent, store=...)` uses one
    itself, for what is added there must be added once.
    """

    def __init__(
        self,
        store: RunStore,
        session_id: str,
        *,
        owner_id: str | None = None,
        session_settings: SessionSettings | None = None,
    ) -> None:
        self.session_id = session_id
        self.session_settings = session_settings or SessionSettings()
        self._items: list[tuple[int | None, Any]] = []
        self._kept: set[str] = set()
        self._log = RowLog(
            store,
            SESSIONS,
            session_id,
            owner_id=owner_id,
            fold=self._fold,
            forget=self._forget,
        )

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        if limit is None:
            limit = self.session_settings.limit if self.session_settings else None
        items = await self._read()
        if limit is None:
            return items
        return items[-limit:] if limit > 0 else []

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        if items:
            async with self._log.lock:
                await self._log.note_use()
                row: Row = [{"items": _plain(items)}]
                await self._log.append(lambda: row)

    async def pop_item(self) -> TResponseInputItem | None:
        popped: list[Any] = []

        def pop() -> Row | None:
            popped[:] = [item for _, item in self._items[-1:]]
            return [{"pop": 1}] if popped else None

        async with self._log.lock:
            await self._log.catch_up()
            await self._log.append(pop)
        return popped[0] if popped else None

    async def clear_session(self) -> None:
        """Delete the session with all that belongs to it."""
        async with self._log.lock:
            await self._log.delete()

    # Turns: see `AgentTurns`.

    async def items_before(self, turn_index: int) -> list[TResponseInputItem]:
        """Return the items of the turns before one, and what belongs to no turn."""
        await self._read()
        return [item for turn, item in self._items if turn is None or turn < turn_index]

    async def add_turn(self, items: Sequence[Any], turn_index: int, run_id: str) -> None:
        """Add what a turn has said, once; of another answer to it, in place of the first one."""
        row: Row = [{"items": _plain(items), "turn": turn_index, "run": run_id}]
        async with self._log.lock:
            await self._log.note_use()
            await self._log.append(lambda: None if run_id in self._kept else row)

    async def _read(self) -> list[Any]:
        async with self._log.lock:
            await self._log.catch_up()
            return [item for _, item in self._items]

    def _fold(self, number: int, row: Row) -> None:
        for entry in row:
            turn = entry.get("turn")
            if "pop" in entry:
                del self._items[-1:]
                continue
            if turn is not None:
                # Another answer to a turn: what was said in it, and behind it, is another line.
                self._kept.add(entry["run"])
                self._items = [each for each in self._items if each[0] is None or each[0] < turn]
            self._items += [(turn, item) for item in entry["items"]]

    def _forget(self) -> None:
        self._items, self._kept = [], set()


def _plain(items: Sequence[Any]) -> list[Any]:
    """Return the items as plain JSON: the SDK also hands on models of its own."""
    return [item if isinstance(item, dict) else item.model_dump(mode="json") for item in items]
