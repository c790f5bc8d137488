-- Steps of an ack that few jobs need: for ack.lua.

-- Number and code of each job whose lease is not there.
local function codes_of_stale(meta_gen, stale)
  local ids, codes = {}, {}
  for m, job in ipairs(stale) do ids[m] = job.id end
  local memories = remembered(meta_gen, ids) or {}
  for m, job in ipairs(stale) do
    local memory, code = memories[m], CODE_LEASE_LOST
    if memory and sub(memory, MEMORY_NONCE_AT, MEMORY_NONCE_END) == sub(job.nonce, 1, MEMORY_NONCE_BYTES) then
      code = sub(memory, 1, 1) == STATE_SUCCEEDED and CODE_ALREADY or CODE_OTHERWISE
    end
    codes[#codes + 1] = job.number
    codes[#codes + 1] = code
  end
  return codes
end

-- Ends a job that has a result, a retention of its own, or more to clear away than its record.
local function keep_succeeded(job, success_retention)
  local id, flags, result = job.id, job.flags, job.result
  release_unique(id, flags)
  if has(flags, FLAG_START_BY) then call('ZREM', base .. KEY_START_BY, id) end
  local fields, until_ms = {}, 0
  if result ~= '' then
    local type_len = byte(result, 1)
    fields = { FIELD_RESULT_TYPE, sub(result, 2, 1 + type_len), FIELD_RESULT_DATA, sub(result, 2 + type_len) }
    until_ms = now + success_retention
  end
  if has(flags, FLAG_RETENTION) then until_ms = now + retention(read_head(id), 0) end
  keep_settled(id, STATE_SUCCEEDED, until_ms, fields, has(flags, FLAG_STATE))
end

-- Adds the codes of leases that are in a call more than once: the first settled them.
local function add_repeated(codes, runs, ids, values)
  local settled = {}
  for _, run in ipairs(runs) do
    for k = run.first, run.last do
      local value = values[k]
      if value and sub(value, 1, LEASE_NONCE_END) == run.nonce then
        if settled[ids[k]] then
          codes[#codes + 1] = k
          codes[#codes + 1] = CODE_ALREADY
        end
        settled[ids[k]] = true
      end
    end
  end
  return codes
end
