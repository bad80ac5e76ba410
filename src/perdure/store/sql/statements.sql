-- Every statement of the SQL store. A block begins with its name between dashes.
--
-- ?1, ?2 … are parameters. {now} is the store's time as ISO text, {now+?n} that plus n
-- milliseconds. {fence} is true while the lease (?1 run, ?2 epoch, ?3 token, ?4 holder) holds,
-- {fence_self} the same for the row of the run itself. {rows ?n: a TEXT, b INTEGER} is a table
-- made of one JSON parameter. {run_columns} and {step_columns} are the columns of a record.
-- {skip_locked} locks the rows of durable_runs that a SELECT finds, and leaves out those that
-- somebody else has locked, where a database locks rows one by one.
-- Numbers are cast, since one of the databases binds all of them as REAL.

-- lock_session --
-- Makes the session known, and serialises all who want its place. No row: it has another owner.
INSERT INTO perdure_sessions (tenant, session_id, owner_id, created_at, updated_at)
SELECT ?1, ?2, ?3, {now}, {now} WHERE true
ON CONFLICT (tenant, session_id) DO UPDATE SET updated_at = excluded.updated_at
WHERE perdure_sessions.owner_id IS NULL OR perdure_sessions.owner_id = ?3
RETURNING owner_id

-- open_session --
-- Takes the session's place for a turn. No row: another turn is in flight, or queued before it.
UPDATE perdure_sessions SET active_run_id = ?3
WHERE tenant = ?1 AND session_id = ?2
  AND (active_run_id IS NULL OR active_run_id = ?3 OR NOT EXISTS (
    SELECT 1 FROM durable_runs r
    WHERE r.run_id = perdure_sessions.active_run_id
      AND (r.status = 'running'
        OR (r.status = 'suspended' AND coalesce(r.state, '') <> 'parked'))))
  AND NOT EXISTS (
    SELECT 1 FROM durable_runs q LEFT JOIN durable_runs m ON m.run_id = ?3
    WHERE q.session_id = ?2 AND q.status = 'pending' AND coalesce(q.tenant, '') = ?1
      AND q.run_id <> ?3
      AND (m.run_id IS NULL OR m.status = 'failed'
        OR (m.status = 'suspended' AND m.state = 'parked')
        OR (m.status = 'pending'
          AND (q.created_at, q.turn_index, q.revision, q.run_id)
            < (m.created_at, m.turn_index, m.revision, m.run_id))))
RETURNING active_run_id

-- read_session --
-- Asked for by the caller's key: a run of a TypeScript worker names no session.
SELECT owner_id, active_run_id FROM perdure_sessions WHERE tenant = ?1 AND session_id = ?2

-- put_turn --
-- A turn of a TypeScript worker gets its place in the session, behind the answer before it, when
-- the next turn comes to stand behind it.
UPDATE durable_runs SET session_id = ?2, turn_index = CAST(?3 AS INTEGER),
  parent_run_id = (
    SELECT p.run_id FROM durable_runs p
    WHERE p.tenant = '' AND p.session_id = ?2 AND p.turn_index < CAST(?3 AS INTEGER)
      AND p.status = 'completed'
    ORDER BY p.turn_index DESC, p.revision DESC LIMIT 1)
WHERE run_id = ?1 AND {foreign}

-- create_run --
-- The claim of a run that is new. It keeps all that a stranger needs to go on; the parent of a
-- turn is chosen once, here. No row: somebody was first.
INSERT INTO durable_runs (
  run_id, manifest_hash, project_id, scenario_id, status, created_at, updated_at,
  lease_holder_id, lease_expires_at, token, tenant, handler, manifest_json,
  session_id, turn_index, revision, parent_run_id, epoch)
SELECT ?1, ?2, ?3, ?4, 'running', {now}, {now}, ?11, {now+?12}, ?13, ?5, ?6, ?7,
  ?8, CAST(?9 AS INTEGER), CAST(?10 AS INTEGER), coalesce(?14, {parent}), 1
WHERE ?8 IS NULL OR EXISTS (
  SELECT 1 FROM perdure_sessions WHERE tenant = ?5 AND session_id = ?8 AND active_run_id = ?1)
ON CONFLICT (run_id) DO NOTHING
RETURNING {run_columns}

-- insert_run --
-- The shortcut of the one above, for a run outside of any session: all that can be said of it is
-- known, so nothing is returned.
INSERT INTO durable_runs (
  run_id, manifest_hash, project_id, scenario_id, status, created_at, updated_at,
  lease_holder_id, lease_expires_at, token, tenant, handler, manifest_json, epoch)
VALUES (?1, ?2, ?3, ?4, 'running', {now}, {now}, ?8, {now+?9}, ?10, ?5, ?6, ?7, 1)
ON CONFLICT DO NOTHING

-- take_run --
-- The claim of a known run: the next epoch, and a strike if the old lease was not given back.
-- The same token of the same worker is the same claim, whose reply was lost. A live lease is taken
-- from a holder whose liveness lock is among ?11, those of the dead; a TypeScript worker that took
-- over has another name than the attempt. Columns that a TypeScript worker leaves empty are filled.
-- Who names no session (?9) stops a turn in line: it comes behind what may still be answered too.
-- No row: the run is not to be had.
UPDATE durable_runs SET
  epoch = CASE WHEN status = 'running' AND token = ?5 AND lease_holder_id = ?3
    THEN epoch ELSE epoch + 1 END,
  strikes = CASE
    WHEN status = 'failed' OR (status = 'suspended' AND state = 'parked') THEN 0
    WHEN lease_holder_id IS NULL THEN strikes
    WHEN status = 'running' AND token = ?5 AND lease_holder_id = ?3 THEN strikes
    ELSE strikes + 1 END,
  stop_requested_at = CASE
    WHEN status = 'failed' OR (status = 'suspended' AND state = 'parked') THEN NULL
    ELSE stop_requested_at END,
  token = ?5, lease_holder_id = ?3, lease_expires_at = {now+?4},
  status = 'running', state = NULL, reason = NULL, wake_at = NULL, wake_key = NULL,
  completed_at = NULL, updated_at = {now},
  handler = coalesce(handler, ?7), manifest_json = coalesce(manifest_json, ?8),
  session_id = coalesce(session_id, ?9),
  turn_index = coalesce(turn_index, CAST(?10 AS INTEGER)),
  parent_run_id = CASE WHEN epoch > 0 THEN parent_run_id ELSE coalesce(parent_run_id, (
    SELECT p.run_id FROM durable_runs p
    WHERE p.tenant = durable_runs.tenant AND p.session_id = durable_runs.session_id
      AND p.turn_index < durable_runs.turn_index
      AND (p.status = 'completed' OR (?9 IS NULL AND (p.status IN ('pending', 'running')
        OR (p.status = 'suspended' AND coalesce(p.state, '') <> 'parked'))))
    ORDER BY p.turn_index DESC, p.revision DESC LIMIT 1)) END
WHERE run_id = ?1 AND manifest_hash = ?2
  AND (coalesce(status, '') IN ('pending', 'running')
    OR (status = 'suspended' AND (coalesce(state, '') <> 'parked' OR CAST(?6 AS INTEGER) = 1))
    OR (status = 'failed' AND CAST(?6 AS INTEGER) = 1))
  AND (lease_holder_id IS NULL OR coalesce(lease_expires_at, '') <= {now}
    OR (status = 'running' AND token = ?5 AND lease_holder_id = ?3)
    OR EXISTS (
      SELECT 1 FROM perdure_attempts l
      WHERE l.run_id = durable_runs.run_id AND l.epoch = durable_runs.epoch
        AND l.holder = durable_runs.lease_holder_id
        AND l.liveness IN (SELECT d.name FROM {rows ?11: name TEXT} AS d)))
  AND (?9 IS NULL OR EXISTS (
    SELECT 1 FROM perdure_sessions s
    WHERE s.tenant = durable_runs.tenant AND s.session_id = ?9 AND s.active_run_id = ?1))
RETURNING epoch

-- close_lost_attempt --
-- What an earlier claim left open: its worker never came back.
UPDATE perdure_attempts SET ended_at = {now}, ended = 'lost'
WHERE run_id = ?1 AND ended_at IS NULL
  AND epoch < (SELECT epoch FROM durable_runs WHERE run_id = ?1 AND token = ?2)

-- open_attempt --
-- Every claim is on record, also one that crashes before it does anything.
INSERT INTO perdure_attempts (run_id, epoch, holder, liveness, code_version, started_at)
SELECT run_id, epoch, lease_holder_id, ?4, ?3, {now} FROM durable_runs
WHERE run_id = ?1 AND token = ?2 AND coalesce(status, '') = 'running'
ON CONFLICT DO NOTHING

-- insert_attempt --
-- The shortcut of the one above, behind the statement that has created the run.
INSERT INTO perdure_attempts (run_id, epoch, holder, liveness, code_version, started_at)
VALUES (?1, 1, ?2, ?4, ?3, {now})
ON CONFLICT DO NOTHING

-- free_run --
-- First of a claim by a sweep, which never waits. No row: somebody is at the run just now.
SELECT run_id FROM durable_runs WHERE run_id = ?1 {skip_locked}

-- read_run --
-- The store's time comes along: whether a lease is live is never asked of another clock.
SELECT {run_columns}, {owner}, {now}
FROM durable_runs WHERE run_id = ?1

-- read_steps --
-- The whole history at once, at the claim: no step is looked up later.
SELECT {step_columns} FROM durable_steps WHERE run_id = ?1 ORDER BY step_index

-- read_step --
-- What a write that is repeated has stored the first time.
SELECT {step_columns} FROM durable_steps
WHERE run_id = ?1 AND step_index = CAST(?2 AS INTEGER)

-- frames_end --
-- The seq of the next frame.
SELECT coalesce((
  SELECT last_seq + 1 FROM perdure_frames WHERE run_id = ?1 ORDER BY first_seq DESC LIMIT 1), 1)

-- read_frames --
-- Rows from the one that holds the seq ?2 on, if it is there: what lies before it is not sent in
-- vain. Seqs have no gaps, so an end bounds the frames.
SELECT first_seq, last_seq, epoch, body FROM perdure_frames
WHERE run_id = ?1
  AND first_seq >= coalesce((
    SELECT first_seq FROM perdure_frames
    WHERE run_id = ?1 AND first_seq <= CAST(?2 AS INTEGER) ORDER BY first_seq DESC LIMIT 1), 0)
  AND first_seq < CAST(?2 AS INTEGER) + CAST(?3 AS INTEGER) AND last_seq >= CAST(?2 AS INTEGER)
ORDER BY first_seq

-- fence --
-- The first statement of every write, and an update, so that it locks the run. No row: the lease
-- is lost. A TypeScript worker that takes over changes the holder only, so that one counts too.
UPDATE durable_runs SET updated_at = {now},
  step_count = CASE WHEN step_count < CAST(?5 AS INTEGER)
    THEN CAST(?5 AS INTEGER) ELSE step_count END,
  strikes = CASE WHEN CAST(?6 AS INTEGER) = 1 THEN 0 ELSE strikes END
WHERE {fence_self}
RETURNING updated_at, stop_requested_at

-- fence_unstopped --
-- The shortcut of the one above while nobody has asked for a stop.
UPDATE durable_runs SET updated_at = {now},
  step_count = CASE WHEN step_count < CAST(?5 AS INTEGER)
    THEN CAST(?5 AS INTEGER) ELSE step_count END,
  strikes = CASE WHEN CAST(?6 AS INTEGER) = 1 THEN 0 ELSE strikes END
WHERE {fence_self} AND stop_requested_at IS NULL

-- fence_frames --
-- The fence of a write of frames alone. Of those the run notes the second, not the moment.
UPDATE durable_runs SET updated_at = CASE
  WHEN substr(updated_at, 1, 19) = substr({now}, 1, 19) THEN updated_at ELSE {now} END
WHERE {fence_self}
RETURNING updated_at, stop_requested_at

-- look_fence --
-- The shortcut of the one above where whoever looks keeps all others from writing: in a second that
-- is noted, and while nobody has asked for a stop, the run's row need not be written.
SELECT updated_at FROM durable_runs
WHERE {fence_self} AND stop_requested_at IS NULL
  AND substr(updated_at, 1, 19) = substr({now}, 1, 19)

-- begin_step --
-- A completed step stays as it is. No row here and in the next two: it has another intent.
INSERT INTO durable_steps (run_id, step_index, intent, kind, input_hash, status, attempts,
  started_at, epoch, effect)
SELECT ?1, CAST(?5 AS INTEGER), ?6, ?7, ?8, 'running', CAST(?10 AS INTEGER), {now},
  CAST(?2 AS INTEGER), ?9
WHERE {fence}
ON CONFLICT (run_id, step_index) DO UPDATE SET
  status = CASE WHEN durable_steps.status = 'completed' THEN 'completed' ELSE 'running' END,
  attempts = CASE WHEN durable_steps.status = 'completed'
    THEN durable_steps.attempts ELSE excluded.attempts END,
  started_at = CASE WHEN durable_steps.status = 'completed'
    THEN durable_steps.started_at ELSE excluded.started_at END,
  completed_at = CASE WHEN durable_steps.status = 'completed'
    THEN durable_steps.completed_at END,
  error_json = CASE WHEN durable_steps.status = 'completed' THEN durable_steps.error_json END,
  epoch = CASE WHEN durable_steps.status = 'completed'
    THEN durable_steps.epoch ELSE excluded.epoch END
WHERE durable_steps.intent = excluded.intent
RETURNING step_index

-- complete_step --
-- The first result is final: whoever comes later gets it back.
INSERT INTO durable_steps (run_id, step_index, intent, kind, input_hash, status, attempts,
  result_json, started_at, completed_at, epoch, effect, frames_to)
SELECT ?1, CAST(?5 AS INTEGER), ?6, ?7, ?8, 'completed', CAST(?10 AS INTEGER), ?11, ?12, {now},
  CAST(?2 AS INTEGER), ?9, CAST(?13 AS INTEGER)
WHERE {fence}
ON CONFLICT (run_id, step_index) DO UPDATE SET
  status = 'completed',
  attempts = CASE WHEN durable_steps.status = 'completed'
    THEN durable_steps.attempts ELSE excluded.attempts END,
  result_json = CASE WHEN durable_steps.status = 'completed'
    THEN durable_steps.result_json ELSE excluded.result_json END,
  error_json = CASE WHEN durable_steps.status = 'completed' THEN durable_steps.error_json END,
  completed_at = CASE WHEN durable_steps.status = 'completed'
    THEN durable_steps.completed_at ELSE excluded.completed_at END,
  epoch = CASE WHEN durable_steps.status = 'completed'
    THEN durable_steps.epoch ELSE excluded.epoch END,
  frames_to = CASE WHEN durable_steps.status = 'completed'
    THEN durable_steps.frames_to ELSE excluded.frames_to END
WHERE durable_steps.intent = excluded.intent
RETURNING {step_columns}

-- insert_step --
-- The shortcut of the one above, for a step that was not begun on its own: as much as can be said
-- in a plain insert. Only behind a fence that holds for the whole transaction.
INSERT INTO durable_steps (run_id, step_index, intent, kind, input_hash, status, attempts,
  result_json, started_at, completed_at, epoch, effect, frames_to)
VALUES (?1, CAST(?5 AS INTEGER), ?6, ?7, ?8, 'completed', CAST(?10 AS INTEGER), ?11, ?12, {now},
  CAST(?2 AS INTEGER), ?9, CAST(?13 AS INTEGER))
ON CONFLICT DO NOTHING

-- fail_step --
-- A result that is there stays: a failure never replaces it. It may be kept beside it.
INSERT INTO durable_steps (run_id, step_index, intent, kind, input_hash, status, attempts,
  error_json, started_at, completed_at, epoch, effect)
SELECT ?1, CAST(?5 AS INTEGER), ?6, ?7, ?8, 'failed', CAST(?10 AS INTEGER), ?11, ?12, {now},
  CAST(?2 AS INTEGER), ?9
WHERE {fence}
ON CONFLICT (run_id, step_index) DO UPDATE SET
  status = CASE WHEN durable_steps.status = 'completed' THEN 'completed' ELSE 'failed' END,
  attempts = CASE WHEN durable_steps.status = 'completed'
    THEN durable_steps.attempts ELSE excluded.attempts END,
  error_json = CASE WHEN durable_steps.status = 'completed' AND CAST(?13 AS INTEGER) = 0
    THEN durable_steps.error_json ELSE excluded.error_json END,
  completed_at = CASE WHEN durable_steps.status = 'completed'
    THEN durable_steps.completed_at ELSE excluded.completed_at END,
  epoch = CASE WHEN durable_steps.status = 'completed'
    THEN durable_steps.epoch ELSE excluded.epoch END
WHERE durable_steps.intent = excluded.intent
RETURNING {step_columns}

-- append_frames --
-- Only what follows the last row, or the very row that is there already (its reply was lost).
INSERT INTO perdure_frames (run_id, first_seq, last_seq, epoch, body, written_at)
SELECT ?1, CAST(?5 AS INTEGER), CAST(?6 AS INTEGER), CAST(?2 AS INTEGER), ?7, {now}
WHERE {fence} AND CAST(?6 AS INTEGER) >= CAST(?5 AS INTEGER)
  AND (CAST(?5 AS INTEGER) = coalesce((
      SELECT last_seq + 1 FROM perdure_frames
      WHERE run_id = ?1 ORDER BY first_seq DESC LIMIT 1), 1)
    OR EXISTS (
      SELECT 1 FROM perdure_frames
      WHERE run_id = ?1 AND first_seq = CAST(?5 AS INTEGER) AND last_seq = CAST(?6 AS INTEGER)
        AND epoch = CAST(?2 AS INTEGER) AND body = ?7))
ON CONFLICT (run_id, first_seq) DO UPDATE SET last_seq = excluded.last_seq
RETURNING last_seq

-- join_frames --
-- The shortcut of the one above: what is short joins the last row of its attempt, which leaves the
-- index alone. ?7 is what stands behind the row's last element then, ?8 how long the row may be
-- before that. Only behind a fence that holds for the whole transaction. A row that has joined
-- already (its reply was lost) stays as it is.
UPDATE perdure_frames SET last_seq = CAST(?6 AS INTEGER), written_at = {now},
  body = CASE WHEN last_seq = CAST(?6 AS INTEGER) THEN body
    ELSE substr(body, 1, length(body) - 1) || ?7 END
WHERE run_id = ?1 AND epoch = CAST(?2 AS INTEGER)
  AND first_seq = (
    SELECT first_seq FROM perdure_frames WHERE run_id = ?1 ORDER BY first_seq DESC LIMIT 1)
  AND CASE WHEN last_seq = CAST(?5 AS INTEGER) - 1 THEN
      length(body) <= CAST(?8 AS INTEGER) AND CAST(?6 AS INTEGER) >= CAST(?5 AS INTEGER)
    ELSE last_seq = CAST(?6 AS INTEGER) AND first_seq < CAST(?5 AS INTEGER)
      AND substr(body, length(body) - length(?7) + 1) = ?7 END

-- mark_live_from --
-- Readers forget what stands before it.
UPDATE durable_runs SET live_from = CAST(?5 AS INTEGER) WHERE {fence_self}

-- save_handle --
-- By which a later attempt finds the upstream call again.
UPDATE durable_runs SET upstream_json = ?5 WHERE {fence_self}

-- add_delivery --
-- Written with the end of its run or not at all; a position is taken once.
INSERT INTO perdure_outbox (run_id, position, topic, handler, key, payload_json, due_at,
  created_at)
SELECT ?1, CAST(?5 AS INTEGER), ?6, ?7, ?8, ?9, {now}, {now} WHERE {fence}
ON CONFLICT DO NOTHING

-- intend_usage --
-- The tenant and the session come from the run, so a report needs no join.
INSERT INTO perdure_usage (run_id, epoch, call, token, step_index, tenant, session_id, provider,
  model, state, intended_at)
SELECT run_id, epoch, CAST(?5 AS INTEGER), token, CAST(?6 AS INTEGER), tenant, session_id, ?7,
  ?8, 'intended', {now}
FROM durable_runs WHERE {fence_self}
ON CONFLICT DO NOTHING

-- settle_usage --
-- Not fenced by the lease: a worker that lost it still holds the bill of its own call.
UPDATE perdure_usage SET state = ?5, model = coalesce(?6, model), request_id = ?7,
  provider = coalesce(?15, provider),
  tokens_in = CAST(?8 AS INTEGER), tokens_out = CAST(?9 AS INTEGER),
  tokens_cached = CAST(?10 AS INTEGER), tokens_reasoning = CAST(?11 AS INTEGER),
  tokens_cache_written = CAST(?16 AS INTEGER),
  cost_nanos = CAST(?12 AS BIGINT), currency = ?13, price_version = ?14, settled_at = {now}
WHERE run_id = ?1 AND epoch = CAST(?2 AS INTEGER) AND token = ?3 AND call = CAST(?4 AS INTEGER)
  AND state <> 'settled'

-- settle_earlier --
-- What the frames of a lost attempt say of its call: for the holder, of earlier ones only.
UPDATE perdure_usage SET state = ?7, model = coalesce(?8, model), request_id = ?9,
  provider = coalesce(?17, provider),
  tokens_in = CAST(?10 AS INTEGER), tokens_out = CAST(?11 AS INTEGER),
  tokens_cached = CAST(?12 AS INTEGER), tokens_reasoning = CAST(?13 AS INTEGER),
  tokens_cache_written = CAST(?18 AS INTEGER),
  cost_nanos = CAST(?14 AS BIGINT), currency = ?15, price_version = ?16, settled_at = {now}
WHERE run_id = ?1 AND epoch = CAST(?5 AS INTEGER) AND call = CAST(?6 AS INTEGER)
  AND epoch < CAST(?2 AS INTEGER) AND state <> 'settled' AND {fence}

-- close_attempt --
-- How the attempt ended, for people.
UPDATE perdure_attempts SET ended_at = {now}, ended = ?5, error_json = ?6
WHERE run_id = ?1 AND epoch = CAST(?2 AS INTEGER) AND ended_at IS NULL AND {fence}

-- close_fenced --
-- The shortcut of the one above, only behind a fence that holds for the whole transaction.
UPDATE perdure_attempts SET ended_at = {now}, ended = ?5, error_json = ?6
WHERE run_id = ?1 AND epoch = CAST(?2 AS INTEGER) AND ended_at IS NULL

-- end_run --
-- This and the next two take the lease away, so they stand last in their list.
UPDATE durable_runs SET status = ?5, state = ?6, reason = ?7, outcome_json = ?8,
  completed_at = {now}, updated_at = {now}, lease_holder_id = NULL, lease_expires_at = NULL,
  wake_at = NULL, wake_key = NULL
WHERE {fence_self}
RETURNING {run_columns}, {owner}

-- end_granted --
-- The shortcut of the one above, for whoever keeps the run as it was granted and has counted its
-- steps: where nothing else of it has changed, all is known, so nothing is returned.
UPDATE durable_runs SET status = ?5, state = ?6, reason = ?7, outcome_json = ?8,
  completed_at = {now}, updated_at = {now}, lease_holder_id = NULL, lease_expires_at = NULL,
  wake_at = NULL, wake_key = NULL
WHERE {fence_self} AND step_count = CAST(?9 AS INTEGER)
  AND stop_requested_at IS NULL AND live_from = 0 AND upstream_json IS NULL

-- suspend_run --
-- An event that is there already, and a stop that was asked for, make it due at once.
UPDATE durable_runs SET status = 'suspended', state = ?5, reason = ?6, wake_key = ?7,
  lease_holder_id = NULL, lease_expires_at = NULL, updated_at = {now},
  wake_at = CASE
    WHEN EXISTS (SELECT 1 FROM durable_events e WHERE e.run_id = ?1 AND e.key = ?7) THEN {now}
    WHEN stop_requested_at IS NOT NULL AND ?5 <> 'parked' THEN {now}
    WHEN ?9 IS NOT NULL THEN {now+?9}
    ELSE ?8 END
WHERE {fence_self}
RETURNING wake_at

-- release_run --
-- It stays running without a lease, so that it is due at once.
UPDATE durable_runs SET lease_holder_id = NULL, lease_expires_at = NULL, updated_at = {now}
WHERE {fence_self}
RETURNING run_id

-- enqueue_run --
-- The parent of a turn that waits is chosen when it begins. No row: the run is known.
INSERT INTO durable_runs (
  run_id, manifest_hash, project_id, scenario_id, status, state, created_at, updated_at,
  tenant, handler, manifest_json, session_id, turn_index, revision, parent_run_id)
SELECT ?1, ?2, ?3, ?4, 'pending', 'queued', {now}, {now}, ?5, ?6, ?7, ?8,
  CAST(?9 AS INTEGER), CAST(?10 AS INTEGER), ?11
WHERE true
ON CONFLICT (run_id) DO NOTHING
RETURNING {run_columns}

-- requeue_run --
-- A retry by hand: the strikes are forgiven. No row: it does not rest any more.
UPDATE durable_runs SET status = 'pending', state = 'queued', reason = NULL, strikes = 0,
  completed_at = NULL, stop_requested_at = NULL, wake_at = NULL, wake_key = NULL,
  lease_holder_id = NULL, lease_expires_at = NULL, updated_at = {now},
  handler = coalesce(handler, ?2), manifest_json = coalesce(manifest_json, ?3)
WHERE run_id = ?1
  AND (coalesce(status, '') = 'failed' OR (status = 'suspended' AND state = 'parked'))
  AND (lease_holder_id IS NULL OR coalesce(lease_expires_at, '') <= {now})
RETURNING run_id

-- request_stop --
-- The first request counts. Whoever sleeps is woken, so that somebody ends it.
UPDATE durable_runs SET stop_requested_at = coalesce(stop_requested_at, {now}),
  wake_at = CASE WHEN status = 'suspended' AND coalesce(state, '') <> 'parked'
    THEN {now} ELSE wake_at END
WHERE run_id = ?1 AND coalesce(status, '') IN ('pending', 'running', 'suspended')

-- lock_run --
-- No row: there is no such run.
UPDATE durable_runs SET updated_at = updated_at WHERE run_id = ?1 RETURNING run_id

-- wake_on_event --
-- Before the emit, since only the first one wakes; but what a TypeScript worker has emitted woke
-- nobody yet.
UPDATE durable_runs SET wake_at = {now}
WHERE run_id = ?1 AND coalesce(status, '') = 'suspended'
  AND coalesce(state, 'waiting') = 'waiting'
  AND wake_key = ?2
  AND (wake_at IS NULL OR wake_at > {now} OR NOT EXISTS (
    SELECT 1 FROM durable_events WHERE run_id = ?1 AND key = ?2))

-- emit_event --
-- No row: another emit was first.
INSERT INTO durable_events (run_id, key, payload_json, emitted_at)
SELECT ?1, ?2, ?3, {now} WHERE EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1)
ON CONFLICT DO NOTHING
RETURNING key

-- read_event --
-- The winner's, whoever that is.
SELECT key, payload_json, emitted_at FROM durable_events WHERE run_id = ?1 AND key = ?2

-- due_runs --
-- Released or lapsed. A run without a stored manifest waits for its own caller, here and below.
SELECT {due_columns} FROM durable_runs
WHERE handler = ?1 AND status = 'running' AND manifest_json IS NOT NULL
  AND (lease_holder_id IS NULL OR coalesce(lease_expires_at, '') <= {now})
ORDER BY run_id LIMIT CAST(?2 AS INTEGER)

-- locks_of_handler --
-- Whose deaths would make live leases due.
-- Run by run: as a join it would read all the attempts there ever were.
SELECT DISTINCT liveness FROM (
  SELECT (
    SELECT l.liveness FROM perdure_attempts l
    WHERE l.run_id = r.run_id AND l.epoch = r.epoch AND l.holder = r.lease_holder_id) AS liveness
  FROM durable_runs r
  WHERE r.handler = ?1 AND r.status = 'running' AND r.manifest_json IS NOT NULL
    AND r.lease_expires_at > {now}) AS held
WHERE liveness IS NOT NULL

-- lock_of_run --
-- The same of one run, and whoever claims it by name.
SELECT l.liveness FROM durable_runs r
JOIN perdure_attempts l ON l.run_id = r.run_id AND l.epoch = r.epoch
WHERE r.run_id = ?1 AND r.lease_holder_id = l.holder AND l.liveness IS NOT NULL

-- due_orphans --
-- Under a live lease of somebody who is dead: his liveness lock is among ?3.
SELECT {due_columns} FROM durable_runs
WHERE handler = ?1 AND status = 'running' AND manifest_json IS NOT NULL
  AND lease_expires_at > {now} AND (
    SELECT l.liveness FROM perdure_attempts l
    WHERE l.run_id = durable_runs.run_id AND l.epoch = durable_runs.epoch
      AND l.holder = durable_runs.lease_holder_id)
    IN (SELECT d.name FROM {rows ?3: name TEXT} AS d)
ORDER BY run_id LIMIT CAST(?2 AS INTEGER)

-- due_wakes --
-- Asleep until now, or woken by an event or a stop.
SELECT {due_columns} FROM durable_runs
WHERE handler = ?1 AND status = 'suspended' AND manifest_json IS NOT NULL
  AND wake_at IS NOT NULL AND wake_at <= {now} AND coalesce(state, '') <> 'parked'
ORDER BY wake_at LIMIT CAST(?2 AS INTEGER)

-- due_queued --
-- A queued turn is due when its session is free, and none is queued before it.
SELECT {due_columns} FROM durable_runs
WHERE handler = ?1 AND status = 'pending' AND manifest_json IS NOT NULL
  AND (session_id IS NULL OR NOT EXISTS (
    SELECT 1 FROM perdure_sessions s JOIN durable_runs a ON a.run_id = s.active_run_id
    WHERE s.tenant = durable_runs.tenant AND s.session_id = durable_runs.session_id
      AND a.run_id <> durable_runs.run_id
      AND (a.status = 'running'
        OR (a.status = 'suspended' AND coalesce(a.state, '') <> 'parked')))
    AND NOT EXISTS (
      SELECT 1 FROM durable_runs q
      WHERE q.session_id = durable_runs.session_id AND q.status = 'pending'
        AND coalesce(q.tenant, '') = durable_runs.tenant
        AND (q.created_at, q.turn_index, q.revision, q.run_id) < (durable_runs.created_at,
          durable_runs.turn_index, durable_runs.revision, durable_runs.run_id)))
ORDER BY created_at, run_id LIMIT CAST(?2 AS INTEGER)

-- beat --
-- All leases of a process in one statement. Nothing but the deadline moves. A row that somebody
-- has locked is left out, or it would cost all others their leases.
UPDATE durable_runs SET lease_expires_at = {now+?2}
WHERE run_id IN (
  SELECT durable_runs.run_id FROM durable_runs
  JOIN {rows ?1: run_id TEXT, epoch INTEGER, token TEXT, holder TEXT} AS b
    ON durable_runs.run_id = b.run_id AND durable_runs.epoch = b.epoch
      AND durable_runs.token = b.token AND durable_runs.lease_holder_id = b.holder
  WHERE durable_runs.status = 'running' {skip_locked})
RETURNING run_id, epoch, token, lease_holder_id, stop_requested_at

-- standing_leases --
-- Which of the leases that were left out are there still: the others are lost.
SELECT durable_runs.run_id, durable_runs.epoch, durable_runs.token,
  durable_runs.lease_holder_id, durable_runs.stop_requested_at
FROM durable_runs JOIN {rows ?1: run_id TEXT, epoch INTEGER, token TEXT, holder TEXT} AS b
  ON durable_runs.run_id = b.run_id AND durable_runs.epoch = b.epoch
    AND durable_runs.token = b.token AND durable_runs.lease_holder_id = b.holder
WHERE durable_runs.status = 'running'

-- beat_locked --
-- The same for one that was left out: its row is waited for.
UPDATE durable_runs SET lease_expires_at = {now+?2}
FROM {rows ?1: run_id TEXT, epoch INTEGER, token TEXT, holder TEXT} AS b
WHERE durable_runs.run_id = b.run_id AND durable_runs.epoch = b.epoch
  AND durable_runs.token = b.token AND durable_runs.lease_holder_id = b.holder
  AND durable_runs.status = 'running'
RETURNING durable_runs.run_id, durable_runs.epoch, durable_runs.token,
  durable_runs.lease_holder_id, durable_runs.stop_requested_at

-- due_deliveries --
-- Within a run the first waiting one only; it counts once the run has ended.
SELECT o.run_id, o.position FROM perdure_outbox o
WHERE o.handler = ?1 AND o.state = 'waiting' AND o.due_at <= {now}
  AND (o.claimed_until IS NULL OR o.claimed_until <= {now})
  AND EXISTS (
    SELECT 1 FROM durable_runs r
    WHERE r.run_id = o.run_id AND r.status IN ('completed', 'failed'))
  AND NOT EXISTS (
    SELECT 1 FROM perdure_outbox p
    WHERE p.run_id = o.run_id AND p.position < o.position AND p.state = 'waiting')
ORDER BY o.due_at LIMIT CAST(?2 AS INTEGER)

-- waiting_delivery --
-- The first waiting one of a run; whether it is due, its claim decides.
SELECT run_id, position FROM perdure_outbox
WHERE run_id = ?1 AND state = 'waiting' ORDER BY position LIMIT 1

-- claim_delivery --
-- Whatever was read before, only this gives the right to deliver. One whose last try was never
-- settled is dead instead. The same token is the same claim, whose reply was lost.
UPDATE perdure_outbox SET
  state = CASE WHEN token = ?3 OR tries < CAST(?6 AS INTEGER) THEN state ELSE 'dead' END,
  token = CASE WHEN token = ?3 OR tries < CAST(?6 AS INTEGER) THEN ?3 END,
  claimed_until = CASE WHEN token = ?3 OR tries < CAST(?6 AS INTEGER) THEN {now+?4} END,
  last_error = CASE WHEN token = ?3 OR tries < CAST(?6 AS INTEGER) THEN last_error ELSE ?7 END,
  tries = CASE WHEN token = ?3 OR tries >= CAST(?6 AS INTEGER) THEN tries ELSE tries + 1 END
WHERE run_id = ?1 AND position = CAST(?2 AS INTEGER) AND state = 'waiting'
  AND handler IN (SELECT h.handler FROM {rows ?5: handler TEXT} AS h)
  AND due_at <= {now} AND (claimed_until IS NULL OR claimed_until <= {now} OR token = ?3)
  AND EXISTS (
    SELECT 1 FROM durable_runs r
    WHERE r.run_id = ?1 AND r.status IN ('completed', 'failed'))
  AND NOT EXISTS (
    SELECT 1 FROM perdure_outbox p
    WHERE p.run_id = ?1 AND p.position < CAST(?2 AS INTEGER) AND p.state = 'waiting')
RETURNING {delivery_columns}

-- settle_delivery --
-- By its own token: whoever claimed it since decides alone.
UPDATE perdure_outbox SET state = ?4,
  due_at = CASE WHEN ?4 = 'waiting' THEN {now+?5} ELSE due_at END,
  last_error = ?6, token = NULL, claimed_until = NULL,
  delivered_at = CASE WHEN ?4 = 'delivered' THEN {now} END
WHERE run_id = ?1 AND position = CAST(?2 AS INTEGER) AND token = ?3 AND state = 'waiting'
RETURNING run_id

-- list_runs --
-- Behind a place in the order, not behind a number of rows: no page gets slower.
SELECT {run_columns}, {owner}, {now}, {answer}
FROM durable_runs
WHERE tenant = ?1 AND (?2 IS NULL OR {state} = ?2)
  AND (created_at, run_id) > (
    coalesce((SELECT a.created_at FROM durable_runs a WHERE a.run_id = ?3), ''),
    coalesce(?3, ''))
ORDER BY created_at, run_id LIMIT CAST(?4 AS INTEGER)

-- list_session --
-- The turns of a chat, behind the place of ?7 (turn), ?8 (revision) and ?3.
SELECT {run_columns}, {owner}, {now}, {answer}
FROM durable_runs
WHERE tenant = ?1 AND session_id = ?6 AND (?2 IS NULL OR {state} = ?2)
  AND (?3 IS NULL
    OR (turn_index, revision, run_id) > (CAST(?7 AS INTEGER), CAST(?8 AS INTEGER), ?3))
ORDER BY turn_index, revision, run_id LIMIT CAST(?4 AS INTEGER)

-- list_turn --
-- The same of the revisions of one turn, ?9, so that they are found among many.
SELECT {run_columns}, {owner}, {now}, {answer}
FROM durable_runs
WHERE tenant = ?1 AND session_id = ?6 AND turn_index = CAST(?9 AS INTEGER)
  AND (?2 IS NULL OR {state} = ?2)
  AND (?3 IS NULL
    OR (turn_index, revision, run_id) > (CAST(?7 AS INTEGER), CAST(?8 AS INTEGER), ?3))
ORDER BY turn_index, revision, run_id LIMIT CAST(?4 AS INTEGER)

-- list_foreign --
-- Turns of TypeScript workers that nobody has put in their place in the session yet: all runs
-- whose ids lie between ?1 and ?2, in the order of bytes.
SELECT {run_columns}, {owner}, {now}, {answer}
FROM durable_runs WHERE {foreign} AND run_id > ?1 AND run_id < ?2

-- list_ancestors --
-- From parent to parent, each found by its id: what it costs does not depend on the session.
WITH RECURSIVE line (at_id, distance) AS (
  SELECT parent_run_id, 1 FROM durable_runs WHERE run_id = ?3 AND CAST(?4 AS INTEGER) > 0
  UNION ALL
  SELECT p.parent_run_id, distance + 1
  FROM line JOIN durable_runs p ON p.run_id = line.at_id
  WHERE distance < CAST(?4 AS INTEGER))
SELECT {run_columns}, {owner}, {now}, distance, {answer}
FROM line JOIN durable_runs ON durable_runs.run_id = line.at_id
WHERE durable_runs.tenant = ?1

-- read_attempts --
-- This and the next three are for people and reports.
SELECT epoch, holder, started_at, ended_at, ended, code_version, liveness, error_json
FROM perdure_attempts WHERE run_id = ?1 ORDER BY epoch

-- read_events --
SELECT key, payload_json, emitted_at FROM durable_events WHERE run_id = ?1 ORDER BY key

-- read_usage --
SELECT {usage_columns} FROM perdure_usage WHERE run_id = ?1 ORDER BY epoch, call

-- read_deliveries --
SELECT {delivery_columns} FROM perdure_outbox WHERE run_id = ?1 ORDER BY position

-- delete_run --
-- No row: there is none, or somebody may still write to it.
DELETE FROM durable_runs
WHERE run_id = ?1
  AND (status IN ('pending', 'completed', 'failed')
    OR (status = 'suspended' AND state = 'parked'))
  AND (lease_holder_id IS NULL OR coalesce(lease_expires_at, '') <= {now})
RETURNING run_id

-- delete_steps --
-- This and the next five take along all that belongs to a deleted run.
DELETE FROM durable_steps WHERE run_id = ?1

-- delete_events --
DELETE FROM durable_events WHERE run_id = ?1

-- delete_attempts --
DELETE FROM perdure_attempts WHERE run_id = ?1

-- delete_frames --
DELETE FROM perdure_frames WHERE run_id = ?1 RETURNING first_seq

-- delete_deliveries --
DELETE FROM perdure_outbox WHERE run_id = ?1

-- delete_usage --
DELETE FROM perdure_usage WHERE run_id = ?1

-- expire_frames --
-- Frames of a run that may still go on are part of its stream, so only an end lets them go.
UPDATE durable_runs SET frames_expired_at = {now} WHERE run_id = ?1 AND status = 'completed'
RETURNING run_id

-- find_runs --
-- Over all tenants, the newest first, behind the run ?6.
SELECT {run_columns}, {owner}, {now}
FROM durable_runs
WHERE {wanted}
ORDER BY created_at DESC, run_id DESC LIMIT CAST(?7 AS INTEGER)

-- find_unfinished_runs --
-- The same for the states that few runs are in, by the index that has only those.
SELECT {run_columns}, {owner}, {now}
FROM durable_runs
WHERE status <> 'completed' AND {wanted}
ORDER BY created_at DESC, run_id DESC LIMIT CAST(?7 AS INTEGER)

-- find_session_runs --
-- The same within one session, which is small.
SELECT {run_columns}, {owner}, {now}
FROM durable_runs
WHERE tenant = ?1 AND session_id = ?3 AND {wanted_there}
ORDER BY coalesce(created_at, '') DESC, run_id DESC LIMIT CAST(?7 AS INTEGER)

-- find_tenant_runs --
-- The same within one tenant.
SELECT {run_columns}, {owner}, {now}
FROM durable_runs
WHERE tenant = ?1 AND {wanted}
ORDER BY created_at DESC, run_id DESC LIMIT CAST(?7 AS INTEGER)

-- skip_runs --
-- From the index alone: the last of ?2 runs behind the run ?1.
SELECT created_at, run_id FROM durable_runs WHERE {behind}
ORDER BY created_at DESC, run_id DESC LIMIT 1 OFFSET CAST(?2 AS INTEGER)

-- skip_tenant_runs --
SELECT created_at, run_id FROM durable_runs WHERE tenant = ?3 AND {behind}
ORDER BY created_at DESC, run_id DESC LIMIT 1 OFFSET CAST(?2 AS INTEGER)

-- next_framed --
-- Hops from run to run with frames, so those without cost nothing.
WITH RECURSIVE framed (run_id, hops) AS (
  SELECT (SELECT min(run_id) FROM perdure_frames WHERE run_id > ?2), CAST(?3 AS INTEGER)
  UNION ALL
  SELECT (SELECT min(f.run_id) FROM perdure_frames f WHERE f.run_id > framed.run_id), hops - 1
  FROM framed WHERE framed.run_id IS NOT NULL AND hops > 1)
SELECT framed.run_id, EXISTS (
  SELECT 1 FROM durable_runs r
  WHERE r.run_id = framed.run_id AND r.status = 'completed' AND r.completed_at <= ?1)
FROM framed WHERE framed.run_id IS NOT NULL

-- find_ended --
-- By the moment of the end: {over} says what is over and done with by ?1.
SELECT completed_at, run_id FROM durable_runs
WHERE completed_at IS NOT NULL AND (completed_at, run_id) > (?2, ?3) AND {over}
ORDER BY completed_at, run_id LIMIT CAST(?4 AS INTEGER)

-- remove_ended --
-- It is judged again where it is deleted. No row: it is not over and done with (any more).
DELETE FROM durable_runs WHERE run_id = ?2 AND {over}
RETURNING run_id

-- sum_usage --
-- What calls came to, in groups by ?5: a row for each group, currency and version of prices. Of the
-- three ways to the wanted calls only one finds any; each is led by an index of its own. ?6 is the
-- number of groups.
WITH calls AS (
  SELECT run_id, tenant, session_id, {usage_columns} FROM perdure_usage
  WHERE ?1 IS NULL AND (?2 IS NULL OR session_id = ?2) AND {called}
  UNION ALL
  SELECT run_id, tenant, session_id, {usage_columns} FROM perdure_usage
  WHERE ?2 IS NULL AND tenant = ?1 AND {called}
  UNION ALL
  SELECT run_id, tenant, session_id, {usage_columns} FROM perdure_usage
  WHERE {called_there}),
named AS (
  SELECT CASE ?5 WHEN 'run' THEN run_id WHEN 'session' THEN session_id WHEN 'tenant' THEN tenant
      WHEN 'day' THEN substr(intended_at, 1, 10) WHEN 'model' THEN model END AS name,
    CASE WHEN ?5 IN ('run', 'session', 'tenant') THEN tenant END AS whose,
    calls.*
  FROM calls),
added AS (
  SELECT name, whose, currency, price_version, {sums}
  FROM named GROUP BY name, whose, currency, price_version),
placed AS (
  SELECT added.*, max(last_at) OVER (PARTITION BY name, whose) AS newest_at FROM added),
ranked AS (
  SELECT placed.*, dense_rank() OVER (
    ORDER BY newest_at DESC, coalesce(name, ''), coalesce(whose, '')) AS place
  FROM placed)
SELECT name, whose, currency, price_version, calls, settled, unknown, running, tokens_in,
  tokens_out, tokens_cached, tokens_reasoning, tokens_cache_written, uncounted, cost_nanos,
  unpriced, first_at, last_at
FROM ranked WHERE place <= coalesce(CAST(?6 AS INTEGER), place)

-- find_newest_calls --
-- Backwards from the call at ?3 to ?6.
SELECT run_id, tenant, session_id, intended_at, epoch, call FROM perdure_usage
WHERE (intended_at, run_id, epoch, call)
    < (?3, ?4, CAST(?5 AS INTEGER), CAST(?6 AS INTEGER))
  AND intended_at >= coalesce(?1, '') AND intended_at < coalesce(?2, '9')
ORDER BY intended_at DESC, run_id DESC, epoch DESC, call DESC LIMIT CAST(?7 AS INTEGER)

-- sum_runs --
-- What `sum_usage` says of the runs in ?3 alone.
SELECT run_id, tenant, currency, price_version, {sums}
FROM (
  SELECT run_id, tenant, {usage_columns} FROM perdure_usage
  WHERE run_id IN (SELECT l.run_id FROM {rows ?3: run_id TEXT} l)
    AND coalesce(intended_at, '') >= coalesce(?1, '')
    AND coalesce(intended_at, '') < coalesce(?2, '9')) AS calls
GROUP BY run_id, tenant, currency, price_version

-- sum_sessions --
-- The same of the sessions in ?3.
SELECT session_id, tenant, currency, price_version, {sums}
FROM (
  SELECT tenant, session_id, {usage_columns} FROM perdure_usage
  WHERE run_id IN (
      SELECT r.run_id FROM {rows ?3: session_id TEXT, tenant TEXT} l
      JOIN durable_runs r ON r.tenant = l.tenant AND r.session_id = l.session_id)
    AND coalesce(intended_at, '') >= coalesce(?1, '')
    AND coalesce(intended_at, '') < coalesce(?2, '9')) AS calls
GROUP BY session_id, tenant, currency, price_version

-- find_unpriced --
-- What a table may have the price of, behind the call at ?5 to ?8.
SELECT run_id, tenant, session_id, {usage_columns} FROM perdure_usage
WHERE (intended_at, run_id, epoch, call)
    > (?5, ?6, CAST(?7 AS INTEGER), CAST(?8 AS INTEGER))
  AND {called} AND (?1 IS NULL OR tenant = ?1) AND (?2 IS NULL OR session_id = ?2)
  AND state = 'settled' AND cost_nanos IS NULL
  AND model IS NOT NULL AND tokens_in IS NOT NULL AND tokens_out IS NOT NULL
ORDER BY intended_at, run_id, epoch, call LIMIT CAST(?9 AS INTEGER)

-- find_session_unpriced --
-- The same within one session, which is small.
SELECT run_id, tenant, session_id, {usage_columns} FROM perdure_usage
WHERE (coalesce(intended_at, ''), run_id, epoch, call)
    > (?5, ?6, CAST(?7 AS INTEGER), CAST(?8 AS INTEGER))
  AND {called_there}
  AND state = 'settled' AND cost_nanos IS NULL
  AND model IS NOT NULL AND tokens_in IS NOT NULL AND tokens_out IS NOT NULL
ORDER BY coalesce(intended_at, ''), run_id, epoch, call LIMIT CAST(?9 AS INTEGER)

-- find_open_deliveries --
-- What waits or is dead, by the index that has only those.
SELECT {delivery_columns} FROM perdure_outbox
WHERE state = ?1 AND state <> 'delivered'
  AND (run_id, position) > (?2, CAST(?3 AS INTEGER))
ORDER BY run_id, position LIMIT CAST(?4 AS INTEGER)

-- find_deliveries --
SELECT {delivery_columns} FROM perdure_outbox
WHERE state = ?1 AND (run_id, position) > (?2, CAST(?3 AS INTEGER))
ORDER BY run_id, position LIMIT CAST(?4 AS INTEGER)

-- retry_delivery --
-- A dead one gets all of its tries again. A claim that somebody holds stays his.
UPDATE perdure_outbox SET due_at = {now},
  tries = CASE WHEN state = 'dead' THEN 0 ELSE tries END, state = 'waiting'
WHERE run_id = ?1 AND position = CAST(?2 AS INTEGER) AND state <> 'delivered'
RETURNING {delivery_columns}

-- read_now --
SELECT {now}

-- count_runs --
SELECT {state}, count(*), max(updated_at) FROM durable_runs GROUP BY 1

-- count_deliveries --
SELECT state, count(*), min(due_at) FROM perdure_outbox WHERE state <> 'delivered' GROUP BY state

-- find_sessions --
-- By the index that leads from users to their sessions.
SELECT session_id FROM perdure_sessions
WHERE tenant = ?1 AND owner_id = ?2 AND session_id > ?3
ORDER BY session_id LIMIT CAST(?4 AS INTEGER)

-- session_turns --
SELECT run_id, {state} FROM durable_runs WHERE tenant = ?1 AND session_id = ?2

-- hold_session --
-- Whoever begins a turn takes this lock first. No row: it is gone, or somebody else's.
UPDATE perdure_sessions SET updated_at = {now}
WHERE tenant = ?1 AND session_id = ?2 AND (?3 IS NULL OR owner_id IS NULL OR owner_id = ?3)
RETURNING session_id

-- remove_turns --
-- Those that were found and rest; ?4: or are queued. Some may be of TypeScript workers.
DELETE FROM durable_runs
WHERE tenant = ?1 AND (session_id = ?2 OR session_id IS NULL)
  AND run_id IN (SELECT l.run_id FROM {rows ?3: run_id TEXT} l)
  AND (status IN ('completed', 'failed') OR (status = 'suspended' AND state = 'parked')
    OR (status = 'pending' AND CAST(?4 AS INTEGER) = 1))

-- remove_steps --
-- This and the next five take along all that belongs to the turns.
DELETE FROM durable_steps WHERE run_id IN (SELECT l.run_id FROM {rows ?1: run_id TEXT} l)

-- remove_events --
DELETE FROM durable_events WHERE run_id IN (SELECT l.run_id FROM {rows ?1: run_id TEXT} l)

-- remove_attempts --
DELETE FROM perdure_attempts WHERE run_id IN (SELECT l.run_id FROM {rows ?1: run_id TEXT} l)

-- remove_frames --
DELETE FROM perdure_frames WHERE run_id IN (SELECT l.run_id FROM {rows ?1: run_id TEXT} l)

-- remove_deliveries --
DELETE FROM perdure_outbox WHERE run_id IN (SELECT l.run_id FROM {rows ?1: run_id TEXT} l)

-- remove_usage --
DELETE FROM perdure_usage WHERE run_id IN (SELECT l.run_id FROM {rows ?1: run_id TEXT} l)

-- remove_session --
-- No row: a turn is left, so that nothing of all this happens.
DELETE FROM perdure_sessions
WHERE tenant = ?1 AND session_id = ?2 AND NOT EXISTS (
  SELECT 1 FROM durable_runs t WHERE t.tenant = ?1 AND t.session_id = ?2)
RETURNING session_id

-- put_schedule --
-- With the old timing it stays due when it was: a worker that starts must not move that on.
INSERT INTO perdure_schedules (
  tenant, name, task, manifest_json, cron, every_ms, timezone, catch_up, overlap, next_due_at,
  created_at, updated_at)
SELECT ?1, ?2, ?3, ?4, ?5, CAST(?6 AS BIGINT), ?7, ?8, ?9, ?10, {now}, {now} WHERE true
ON CONFLICT (tenant, name) DO UPDATE SET
  task = excluded.task, manifest_json = excluded.manifest_json, cron = excluded.cron,
  every_ms = excluded.every_ms, timezone = excluded.timezone, catch_up = excluded.catch_up,
  overlap = excluded.overlap, updated_at = excluded.updated_at,
  next_due_at = CASE
    WHEN coalesce(perdure_schedules.cron, '') = coalesce(excluded.cron, '')
      AND coalesce(perdure_schedules.every_ms, 0) = coalesce(excluded.every_ms, 0)
      AND perdure_schedules.timezone = excluded.timezone
    THEN perdure_schedules.next_due_at ELSE excluded.next_due_at END
RETURNING {schedule_columns}

-- find_schedule --
SELECT {schedule_columns} FROM perdure_schedules WHERE tenant = ?1 AND name = ?2

-- list_schedules --
SELECT {schedule_columns} FROM perdure_schedules WHERE tenant = ?1 ORDER BY name

-- upcoming_schedules --
-- Over all tenants, those of one task.
SELECT {schedule_columns} FROM perdure_schedules
WHERE task = ?1 AND paused_at IS NULL
ORDER BY next_due_at, tenant, name LIMIT CAST(?2 AS INTEGER)

-- pause_schedule --
UPDATE perdure_schedules SET paused_at = coalesce(paused_at, {now}), updated_at = {now}
WHERE tenant = ?1 AND name = ?2

-- resume_schedule --
UPDATE perdure_schedules SET paused_at = NULL, next_due_at = ?3, updated_at = {now}
WHERE tenant = ?1 AND name = ?2 AND paused_at IS NOT NULL

-- remove_schedule --
DELETE FROM perdure_schedules WHERE tenant = ?1 AND name = ?2 RETURNING name

-- fire_schedule --
-- Whoever moves the due time on fires. No row: somebody was faster, or it is paused or gone.
UPDATE perdure_schedules SET
  next_due_at = ?4, last_due_at = ?3, last_run_id = coalesce(?5, last_run_id), updated_at = {now}
WHERE tenant = ?1 AND name = ?2 AND next_due_at = ?3 AND paused_at IS NULL
RETURNING name
