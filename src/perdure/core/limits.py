"""Every limit of the package as a named constant, with its unit last in the name.

What stands below a constant is its line in the documentation.
"""

from __future__ import annotations

from typing import Final

LEASE_MS: Final = 15_000
"""How long a lease lasts without being renewed: so long a run waits whose worker is not back, if
nobody can tell that he is dead."""
BEAT_MS: Final = 5_000
"""How often all leases of a process are renewed; at the latest after a third of the shortest."""
STALL_MS: Final = 60_000
"""A process whose event loop has not answered a ping for this long stops renewing its leases."""
WATCHDOG_MS: Final = 2_000
"""Work stops this long before its lease would lapse unrenewed."""
STRIKES_MAX_TURN: Final = 3
"""A turn is parked once so many of its attempts crashed without progress."""
STRIKES_MAX_RUN: Final = 5
"""A run is parked once so many of its attempts crashed without progress."""
LAZY_BEGIN_MS: Final = 20
"""A logic step that still runs after this long records its begin in a commit of its own."""

LINGER_MS: Final = 20
"""A frame waits at most this long, and half of it at least, for others that share its commit; what
a reader waits for does not."""
FLUSH_BYTES: Final = 8 * 1024
"""So many bytes of frames are flushed without lingering."""
FLUSH_FRAMES: Final = 64
"""So many frames are flushed without lingering."""
UNFLUSHED_BYTES_MAX: Final = 256 * 1024
"""With more than this unflushed, a producer waits until the store has caught up."""
FRAME_BYTES_MAX: Final = 256 * 1024
"""The largest frame that is no delta, encoded; a turn that yields a larger one fails."""
FRAMES_ROW_BYTES_MAX: Final = 512 * 1024
"""The largest row of frames in the store."""
TURN_LOG_BYTES_MAX: Final = 8 * 1024 * 1024
"""The most frames of one turn; one that yields more fails, and what it had is kept."""
RING_BYTES: Final = 32 * 1024
"""The newest frames of a live turn that are kept in memory; who is behind reads the store."""
READERS_MAX: Final = 1_024
"""The most readers of one turn in one process."""
FRAMES_KEPT_MS: Final = 24 * 60 * 60 * 1000
"""The age at which a clean-up deletes the frames of finished turns."""
GARBAGE_BEGIN_MS: Final = 10_000
"""How long after its start a service cleans up for the first time, give or take a half."""
GARBAGE_EVERY_MS: Final = 10 * 60 * 1000
"""How often a service cleans up its store, give or take a half."""
GARBAGE_BATCH: Final = 50
"""So many runs are cleaned up in one transaction at most."""
HEARTBEAT_MS: Final = 15_000
"""A stream that was silent for this long gets a heartbeat, where its wire has one."""
IDLE_TIMEOUT_MS: Final = 120_000
"""A turn whose model yields nothing for this long fails; the time of its tools does not count."""

HISTORY_TURNS_MAX: Final = 200
"""Turns before a turn whose messages its producer is given, the nearest; a setting of engines."""
ATTACHMENTS_MAX: Final = 32
"""The most attachments of one message."""
ATTACHMENT_BYTES_MAX: Final = 4 * 1024
"""The longest reference to an attached file, as JSON."""
VALUE_BYTES_MAX: Final = 1024 * 1024
"""The largest value as JSON: the result of a step, a payload, a handle."""
MANIFEST_BYTES_MAX: Final = 1024 * 1024
"""The largest manifest of a run, as JSON."""
SEALED_BYTES_MAX: Final = 3 * 1024 * 1024 // 2
"""The largest sealed value: what sealing may add to the largest plain one."""
BODY_BYTES_MAX: Final = 1024 * 1024
"""The largest body of an HTTP request."""
BODIES_BYTES_MAX: Final = 64 * 1024 * 1024
"""The most bytes of incomplete request bodies that one process holds at a time."""
TURNS_MAX: Final = 1_024
"""The most turns that a process works on at a time before it refuses to begin another (429)."""
TENANT_TURNS_MAX: Final = 256
"""How many of those may be of one tenant."""
SLEEPERS_MAX: Final = 256
"""So many turns of an engine stay in memory while they wait for an event; of more, the one that has
waited longest is let go, and is replayed where its event is seen."""
STREAMS_MAX: Final = 8_192
"""The most streams that one process holds open at a time; a further one is refused (429)."""
DEPTH_MAX: Final = 64
"""How deep lists and objects may stand in each other."""
ID_BYTES_MAX: Final = 200
"""The longest id of a session, user or tenant, name of an engine, and key of an event."""
RUN_ID_BYTES_MAX: Final = 256
"""Room for the run id of a turn whose session id is as long as an id may be."""
INTEGER_DIGITS_MAX: Final = 4_300
"""The longest integer that Python reads back from text unless it is told otherwise."""
ERROR_TEXT_BYTES_MAX: Final = 8 * 1024
"""What is kept of the message, and of the stack, of a step that failed."""
INTEGER_MAX: Final = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly (ECMAScript)."""

DELIVERY_TRIES_MAX: Final = 20
"""A delivery that failed this often is dead, and stays visible."""
DELIVERY_BACKOFF_MS: Final = 1_000
"""How long a delivery waits after its first failure; the wait doubles with each further one."""
DELIVERY_BACKOFF_MAX_MS: Final = 60 * 60 * 1000
"""The longest wait between two tries of a delivery."""
DELIVERY_CLAIM_MS: Final = 60_000
"""How long a claimed delivery belongs to its worker; a hook has 5 s less than that."""
HOOK_TIMEOUT_MS: Final = 30_000
"""A hook or policy that a turn waits for is given up after this long, so that the turn ends."""
PERSIST_WAIT_MS: Final = 2_000
"""Live readers get the terminal frame after the first try of persist, or after this long."""
SCHEDULE_EVERY_MIN_MS: Final = 100
"""The shortest interval of a schedule."""
SCHEDULE_GRACE_MS: Final = 60_000
"""A due time of a schedule that skips what it missed still runs when it is this late."""
DRAIN_MS: Final = 30_000
"""How long a drain lets work finish before it gives the leases back."""
