-- What the reference does not keep of a run: who may go on with it, when, and why it rests.
ALTER TABLE durable_runs ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
ALTER TABLE durable_runs ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
ALTER TABLE durable_runs ADD COLUMN token TEXT;
ALTER TABLE durable_runs ADD COLUMN strikes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE durable_runs ADD COLUMN state TEXT;
ALTER TABLE durable_runs ADD COLUMN reason TEXT;
ALTER TABLE durable_runs ADD COLUMN handler TEXT;
ALTER TABLE durable_runs ADD COLUMN wake_at TEXT;
ALTER TABLE durable_runs ADD COLUMN wake_key TEXT;
ALTER TABLE durable_runs ADD COLUMN stop_requested_at TEXT;
ALTER TABLE durable_runs ADD COLUMN session_id TEXT;
ALTER TABLE durable_runs ADD COLUMN turn_index INTEGER;
ALTER TABLE durable_runs ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
ALTER TABLE durable_runs ADD COLUMN parent_run_id TEXT;
ALTER TABLE durable_runs ADD COLUMN live_from INTEGER NOT NULL DEFAULT 0;
ALTER TABLE durable_runs ADD COLUMN frames_expired_at TEXT;
-- The two long ones stand last: what stands before them is read without their overflow pages.
ALTER TABLE durable_runs ADD COLUMN upstream_json TEXT;
ALTER TABLE durable_runs ADD COLUMN manifest_json TEXT;

ALTER TABLE durable_steps ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
ALTER TABLE durable_steps ADD COLUMN effect TEXT;
ALTER TABLE durable_steps ADD COLUMN frames_to INTEGER;

CREATE INDEX idx_perdure_runs_live
  ON durable_runs (handler, run_id) WHERE status = 'running';
CREATE INDEX idx_perdure_runs_wake
  ON durable_runs (handler, wake_at) WHERE status = 'suspended' AND wake_at IS NOT NULL;
CREATE INDEX idx_perdure_runs_queue
  ON durable_runs (handler, created_at, run_id) WHERE status = 'pending';
CREATE INDEX idx_perdure_runs_list
  ON durable_runs (tenant, created_at, run_id);
CREATE INDEX idx_perdure_runs_turn
  ON durable_runs (tenant, session_id, turn_index, revision) WHERE session_id IS NOT NULL;
