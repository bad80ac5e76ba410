"""Perdure on Restate: its workflows answer our turns, and its virtual objects keep the sessions."""

from __future__ import annotations

from perdure.engines.restate.sessions import RestateSessions as RestateSessions
from perdure.engines.restate.sessions import stored_id_of as stored_id_of
