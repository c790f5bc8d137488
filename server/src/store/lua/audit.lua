-- Says what the keys of a queue hold, for the audit.
-- KEYS  meta
-- ARGV  questions, each a kind (AUDIT_) and a name: the id of a job; a lane; a tombstone (id and lane); a lane; a
--       unique key; the number of a generation of the memory; the end of a key
-- RETURNS {now ms, the texts that answer each question, one after the other: FACT_COUNT for a job (FACT_); of a lane
--         its length or FACT_FOREIGN, its first entry, its score in the lane index; of a tombstone or the tombstones
--         of a lane their number; of a unique key its value and the end of its window; of a generation FACT_PRESENT if
--         it is there, and the current one; of the policy its beginning, its version and the gate; of a key its type
--         and its time to live in ms or a negative number}
-- MOVES  -
local meta_gen = tonumber(call('HGET', KEYS[1], META_GENERATION))
local reply = { now }
local function answer(text) reply[#reply + 1] = text or '' end

for k = 1, #ARGV, 2 do
  local kind, name = ARGV[k], ARGV[k + 1]
  if kind == AUDIT_JOB then
    for _, fact in ipairs(facts_of(name, meta_gen)) do answer(fact) end
  elseif kind == AUDIT_LANE then
    local length, foreign = try('LLEN', base .. KEY_LANE .. name)
    answer(foreign and FACT_FOREIGN or tostring(length))
    answer(length and length > 0 and call('LINDEX', base .. KEY_LANE .. name, '0'))
    answer(call('ZSCORE', base .. KEY_LANES, name))
  elseif kind == AUDIT_TOMBSTONES then
    answer(call('HGET', base .. KEY_TOMBSTONES, name))
  elseif kind == AUDIT_LANE_TOMBSTONES then
    answer(call('HGET', base .. KEY_TOMBSTONE_COUNTS, name))
  elseif kind == AUDIT_UNIQUE then
    answer(call('HGET', base .. KEY_UNIQUE, name))
    answer(call('ZSCORE', base .. KEY_UNIQUE_WINDOWS, name))
  elseif kind == AUDIT_MEMORY then
    answer(call('EXISTS', base .. KEY_MEMORY .. name) == 1 and FACT_PRESENT)
    answer(meta_gen and tostring(meta_gen))
  elseif kind == AUDIT_POLICY then
    answer(call('GETRANGE', base .. KEY_POLICY, '0', FACT_POLICY_BYTES))
    answer(call('HGET', KEYS[1], META_POLICY_VERSION))
    answer(call('HGET', KEYS[1], META_ENQUEUE_GATE))
  else
    answer(call('TYPE', base .. name).ok)
    answer(tostring(call('PTTL', base .. name)))
  end
end
return reply
