-- Settles leased jobs as done.
-- KEYS  meta, leases, lease deadlines, settled
-- ARGV  dedupe window ms, success retention ms, then runs of jobs of one look: nonce, kind, count and per job
--         kind 'p': id
--         kind 'r': id, result: length of the content type (1), content type, data
-- RETURNS {now ms, code of each job that was not simply applied: number, code; nothing if there is none}
--         codes: 1 settled so before, 2 lease lost, 3 settled otherwise before
-- MOVES  LEASED → SUCCEEDED
local window_ms, success_retention = tonumber(ARGV[1]), tonumber(ARGV[2])
local ids, runs, at, results = {}, {}, 3, false
while ARGV[at] do
  local stride, count, first = ARGV[at + 1] == 'r' and 2 or 1, tonumber(ARGV[at + 2]), #ids
  for k = 1, count do ids[first + k] = ARGV[at + 3 + (k - 1) * stride] end
  results = results or stride == 2
  runs[#runs + 1] = { nonce = ARGV[at], first = first + 1, last = first + count, result_at = stride == 2 and at + 4 }
  at = at + 3 + count * stride
end

-- decide
local values = call('HMGET', KEYS[2], unpack(ids))
local meta = call('HMGET', KEYS[1], 'dg', 'ds', 'w')
local done, bodies, memory, kept, codes, stale, seen = {}, {}, {}, nil, nil, nil, nil
local body_of = base .. 'j'
local n = 0
for _, run in ipairs(runs) do
  local nonce, result_at = run.nonce, run.result_at
  local remember = STATE_SUCCEEDED .. sub(nonce, 1, 8)
  -- The leases of a look have the same value, but for the flags.
  local plain
  for k = run.first, run.last do
    local id, value = ids[k], values[k]
    if value and (value == plain or #value >= LEASE_BYTES and sub(value, 1, 16) == nonce) then
      local flags = value == plain and 0 or byte(value, 23) % FLAG_LARGE
      if flags == 0 then plain = value end
      n = n + 1
      done[n] = id
      memory[2 * n - 1], memory[2 * n] = id, remember
      -- The same lease twice: the first counts. (Two plain ones do the same.)
      if not (seen and seen[id]) then
        if flags == 0 and not result_at then
          bodies[#bodies + 1] = body_of .. id
        else
          kept = kept or {}
          kept[#kept + 1] = { id, flags, result_at and ARGV[result_at + (k - run.first) * 2] or '' }
          touch(base .. 's' .. id, base .. 'j' .. id, base .. 'u', base .. 'b')
        end
      end
      if results or flags > 0 then
        seen = seen or {}
        seen[id] = true
      end
    else
      stale = stale or {}
      stale[#stale + 1] = { k, id, nonce }
    end
  end
end
if stale then
  -- with: remembered
  local asked = {}
  codes = {}
  for m, item in ipairs(stale) do asked[m] = item[2] end
  local before = remembered(meta[1], asked) or {}
  for m, item in ipairs(stale) do
    local code = 2
    if before[m] and sub(before[m], 2, 9) == sub(item[3], 1, 8) then
      code = sub(before[m], 1, 1) == STATE_SUCCEEDED and 1 or 3
    end
    codes[#codes + 1] = item[1]
    codes[#codes + 1] = code
  end
end
if n == 0 then return { now, codes } end
local began = tonumber(meta[2])
local same_generation, waited_for = tonumber(meta[1]) and began and now - began < window_ms, meta[3] and (tonumber(meta[3]) or 0) > now
touch(KEYS[3], KEYS[4], base .. 'd' .. (meta[1] or ''), unpack(bodies))
touch(base .. 'wt')

-- act
local memory_key
if same_generation then
  memory_key = base .. 'd' .. meta[1]
else
  -- with: generation, begin
  memory_key = begin(generation(meta[1], meta[2], window_ms))
end
call('HSET', memory_key, unpack(memory))
if kept then
  -- with: release_unique, retention, read_head, keep_settled
  for _, job in ipairs(kept) do
    local id, flags, result = job[1], job[2], job[3]
    release_unique(id, flags)
    if has(flags, FLAG_START_BY) then call('ZREM', base .. 'b', id) end
    local fields, until_ms = {}, 0
    if result ~= '' then
      local type_len = byte(result, 1)
      fields = { 'rt', sub(result, 2, 1 + type_len), 'rd', sub(result, 2 + type_len) }
      until_ms = now + success_retention
    end
    if has(flags, FLAG_RETENTION) then until_ms = now + retention(read_head(id), 0) end
    keep_settled(id, STATE_SUCCEEDED, until_ms, fields)
  end
end
call('ZREM', KEYS[3], unpack(done))
if call('HDEL', KEYS[2], unpack(done)) < n then
  -- The same lease more than once in this call: settled by the first.
  local settled = {}
  for _, run in ipairs(runs) do
    for k = run.first, run.last do
      local value = values[k]
      if value and sub(value, 1, 16) == run.nonce then
        if settled[ids[k]] then
          codes = codes or {}
          codes[#codes + 1] = k
          codes[#codes + 1] = 1
        end
        settled[ids[k]] = true
      end
    end
  end
end
if #bodies > 0 then call('UNLINK', unpack(bodies)) end
if waited_for then
  -- with: tell_waiters
  tell_waiters(meta[3], done)
end
return { now, codes }
