-- For those who look for runs, and clean up: the newest first, what is unfinished, what is over.
CREATE INDEX idx_perdure_runs_newest
  ON durable_runs (created_at, run_id);
CREATE INDEX idx_perdure_runs_unfinished
  ON durable_runs (created_at, run_id) WHERE status <> 'completed';
CREATE INDEX idx_perdure_runs_ended
  ON durable_runs (completed_at, run_id) WHERE completed_at IS NOT NULL;
CREATE INDEX idx_perdure_outbox_open
  ON perdure_outbox (run_id, position) WHERE state <> 'delivered';
