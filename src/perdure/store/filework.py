"""What a handle changes in its folder, beside opening runs, run by its thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perdure.core import draft, transitions
from perdure.core.changes import Change, SettleUsage
from perdure.core.effects import epoch_ms, iso_time, new_token
from perdure.core.limits import DELIVERY_TRIES_MAX
from perdure.core.records import (
    DeliveryRecord,
    EventRecord,
    Lease,
    RunRecord,
    Written,
)
from perdure.core.rundata import DELIVERY_LOST, RunData
from perdure.errors import (
    LeaseLostError,
    PerdureError,
    StoreBusyError,
    UsageError,
)
from perdure.store.filedata import FileData, session_of, unknown
from perdure.store.fileentries import (
    ClaimDelivery,
    Delete,
    Emit,
    Expire,
    Renew,
    RetryDelivery,
    Settle,
    SettleDelivery,
    Stop,
    Write,
    entry_text,
    first_waiting,
    without_frames,
)
from perdure.store.filelog import FileLog
from perdure.store.fileruns import remove_log


class FileWork:
    """The calls that change a run that is there. Belongs to one thread."""

    def __init__(self, data: FileData) -> None:
        self._data = data

    def write(self, lease: Lease, changes: Sequence[Change]) -> Written:
        with self._data.run_locked(lease.run_id) as file:
            if file is None or lease.run_id not in self._data.runs:
                raise LeaseLostError(f"the run {lease.run_id!r} is gone")
            operation = Write(lease, changes)
            written: Written = self._data.accept(lease.run_id, file, self._data.now(), operation)
            run = None
            if draft.ends(changes):
                run = self._data.record(self._data.runs[lease.run_id])
            return written._replace(run=run)

    def renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        held: dict[Lease, bool] = {}
        stuck: PerdureError | None = None
        for lease in leases:
            try:
                with self._data.run_locked(lease.run_id) as file:
                    data = self._data.runs.get(lease.run_id)
                    if file is None or data is None or not draft.fence_holds(data, lease):
                        continue
                    now = self._data.now()
                    renewal = Renew(iso_time(epoch_ms(now) + lease_ms))
                    # A renewal is worth no flush: after a power cut its holder is dead anyway.
                    self._data.accept(lease.run_id, file, now, renewal, durable=False)
                    held[lease] = data.run.stop_requested_at is not None
            except StoreBusyError as error:
                stuck = error
        if stuck is not None:
            # Those above are renewed; not to answer is not to say that this one is lost.
            raise stuck
        return held

    def settle_usage(self, lease: Lease, usage: SettleUsage) -> None:
        with self._data.run_locked(lease.run_id) as file:
            data = self._data.runs.get(lease.run_id)
            if file is None or data is None:
                return
            key = (lease.epoch, usage.call)
            known = data.usage.get(key)
            if known is None or known.state == "settled" or data.usage_tokens[key] != lease.token:
                return
            self._data.accept(lease.run_id, file, self._data.now(), Settle(lease, usage))

    def emit(self, stored_id: str, run_id: str, key: str, text: str) -> tuple[bool, EventRecord]:
        with self._data.run_locked(stored_id) as file:
            data = self._data.runs.get(stored_id)
            if file is None or data is None:
                raise unknown(run_id)
            if key in data.events:
                return False, data.event(key)
            self._data.accept(stored_id, file, self._data.now(), Emit(key, text))
            return True, data.event(key)

    def stop(self, stored_id: str, run_id: str) -> RunRecord:
        data = self._data.load(stored_id)
        if data is not None and transitions.judge(data.run, "stop", self._data.now()) == "keep":
            return self._data.record(data)
        with self._data.run_locked(stored_id) as file:
            data = self._data.runs.get(stored_id)
            if file is None or data is None:
                raise unknown(run_id)
            now = self._data.now()
            if transitions.judge(data.run, "stop", now) == "mark":
                self._data.accept(stored_id, file, now, Stop())
        return self._record(stored_id)

    def claim_deliveries(
        self, handlers: frozenset[str], limit: int, stored_id: str | None
    ) -> list[DeliveryRecord]:
        if stored_id is None:
            self._data.index.catch_up()
            ids = list(self._data.index.open_runs)
        else:
            ids = [stored_id]
        claimed: list[DeliveryRecord] = []
        for at in ids:
            if len(claimed) >= limit:
                break
            run = self._data.peek_for_sweep(at)
            if run is not None and run.state in transitions.ENDED_STATES:
                claimed.extend(self._claim_delivery(at, handlers))
        return claimed

    def _claim_delivery(self, stored_id: str, handlers: frozenset[str]) -> Sequence[DeliveryRecord]:
        data = self._data.load(stored_id)
        if data is None or not self._may_deliver(data, handlers):
            return ()
        with self._data.run_locked(stored_id) as file:
            data = self._data.runs.get(stored_id)
            if file is None or data is None:
                return ()
            delivery = first_waiting(data) if self._may_deliver(data, handlers) else None
            while delivery is not None and delivery.token and delivery.tries >= DELIVERY_TRIES_MAX:
                lost = SettleDelivery(delivery.position, delivery.token, DELIVERY_LOST)
                self._data.accept(stored_id, file, self._data.now(), lost)
                delivery = first_waiting(data) if self._may_deliver(data, handlers) else None
            if delivery is None:
                return ()
            operation = ClaimDelivery(delivery.handler, new_token())
            claimed: Sequence[DeliveryRecord] = self._data.accept(
                stored_id, file, self._data.now(), operation
            )
            return claimed

    def _may_deliver(self, data: RunData, handlers: frozenset[str]) -> bool:
        if data.run.state not in transitions.ENDED_STATES:
            return False
        delivery, now = first_waiting(data), self._data.now()
        return (
            delivery is not None
            and delivery.handler in handlers
            and (delivery.due_at or "") <= now
            and data.claimed_until.get(delivery.position, "") <= now
        )

    def settle_delivery(self, delivery: DeliveryRecord, error: str | None) -> bool:
        """Return whether something was changed."""
        with self._data.run_locked(delivery.run_id) as file:
            data = self._data.runs.get(delivery.run_id)
            if file is None or data is None or delivery.token is None:
                return False
            known = data.deliveries.get(delivery.position)
            if known is None or known.state != "waiting" or known.token != delivery.token:
                return False
            operation = SettleDelivery(delivery.position, delivery.token, error)
            self._data.accept(delivery.run_id, file, self._data.now(), operation)
            return True

    def retry_delivery(self, stored_id: str, position: int) -> DeliveryRecord | None:
        with self._data.run_locked(stored_id) as file:
            data = self._data.runs.get(stored_id)
            known = None if data is None else data.deliveries.get(position)
            if file is None or data is None or known is None or known.state == "delivered":
                return None
            self._data.accept(stored_id, file, self._data.now(), RetryDelivery(position))
            return data.delivery(position)

    # Deletion.

    def delete(self, stored_id: str, run_id: str, *, frames_only: bool) -> bool:
        data = self._data.load(stored_id)
        if data is None:
            self._clear(stored_id)
            return False
        key = session_of(self._data.opening_of(stored_id, data))
        with (
            self._data.session_locked(key) as session_file,
            self._data.run_locked(stored_id) as file,
        ):
            data = self._data.runs.get(stored_id)
            if file is None or data is None:
                return False
            command: transitions.Command = "delete_frames" if frames_only else "delete"
            now = self._data.now()
            if transitions.judge(data.run, command, now) == "refuse":
                raise UsageError(
                    f"the run {run_id!r} is {data.run.state}: it cannot be deleted before it ends"
                )
            if frames_only:
                return self._expire(stored_id, data, file, now)
            self.remove(stored_id, file, key, session_file)
            return True

    def remove(
        self, stored_id: str, file: int, key: tuple[str, str] | None, session_file: int | None
    ) -> None:
        """Delete a run. The caller holds its lock and that of its session."""
        if key is not None and session_file is not None:
            self._data.keep_session(key, session_file, stored_id)
        self._data.accept(stored_id, file, self._data.now(), Delete())
        remove_log(self._data.file_of(stored_id).log.path)
        self._data.forget(stored_id)

    def _clear(self, stored_id: str) -> None:
        """Finish a deletion that a crash cut off."""
        with self._data.run_locked(stored_id) as file:
            if file is not None and stored_id not in self._data.runs:
                remove_log(self._data.file_of(stored_id).log.path)
                self._data.forget(stored_id)

    def _expire(self, stored_id: str, data: RunData, file: int, now: str) -> bool:
        if not data.rows:
            self._data.accept(stored_id, file, now, Expire())
            return False
        log = FileLog(self._data.file_of(stored_id).log.path)
        texts = [without_frames(text) for text in log.catch_up(file).texts]
        # Nothing of a frame may be left, so the log is written anew.
        log.replace([*texts, entry_text(now, [Expire()])])
        self._data.forget(stored_id)
        return True

    def _record(self, stored_id: str) -> RunRecord:
        return self._data.record(self._data.runs[stored_id])
