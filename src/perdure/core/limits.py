"""Every limit of the package as a named constant; architecture, section 7."""

from __future__ import annotations

from typing import Final

LEASE_MS: Final = 15_000
BEAT_MS: Final = 5_000
STALL_MS: Final = 60_000
"""A process whose event loop has not answered a ping for this long stops renewing its leases."""
WATCHDOG_MS: Final = 2_000
"""Work stops this long before its lease would lapse unrenewed."""
STRIKES_MAX_TURN: Final = 3
STRIKES_MAX_RUN: Final = 5
LAZY_BEGIN_MS: Final = 20
"""A logic step that still runs after this long records its begin in a commit of its own."""

LINGER_MS: Final = 20
FLUSH_BYTES: Final = 8 * 1024
FLUSH_FRAMES: Final = 64
UNFLUSHED_BYTES_MAX: Final = 256 * 1024
FRAME_BYTES_MAX: Final = 256 * 1024
FRAMES_ROW_BYTES_MAX: Final = 512 * 1024
TURN_LOG_BYTES_MAX: Final = 8 * 1024 * 1024
RING_BYTES: Final = 32 * 1024
READERS_MAX: Final = 1_024
FRAMES_KEPT_MS: Final = 24 * 60 * 60 * 1000
HEARTBEAT_MS: Final = 15_000
IDLE_TIMEOUT_MS: Final = 120_000

VALUE_BYTES_MAX: Final = 1024 * 1024
MANIFEST_BYTES_MAX: Final = 1024 * 1024
BODY_BYTES_MAX: Final = 1024 * 1024
DEPTH_MAX: Final = 64
ID_BYTES_MAX: Final = 200
RUN_ID_BYTES_MAX: Final = 256
"""Room for the run id of a turn whose session id is as long as an id may be."""
INTEGER_DIGITS_MAX: Final = 4_300
"""The longest integer that Python reads back from text unless it is told otherwise."""
ERROR_TEXT_BYTES_MAX: Final = 8 * 1024
"""What is kept of the message, and of the stack, of a step that failed."""
INTEGER_MAX: Final = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly (ECMAScript)."""

DELIVERY_TRIES_MAX: Final = 20
DELIVERY_BACKOFF_MS: Final = 1_000
DELIVERY_BACKOFF_MAX_MS: Final = 60 * 60 * 1000
DELIVERY_CLAIM_MS: Final = 60_000
PERSIST_WAIT_MS: Final = 2_000
"""Live readers get the terminal frame after the first try of persist, or after this long."""
DRAIN_MS: Final = 30_000
