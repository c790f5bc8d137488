-- The acts by their letters (ACT_): for alter.lua and step.lua.

-- Does one act on one job. Returns the outcome (OUTCOME_), the letter of the state that the job is in afterwards (''
-- unknown), and what else there is to say: of UNIQUE_TAKEN the id that has the unique key, else ''. `params`: broker
-- (its tag; NOBODY: this broker is to be notified too), window_ms, failure_retention; priority (a digit, '' the same)
-- of REDRIVE and REPRIORITIZE; delay_ms of REDRIVE; reason and grace_ms of CANCEL; without_loss of EXPIRE_LEASE; etag
-- and record of EDIT and RESTAMP.
local function act(kind, id, params)
  local job, outcome, state, detail = find_job(id)
  if not job then return outcome, state, '' end
  if kind == ACT_REDRIVE then
    outcome, state, detail = redrive(job, params)
  elseif kind == ACT_RUN_NOW then
    outcome, state = run_now(job)
  elseif kind == ACT_CANCEL then
    outcome, state = cancel(job, params)
  elseif kind == ACT_DELETE then
    outcome, state = delete(job, params)
  elseif kind == ACT_REPRIORITIZE then
    outcome, state = reprioritize(job, params)
  elseif kind == ACT_EXPIRE_LEASE then
    outcome, state = expire_lease(job, params)
  else
    outcome, state = rewrite(job, params, kind == ACT_EDIT)
  end
  return outcome, state, detail or ''
end
