-- Leads to the model calls of a time, whoever made them.
CREATE INDEX idx_perdure_usage_moment
  ON perdure_usage (intended_at, run_id, epoch, call);
