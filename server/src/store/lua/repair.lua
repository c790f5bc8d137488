-- Mends one thing that the audit found, if it is still as the audit saw it.
-- KEYS  meta, lane index, scheduled, leases, lease deadlines, start_by, dead, settled, tombstones, lane tombstone
--       counts, unique keys, windows of unique keys, quarantine; of a job also its record, state, quarantined record
--       and quarantined state
-- ARGV  retention of dead and settled jobs ms, kind (AUDIT_), name, then what the audit saw and what to do:
--       of a job FACT_COUNT facts and REPAIR_STRIDE arguments for each step: kind (REPAIR_), and three values;
--       of the tombstones of a lane their number and the right one;
--       of a unique key who holds it and the facts of that job; of others nothing
-- RETURNS {1 if it was mended, 0 if it is not as the audit saw it}
-- MOVES  -
local retention_ms, kind, name = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local meta = call('HMGET', KEYS[1], META_GENERATION)
local meta_gen = tonumber(meta[1])

-- Decide.
local function is_as_seen(id, at)
  for k, fact in ipairs(facts_of(id, meta_gen)) do
    if fact ~= ARGV[at + k - 1] then return false end
  end
  return true
end

if kind == AUDIT_JOB then
  if not is_as_seen(name, 4) then return { 0 } end
  local steps = {}
  for at = 4 + FACT_COUNT, #ARGV, REPAIR_STRIDE do
    local step = { kind = ARGV[at], a = ARGV[at + 1], b = ARGV[at + 2], c = ARGV[at + 3] }
    if step.kind == REPAIR_TOMBSTONES
      and (tonumber(call('HGET', KEYS[9], name .. step.a)) or 0) ~= tonumber(step.b) then
      return { 0 }
    end
    if step.kind == REPAIR_PLACE then
      step.head = read_head(name)
      if not step.head then return { 0 } end
      touch(base .. KEY_LANE .. step.head.lane, base .. KEY_QUARANTINED_LANE .. step.head.lane)
    end
    steps[#steps + 1] = step
  end
  touch(base .. KEY_LOG .. name, unpack(KEYS))

  -- Act.
  for _, step in ipairs(steps) do repair_job(name, step, retention_ms) end
  return { 1 }
end

if kind == AUDIT_LANE then
  local first, foreign = try('LINDEX', base .. KEY_LANE .. name, '0')
  if foreign then return { 0 } end
  touch(unpack(KEYS))
  if first and #first == ENTRY_BYTES then
    call('ZADD', KEYS[2], lane_score(name, unpack_ms(first, ENTRY_TIME_AT)), name)
    notify(NOTIFY_LANE_READY .. NOBODY .. name)
  elseif not first then
    call('ZREM', KEYS[2], name)
  end
  return { 1 }
end

if kind == AUDIT_LANE_TOMBSTONES then
  if (call('HGET', KEYS[10], name) or '') ~= ARGV[4] then return { 0 } end
  touch(unpack(KEYS))
  if tonumber(ARGV[5]) > 0 then call('HSET', KEYS[10], name, ARGV[5]) else call('HDEL', KEYS[10], name) end
  return { 1 }
end

if kind == AUDIT_UNIQUE then
  local holder = call('HGET', KEYS[11], name)
  if holder ~= ARGV[4] or not is_as_seen(sub(holder, 1, 16), 5) then return { 0 } end
  touch(unpack(KEYS))
  call('HDEL', KEYS[11], name)
  return { 1 }
end

if kind == AUDIT_WINDOW then
  local value = call('HGET', KEYS[11], name)
  touch(unpack(KEYS))
  if value and #value == UNIQUE_WINDOW_BYTES then
    return { 1, call('ZADD', KEYS[12], unpack_ms(value, UNIQUE_UNTIL_AT), name) }
  end
  return { call('ZREM', KEYS[12], name) }
end

if kind == AUDIT_POLICY then
  local policy = try('GETRANGE', base .. KEY_POLICY, '0', FACT_POLICY_BYTES) or ''
  local version = string.match(policy, '^(%d+) ')
  local is_paused = call('HGET', KEYS[1], META_ENQUEUE_GATE) == GATE_PAUSED
  touch(unpack(KEYS))
  if version then
    call('HSET', KEYS[1], META_POLICY_VERSION, version)
    if not is_paused then call('HSET', KEYS[1], META_ENQUEUE_GATE, GATE_POLICY .. version) end
  else
    call('HDEL', KEYS[1], META_POLICY_VERSION)
    if not is_paused then call('HDEL', KEYS[1], META_ENQUEUE_GATE) end
  end
  return { 1 }
end

if kind == AUDIT_MEMORY then
  local number = tonumber(name)
  if number == meta_gen or number + 1 == meta_gen then return { 0 } end
  touch(base .. KEY_MEMORY .. name)
  return { call('UNLINK', base .. KEY_MEMORY .. name) }
end

-- A key that must not expire, or the leases of a request id, which must.
touch(base .. name)
if sub(name, 1, #KEY_REQUEST) == KEY_REQUEST then return { call('PEXPIRE', base .. name, REQUEST_ID_MS) } end
return { call('PERSIST', base .. name) }
