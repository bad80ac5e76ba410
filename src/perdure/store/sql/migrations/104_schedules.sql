-- What comes due again and again. A due time is dealt with by moving next_due_at on.
CREATE TABLE perdure_schedules (
  tenant TEXT NOT NULL,
  name TEXT NOT NULL,
  task TEXT NOT NULL,
  manifest_json TEXT NOT NULL,
  cron TEXT,
  every_ms BIGINT,
  timezone TEXT NOT NULL,
  catch_up TEXT NOT NULL CHECK (catch_up IN ('skip', 'one', 'all')),
  overlap TEXT NOT NULL CHECK (overlap IN ('allow', 'skip')),
  next_due_at TEXT NOT NULL,
  paused_at TEXT,
  last_due_at TEXT,
  last_run_id TEXT,
  created_at TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  PRIMARY KEY (tenant, name)
);

CREATE INDEX idx_perdure_schedules_due
  ON perdure_schedules (task, next_due_at, tenant, name) WHERE paused_at IS NULL;
