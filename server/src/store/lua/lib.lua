-- What every script shares. Put in front of each of them; the words in UPPER CASE come from the prelude that
-- script.rs renders from domain/ (STATES, flags, record layout), so that nothing is written twice. A script gets the functions that it uses; those that a
-- line `-- with: name, name` in it names are made there, in the branch that needs them, and not at each call.

-- Numbers among the arguments of a command are written out with seventeen digits, which costs as much as the command: constants are strings.
local call, sub, byte, char = redis.call, string.sub, string.byte, string.char
local floor, min, max = math.floor, math.min, math.max

-- KEYS[1] is always the queue's meta key, "<prefix>:{<routing key>}:m"; every other key of the queue is made from it.
local base = sub(KEYS[1], 1, -2)

local time = call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = floor(now_us / 1000)

-- Times in members and values are 6 bytes, big-endian milliseconds.
local function pack_ms(ms) return struct.pack('>I6', ms) end
local function unpack_ms(text, at) return (struct.unpack('>I6', text, at)) end

-- Names keys that are about to be written, with a read: in a Cluster whose slots are on the move, a key that is not here then ends the script before its
-- first write. Lines that begin with a touch are left out where Redis is no Cluster (script.rs).
local function touch(...) call('EXISTS', ...) end
local function touch_all(start, ids)
  local keys = {}
  for k, id in ipairs(ids) do keys[k] = start .. id end
  touch(unpack(keys))
end

-- A lease is nonce (16), time (6), flags (1), keeper (8), confirmed '0' or '1' (1), holder (padded).

-- A lane entry is flags (1), time ready (6), id (16).
local function entry_of(flags, ms, id) return char(flags) .. pack_ms(ms) .. id end

-- Lanes are listed by priority, most urgent first, then by the age of their head.
local function lane_score(lane, ms) return (9 - (byte(lane, 1) - 48)) * 4398046511104 + ms end

local function has(flags, flag) return flags % (flag * 2) >= flag end

-- The flags of a record that its lane entry carries: without POLICY and the one above it.
local function entry_flags(flags) return flags - floor(flags % (4 * FLAG_POLICY) / FLAG_POLICY) * FLAG_POLICY end

-- The head of a record. nil if it is none of ours.
local function head_of(record)
  if not record or #record < 10 or byte(record, 1) ~= RECORD_VERSION then return nil end
  local type_len = byte(record, 4)
  local head = {
    flags = byte(record, 2),
    lane = char(48 + byte(record, 3)) .. ':' .. sub(record, 5, 4 + type_len),
  }
  if has(head.flags, FLAG_POLICY) then
    local at = 11 + type_len
    local p = { struct.unpack('>I2I2I4I4I4I2I4I4B', record, at) }
    head.max_attempts, head.max_losses, head.initial_ms, head.max_ms = p[1], p[2], p[3], p[4]
    head.multiplier, head.jitter, head.timeout_ms, head.retention_ms = p[5], p[6], p[7], p[8]
    head.types_at, head.types = at + 27, p[9]
  end
  return head
end

-- Enough of a record for head_of, whatever the payload.
local function read_head(id) return head_of(call('GETRANGE', base .. 'j' .. id, '0', RECORD_HEAD_BYTES)) end

local function tell(message) call('PUBLISH', base .. 'w', message) end

-- Tells the other brokers, if one listens: a message that only we would hear costs us and Redis more than the rest of a small call. Who listens to a queue
-- also listens to a channel of its own (signal.rs), so we know whether we are among the listeners. (A node of a Cluster counts only its own.)
local function tell_others(broker, message)
  local heard = IN_CLUSTER or call('PUBSUB', 'NUMSUB', base .. 'w', base .. 'w' .. broker)
  if IN_CLUSTER or heard[2] > heard[4] then tell(message) end
end

-- What the state hashes of some jobs say: `jobs` is a list of {number, id}; number, attempts, losses and checkpoint of each.
local function states_of(jobs)
  local states = {}
  for k, job in ipairs(jobs) do
    local state = call('HMGET', base .. 's' .. job[2], 'a', 'l', 'cp')
    states[k] = { job[1], tonumber(state[1] or 0), tonumber(state[2] or 0), state[3] or '' }
  end
  return states
end

-- Puts ids into their lanes, at the tail or one by one at the head, and tells sleepers, those of this broker too. `items` is a list of {id, flags, lane, ms};
-- at the head all have the same time. Every lane must have been touched before the first write of the script.
local function make_ready(items, at_head)
  local lanes, order = {}, {}
  for _, item in ipairs(items) do
    local lane = item[3]
    local plan = lanes[lane]
    if not plan then
      plan = { key = base .. 'r:' .. lane, ms = item[4], entries = {} }
      if at_head then
        local first = call('LINDEX', plan.key, '0')
        if first then plan.ms = min(plan.ms, unpack_ms(first, 2)) end
      end
      lanes[lane], order[#order + 1] = plan, lane
    end
    plan.entries[#plan.entries + 1] = entry_of(item[2], at_head and plan.ms or item[4], item[1])
  end
  for _, lane in ipairs(order) do
    local plan = lanes[lane]
    local length = call(at_head and 'LPUSH' or 'RPUSH', plan.key, unpack(plan.entries))
    local was_empty = length == #plan.entries
    if at_head or was_empty then call('ZADD', base .. 'i', lane_score(lane, plan.ms), lane) end
    if was_empty then tell('r' .. NOBODY .. lane) end
  end
end

-- Names the keys that the end of a job may need beside those that its script names, before the first write: `ids` are those of the jobs.
local function touch_ends(ids)
  local keys = { base .. 'u', base .. 'wt', base .. 'q', base .. 'x', base .. 'f', base .. 'b' }
  for k, id in ipairs(ids) do keys[2 * k + 5], keys[2 * k + 6] = base .. 'j' .. id, base .. 's' .. id end
  touch(unpack(keys))
end

-- Moves due jobs from scheduled to their lanes, at most `limit`. Returns how many.
local function promote(limit)
  local due = call('ZRANGEBYSCORE', base .. 'z', '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
  local items, ids, orphans = {}, {}, {}
  for k = 1, #due, 2 do
    local id = due[k]
    local head = read_head(id)
    if head then
      local flags = entry_flags(head.flags)
      if call('EXISTS', base .. 's' .. id) == 1 and not has(flags, FLAG_STATE) then flags = flags + FLAG_STATE end
      touch(base .. 'r:' .. head.lane)
      items[#items + 1] = { id, flags, head.lane, tonumber(due[k + 1]) }
    else
      orphans[#orphans + 1] = id
    end
    ids[#ids + 1] = id
  end
  if #ids == 0 then return 0, orphans end
  touch(base .. 'i')
  if #orphans > 0 then touch_ends(orphans) end
  make_ready(items, false)
  call('ZREM', base .. 'z', unpack(ids))
  return #items, orphans
end

-- Sets records aside that cannot be read, with their bytes, at most 1,000 of them, and frees what the job held.
local function quarantine(id, record, why)
  local key = base .. 'q'
  local held = call('HGET', base .. 's' .. id, 'uk')
  if held and call('HGET', base .. 'u', held) == id then call('HDEL', base .. 'u', held) end
  call('ZREM', base .. 'b', id)
  if call('HLEN', key) < 1000 then
    call('HSET', key, id, why .. '\n' .. (record or ''))
  end
  call('UNLINK', base .. 'j' .. id, base .. 's' .. id)
end

-- What is remembered of settled ids, in two generations, the current one and the one before: nil if nothing is.
local function remembered(meta_gen, ids)
  local gen = tonumber(meta_gen)
  if not gen or #ids == 0 then return nil end
  local found = call('HMGET', base .. 'd' .. gen, unpack(ids))
  local older = call('HMGET', base .. 'd' .. (gen - 1), unpack(ids))
  local any
  for k = 1, #ids do
    if found[k] or older[k] then
      found[k], any = found[k] or older[k], true
    end
  end
  return any and found
end

-- How a job ended of which only the id is left: the letter of its final state, or nil. A nack is remembered with the state that it led to, and the job went on.
local function remembered_end(meta_gen, id)
  local found = remembered(meta_gen, { id })
  local letter = found and found[1] and sub(found[1], 1, 1)
  if letter == STATE_SUCCEEDED or letter == STATE_DEAD or letter == STATE_CANCELLED or letter == STATE_EXPIRED then return letter end
  return nil
end

-- A new generation after that one.
local function next_generation(gen, start, window_ms)
  gen = (gen or 0) + 1
  local key, before = base .. 'd' .. gen, base .. 'd' .. (gen - 1)
  touch(key, before, base .. 'd' .. (gen - 2))
  return { key = key, number = gen, before = before, forget_before = start and now - start >= 2 * window_ms }
end

-- Which generation to write to: the current one, or a new one when the window is over. Names its keys, writes nothing. (A full one is ended by upkeep.)
local function generation(meta_gen, meta_start, window_ms)
  local gen, start = tonumber(meta_gen), tonumber(meta_start)
  if gen and now - start < window_ms then
    touch(base .. 'd' .. gen)
    return { key = base .. 'd' .. gen }
  end
  return next_generation(gen, start, window_ms)
end

-- Begins a new generation, if that was decided, and forgets the one before the last. Returns the key to write to.
local function begin(chosen)
  if chosen.number then
    call('HSET', base .. 'm', 'dg', chosen.number, 'ds', now)
    call('UNLINK', base .. 'd' .. (chosen.number - 2))
    if chosen.forget_before then call('UNLINK', chosen.before) end
  end
  return chosen.key
end

-- Frees what a job held beside its body. `flags` are those of its entry or lease.
local function release_unique(id, flags)
  if has(flags, FLAG_STATE) then
    local key = call('HGET', base .. 's' .. id, 'uk')
    if key and call('HGET', base .. 'u', key) == id then call('HDEL', base .. 'u', key) end
  end
end

-- Keeps a job in a final state until `until_ms`, or forgets it if that is not in the future. The caller has removed it from where
-- it was, or does so next. `fields` are further fields of the state hash.
local function keep_settled(id, state, until_ms, fields)
  if state == STATE_DEAD then
    call('HSET', base .. 's' .. id, 'st', state, 'at', now, unpack(fields))
    call('ZADD', base .. 'x', now, id)
  elseif until_ms > now then
    call('HSET', base .. 's' .. id, 'st', state, 'at', now, unpack(fields))
    call('ZADD', base .. 'f', until_ms, id)
  else
    call('UNLINK', base .. 'j' .. id, base .. 's' .. id)
  end
end

local function somebody_waits(waiting_until) return waiting_until and tonumber(waiting_until) > now end

-- Tells those who wait for one of these jobs. `waiting_until` is the meta field that says whether anybody may be.
local function tell_waiters(waiting_until, ids)
  if somebody_waits(waiting_until) and #ids > 0 then
    for k, score in ipairs(call('ZMSCORE', base .. 'wt', unpack(ids))) do
      if score then tell('d' .. ids[k]) end
    end
  end
end

-- How long to wait after `failures` failures; `random` is in [0, 1).
local function backoff_ms(head, failures, defaults, random)
  local initial = head.initial_ms and head.initial_ms > 0 and head.initial_ms or defaults.initial_ms
  local longest = head.max_ms and head.max_ms > 0 and head.max_ms or max(defaults.max_ms, initial)
  local multiplier = (head.multiplier and head.multiplier > 0 and head.multiplier or defaults.multiplier) / 1000
  local jitter = head.jitter and head.jitter ~= JITTER_UNSET and head.jitter or defaults.jitter
  local wait = min(initial * multiplier ^ min(failures - 1, 64), longest)
  return floor(wait + wait * jitter / 1000 * random)
end

local function attempt_timeout(head, default_ms)
  return head and head.timeout_ms and head.timeout_ms > 0 and head.timeout_ms or default_ms
end

local function retention(head, default_ms)
  if head and head.retention_ms and head.retention_ms ~= RETENTION_UNSET then return head.retention_ms end
  return default_ms
end
