-- Settles leased jobs as succeeded.
-- KEYS  meta, leases, lease deadlines, settled
-- ARGV  deduplication window ms, success retention ms, then runs of jobs of one fetch: nonce, kind (ACK_), count and
--       per job its id; with results also its result: length of the content type (1), content type, data
-- RETURNS {now ms, number and code (CODE_) of each job that was not simply applied; nothing if there is none}
-- MOVES  LEASED → SUCCEEDED
local window_ms, success_retention = tonumber(ARGV[1]), tonumber(ARGV[2])
local ids, runs, at, has_results = {}, {}, 3, false
while ARGV[at] do
  local stride, count, first = ARGV[at + 1] == ACK_WITH_RESULTS and 2 or 1, tonumber(ARGV[at + 2]), #ids
  for k = 1, count do ids[first + k] = ARGV[at + 3 + (k - 1) * stride] end
  has_results = has_results or stride == 2
  runs[#runs + 1] = { nonce = ARGV[at], first = first + 1, last = first + count, result_at = stride == 2 and at + 4 }
  at = at + 3 + count * stride
end

-- Decide.
local values = call('HMGET', KEYS[2], unpack(ids))
local meta = call('HMGET', KEYS[1], META_GENERATION, META_GENERATION_START, META_WAITED_UNTIL)
local done, records, memory, kept, codes, stale, seen = {}, {}, {}, nil, nil, nil, nil
local record_key = base .. KEY_RECORD
local n = 0
for _, run in ipairs(runs) do
  local nonce, result_at = run.nonce, run.result_at
  local memory_of_run = STATE_SUCCEEDED .. sub(nonce, 1, MEMORY_NONCE_BYTES)
  -- The leases of a fetch have the same value, but for the flags.
  local plain
  for k = run.first, run.last do
    local id, value = ids[k], values[k]
    if value and (value == plain or #value >= LEASE_BYTES and sub(value, 1, LEASE_NONCE_END) == nonce) then
      local flags = value == plain and 0 or byte(value, LEASE_FLAGS_AT) % FLAG_LARGE
      if flags == 0 then plain = value end
      n = n + 1
      done[n] = id
      memory[2 * n - 1], memory[2 * n] = id, memory_of_run
      -- The same lease twice: the first counts. (Two plain ones do the same.)
      if not (seen and seen[id]) then
        if flags == 0 and not result_at then
          records[#records + 1] = record_key .. id
        else
          kept = kept or {}
          local result = result_at and ARGV[result_at + (k - run.first) * 2] or ''
          kept[#kept + 1] = { id = id, flags = flags, result = result }
          touch(base .. KEY_STATE .. id, record_key .. id, base .. KEY_LOG .. id)
          touch(base .. KEY_UNIQUE, base .. KEY_START_BY)
        end
      end
      if has_results or flags > 0 then
        seen = seen or {}
        seen[id] = true
      end
    else
      stale = stale or {}
      stale[#stale + 1] = { number = k, id = id, nonce = nonce }
    end
  end
end
if stale then
  --@ define codes_of_stale
  codes = codes_of_stale(meta[1], stale)
end
if n == 0 then return { now, codes } end
local start = tonumber(meta[2])
local is_same_generation = tonumber(meta[1]) and start and now - start < window_ms
touch(KEYS[3], KEYS[4], base .. KEY_MEMORY .. (meta[1] or ''), unpack(records))
touch(base .. KEY_WAITERS)

-- Act.
local memory_key
if is_same_generation then
  memory_key = base .. KEY_MEMORY .. meta[1]
else
  --@ define generation, begin
  memory_key = begin(generation(meta[1], meta[2], window_ms))
end
call('HSET', memory_key, unpack(memory))
if kept then
  --@ define keep_succeeded
  for _, job in ipairs(kept) do keep_succeeded(job, success_retention) end
end
call('ZREM', KEYS[3], unpack(done))
if call('HDEL', KEYS[2], unpack(done)) < n then
  --@ define add_repeated
  codes = add_repeated(codes or {}, runs, ids, values)
end
if #records > 0 then call('UNLINK', unpack(records)) end
if meta[3] then
  --@ define notify_waiters
  notify_waiters(meta[3], done)
end
return { now, codes }
