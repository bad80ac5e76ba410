-- Version 1 of the schema, shared with the TypeScript library. Applying it twice changes nothing.
CREATE TABLE IF NOT EXISTS durable_schema_info (
  version INTEGER PRIMARY KEY,
  applied_at TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS durable_runs (
  run_id TEXT PRIMARY KEY,
  manifest_hash TEXT NOT NULL,
  project_id TEXT NOT NULL,
  scenario_id TEXT,
  status TEXT NOT NULL
    CHECK (status IN ('pending', 'running', 'completed', 'failed', 'suspended')),
  created_at TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  completed_at TEXT,
  lease_holder_id TEXT,
  lease_expires_at TEXT,
  outcome_json TEXT,
  step_count INTEGER NOT NULL DEFAULT 0
);

CREATE INDEX IF NOT EXISTS idx_durable_runs_project_status
  ON durable_runs (project_id, status);

CREATE INDEX IF NOT EXISTS idx_durable_runs_lease_expires
  ON durable_runs (lease_expires_at);

CREATE TABLE IF NOT EXISTS durable_steps (
  run_id TEXT NOT NULL,
  step_index INTEGER NOT NULL,
  intent TEXT NOT NULL,
  kind TEXT NOT NULL,
  input_hash TEXT NOT NULL DEFAULT '',
  status TEXT NOT NULL
    CHECK (status IN ('pending', 'running', 'completed', 'failed')),
  attempts INTEGER NOT NULL DEFAULT 0,
  result_json TEXT,
  error_json TEXT,
  started_at TEXT,
  completed_at TEXT,
  PRIMARY KEY (run_id, step_index)
);

CREATE INDEX IF NOT EXISTS idx_durable_steps_status
  ON durable_steps (run_id, status);

CREATE TABLE IF NOT EXISTS durable_events (
  run_id TEXT NOT NULL,
  key TEXT NOT NULL,
  payload_json TEXT,
  emitted_at TEXT NOT NULL,
  PRIMARY KEY (run_id, key)
);

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (1, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
