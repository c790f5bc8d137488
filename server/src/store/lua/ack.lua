-- Settles leased jobs as done.
-- KEYS  meta, leases, lease deadlines, settled
-- ARGV  dedupe window ms, dedupe ids at most, success retention ms, then per job: id, nonce, result ('' none, else length of the content type (1), content type, data)
-- RETURNS {now ms, code of each job that was not simply applied: number, code}
--         codes: 1 settled so before, 2 lease lost, 3 settled otherwise before
-- MOVES  LEASED → SUCCEEDED
local window_ms, max_ids, success_retention = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local count = (#ARGV - 3) / 3
local ids = {}
for k = 1, count do ids[k] = ARGV[3 * k + 1] end

-- decide
local values = call('HMGET', KEYS[2], unpack(ids))
local meta = call('HMGET', KEYS[1], 'dg', 'ds', 'w')
local done, bodies, kept, memory, codes, stale, seen = {}, {}, {}, {}, {}, nil, {}
for k = 1, count do
  local value, nonce = values[k], ARGV[3 * k + 2]
  if value and seen[ids[k]] == nonce then
    codes[#codes + 1] = k
    codes[#codes + 1] = 1
  elseif value and sub(value, 1, 16) == nonce then
    local id, n = ids[k], #done + 1
    seen[id] = nonce
    done[n] = id
    memory[2 * n - 1], memory[2 * n] = id, STATE_SUCCEEDED .. sub(nonce, 1, 8)
    local flags = byte(value, 23)
    if flags > 0 or ARGV[3 * k + 3] ~= '' then
      kept[#kept + 1] = { id, flags, ARGV[3 * k + 3] }
      touch(base .. 's' .. id, base .. 'j' .. id, base .. 'u')
    else
      bodies[#bodies + 1] = base .. 'j' .. id
    end
  else
    stale = stale or {}
    stale[#stale + 1] = k
  end
end
if stale then
  local asked = {}
  for n, k in ipairs(stale) do asked[n] = ids[k] end
  local before = remembered(meta[1], asked) or {}
  for n, k in ipairs(stale) do
    local code = 2
    if before[n] and sub(before[n], 2, 9) == sub(ARGV[3 * k + 2], 1, 8) then
      code = sub(before[n], 1, 1) == STATE_SUCCEEDED and 1 or 3
    end
    codes[#codes + 1] = k
    codes[#codes + 1] = code
  end
end
if #done == 0 then return { now, codes } end
local memories = generation(meta[1], meta[2], window_ms, max_ids)
touch(KEYS[3], KEYS[4], unpack(bodies))
if somebody_waits(meta[3]) then touch(base .. 'wt') end

-- act
call('HSET', begin(memories), unpack(memory))
for _, job in ipairs(kept) do
  local id, flags, result = job[1], job[2], job[3]
  release_unique(id, flags)
  local fields, until_ms = {}, 0
  if result ~= '' then
    local type_len = byte(result, 1)
    fields = { 'rt', sub(result, 2, 1 + type_len), 'rd', sub(result, 2 + type_len) }
    until_ms = now + success_retention
  end
  if has(flags, FLAG_RETENTION) then until_ms = now + retention(read_head(id), 0) end
  keep_settled(id, STATE_SUCCEEDED, until_ms, fields)
end
call('ZREM', KEYS[3], unpack(done))
call('HDEL', KEYS[2], unpack(done))
if #bodies > 0 then call('UNLINK', unpack(bodies)) end
tell_waiters(meta[3], done)
return { now, codes }
