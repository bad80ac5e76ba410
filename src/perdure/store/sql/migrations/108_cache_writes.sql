-- Part of tokens_in: with some providers they cost more than the others.
ALTER TABLE perdure_usage ADD COLUMN tokens_cache_written INTEGER;
