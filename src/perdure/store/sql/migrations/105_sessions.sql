-- Turns that TypeScript workers made, by their ids: they name no session.
CREATE INDEX idx_perdure_runs_foreign
  ON durable_runs (run_id) WHERE manifest_json IS NULL AND session_id IS NULL;
-- Who waits for a place in a session.
CREATE INDEX idx_perdure_runs_line
  ON durable_runs (session_id, created_at) WHERE status = 'pending';
