-- What the keys of a queue say of a job, for the audit: audit.lua reads it, repair.lua checks that nothing has changed.

-- The beginning of a record that says which job it is; FOREIGN where the key is not ours or empty.
local function record_fact(key)
  local record, foreign = try('GETRANGE', key, '0', FACT_RECORD_BYTES)
  if foreign or record == '' and call('EXISTS', key) == 1 then return FACT_FOREIGN end
  return record
end

-- A value, or FACT_FOREIGN for an empty one: '' says that there is none.
local function present(value) return value and (value == '' and FACT_FOREIGN or value) or '' end

-- Which keys of a job expire, as the letters of their names.
local function expiring(id)
  local letters = ''
  for _, part in ipairs({ KEY_RECORD, KEY_STATE }) do
    if call('PTTL', base .. part .. id) >= 0 then letters = letters .. part end
  end
  return letters
end

-- The facts of one job, FACT_COUNT texts in the order of FACT_; '' where there is nothing.
local function facts_of(id, gen)
  local state_key, facts = base .. KEY_STATE .. id, {}
  local state, foreign = try(
    'HMGET', state_key, FIELD_FINAL_STATE, FIELD_UNIQUE_KEY, FIELD_UNIQUE_SCOPE, FIELD_FINAL_AT, FIELD_ATTEMPTS,
    FIELD_LOSSES, FIELD_UNCONFIRMED, FIELD_RELEASES, FIELD_EDITS, FIELD_REDRIVES
  )
  state = state or {}
  local counters = ''
  for k = 4, 10 do counters = counters .. (state[k] or '') .. '|' end
  local memory = gen and (call('HGET', base .. KEY_MEMORY .. gen, id)
    or call('HGET', base .. KEY_MEMORY .. (gen - 1), id)) or ''
  facts[FACT_RECORD] = record_fact(base .. KEY_RECORD .. id)
  facts[FACT_STATE] = foreign and FACT_FOREIGN or call('EXISTS', state_key) == 1 and FACT_PRESENT or ''
  facts[FACT_FINAL] = state[1] or ''
  facts[FACT_UNIQUE_KEY] = state[2] or ''
  facts[FACT_UNIQUE_SCOPE] = state[3] or ''
  facts[FACT_HOLDER] = state[2] and sub(call('HGET', base .. KEY_UNIQUE, state[2]) or '', 1, 16) or ''
  facts[FACT_COUNTERS] = counters
  facts[FACT_LEASE] = sub(present(call('HGET', base .. KEY_LEASES, id)), 1, LEASE_BYTES)
  facts[FACT_DEADLINE] = call('ZSCORE', base .. KEY_DEADLINES, id) and FACT_PRESENT or ''
  facts[FACT_SCHEDULED] = call('ZSCORE', base .. KEY_SCHEDULED, id) or ''
  facts[FACT_DEAD] = call('ZSCORE', base .. KEY_DEAD, id) or ''
  facts[FACT_SETTLED] = call('ZSCORE', base .. KEY_SETTLED, id) or ''
  facts[FACT_START_BY] = call('ZSCORE', base .. KEY_START_BY, id) or ''
  facts[FACT_QUARANTINED] = call('HEXISTS', base .. KEY_QUARANTINE, id) == 1 and FACT_PRESENT or ''
  facts[FACT_SET_ASIDE] = call('EXISTS', base .. KEY_QUARANTINED_RECORD .. id) == 1 and FACT_PRESENT or ''
  facts[FACT_MEMORY] = memory
  facts[FACT_EXPIRES] = expiring(id)
  local length, foreign_log = try('LLEN', base .. KEY_LOG .. id)
  facts[FACT_LOG] = foreign_log and FACT_FOREIGN or length > 0 and tostring(length) or ''
  return facts
end
