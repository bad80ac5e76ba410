-- Leads from a user to his sessions, so that all of them can be deleted.
CREATE INDEX idx_perdure_sessions_owner ON perdure_sessions (tenant, owner_id, session_id);
