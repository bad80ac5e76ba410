-- One row per claim, for people, and for the strikes of a run.
CREATE TABLE perdure_attempts (
  run_id TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  holder TEXT NOT NULL,
  liveness TEXT,
  code_version TEXT,
  started_at TEXT NOT NULL,
  ended_at TEXT,
  ended TEXT,
  error_json TEXT,
  PRIMARY KEY (run_id, epoch)
);

-- The journal of a turn: one row per flush, its body a JSON array of frames.
CREATE TABLE perdure_frames (
  run_id TEXT NOT NULL,
  first_seq INTEGER NOT NULL,
  last_seq INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  body TEXT NOT NULL,
  written_at TEXT NOT NULL,
  PRIMARY KEY (run_id, first_seq)
);

-- A chat: whose it is, and which of its turns has its place.
CREATE TABLE perdure_sessions (
  tenant TEXT NOT NULL,
  session_id TEXT NOT NULL,
  owner_id TEXT,
  active_run_id TEXT,
  created_at TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  PRIMARY KEY (tenant, session_id)
);

-- What must happen after a run ended, written together with its end.
CREATE TABLE perdure_outbox (
  run_id TEXT NOT NULL,
  position INTEGER NOT NULL,
  topic TEXT NOT NULL,
  handler TEXT NOT NULL,
  key TEXT NOT NULL,
  payload_json TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'dead')),
  tries INTEGER NOT NULL DEFAULT 0,
  due_at TEXT NOT NULL,
  token TEXT,
  claimed_until TEXT,
  last_error TEXT,
  created_at TEXT NOT NULL,
  delivered_at TEXT,
  PRIMARY KEY (run_id, position)
);

CREATE INDEX idx_perdure_outbox_due
  ON perdure_outbox (handler, due_at) WHERE state = 'waiting';

-- One row per model call that may be billed, written before the call.
CREATE TABLE perdure_usage (
  run_id TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  call INTEGER NOT NULL,
  token TEXT NOT NULL,
  step_index INTEGER,
  tenant TEXT NOT NULL,
  session_id TEXT,
  provider TEXT,
  model TEXT,
  request_id TEXT,
  state TEXT NOT NULL CHECK (state IN ('intended', 'settled', 'unknown')),
  tokens_in INTEGER,
  tokens_out INTEGER,
  tokens_cached INTEGER,
  tokens_reasoning INTEGER,
  cost_nanos BIGINT,
  currency TEXT,
  price_version TEXT,
  intended_at TEXT NOT NULL,
  settled_at TEXT,
  PRIMARY KEY (run_id, epoch, call)
);

CREATE INDEX idx_perdure_usage_day
  ON perdure_usage (tenant, intended_at);

-- Which of these files were applied; `durable_schema_info` belongs to the reference.
CREATE TABLE perdure_schema (
  number INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  sha256 TEXT NOT NULL,
  applied_at TEXT NOT NULL
);
