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

-- Runs a command. A key that holds another type than ours is as good as absent: false, true.
local function try(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then
    if string.find(answer.err, 'WRONGTYPE', 1, true) then return false, true end
    return call(...)
  end
  return answer
end

-- Writes fields of a job's state hash. A key of another type there is set aside.
local function write_state(id, ...)
  local _, foreign = try('HSET', base .. 's' .. id, ...)
  if foreign then
    call('RENAME', base .. 's' .. id, base .. 'qs' .. id)
    call('HSET', base .. 's' .. id, ...)
  end
end

-- Counts in a field of a hash. What is no number there counts as none.
local function add(key, field, by)
  local sum = (tonumber(call('HGET', key, field)) or 0) + by
  call('HSET', key, field, sum)
  return sum
end

-- Names keys that are about to be written, with a read: in a Cluster whose slots are on the move, a key that is not here then ends the script before its
-- first write. Lines that begin with a touch are left out where Redis is no Cluster (script.rs).
local function touch(...) call('EXISTS', ...) end
local function touch_all(start, ids)
  local keys = {}
  for k, id in ipairs(ids) do keys[k] = start .. id end
  touch(unpack(keys))
end

-- A lease is nonce (16), time (6), flags (1), keeper (8), confirmed '0' or '1' (1), holder (padded). One that is shorter than LEASE_BYTES is none.

-- A lane entry is flags (1), time ready (6), id (16).
local function entry_of(flags, ms, id) return char(flags) .. pack_ms(ms) .. id end

-- Lanes are listed by priority, most urgent first, then by the age of their head.
local function lane_score(lane, ms) return (9 - (byte(lane, 1) - 48)) * 4398046511104 + ms end

local function has(flags, flag) return flags % (flag * 2) >= flag end

-- The flags of a record that its lane entry carries: without POLICY and the one above it.
local function entry_flags(flags) return flags - floor(flags % (4 * FLAG_POLICY) / FLAG_POLICY) * FLAG_POLICY end

-- Whether a newer version of the broker wrote a record. (Text and other foreign bytes begin above this.)
local function is_newer(record)
  local version = record and byte(record, 1)
  return version and version > RECORD_VERSION and version < 32
end

-- The head of a record. nil if it is none of ours, or cut.
local function head_of(record)
  if not record or #record < 11 or byte(record, 1) ~= RECORD_VERSION then return nil end
  local priority, type_len = byte(record, 3), byte(record, 4)
  if priority < 1 or priority > 9 or type_len == 0 or #record < 10 + type_len then return nil end
  local head = {
    flags = byte(record, 2),
    lane = char(48 + priority) .. ':' .. sub(record, 5, 4 + type_len),
  }
  if has(head.flags, FLAG_POLICY) then
    local at = 11 + type_len
    if #record < at + 26 then return nil end
    local p = { struct.unpack('>I2I2I4I4I4I2I4I4B', record, at) }
    head.max_attempts, head.max_losses, head.initial_ms, head.max_ms = p[1], p[2], p[3], p[4]
    head.multiplier, head.jitter, head.timeout_ms, head.retention_ms = p[5], p[6], p[7], p[8]
    head.types_at, head.types = at + 27, p[9]
  end
  return head
end

-- The head of a job's record, whatever the payload; or nil, and whether a newer version wrote it.
local function read_head(id)
  local record = try('GETRANGE', base .. 'j' .. id, '0', RECORD_HEAD_BYTES)
  local head = head_of(record)
  if head then return head end
  return nil, is_newer(record)
end

-- Whether the policy of a job names this type of failure among those that are not worth another attempt.
local function is_hopeless(id, head, failure_type)
  if not head.types or head.types == 0 then return false end
  local record, at = call('GETRANGE', base .. 'j' .. id, 0, RECORD_HEAD_BYTES), head.types_at
  for _ = 1, head.types do
    local len = byte(record, at) or 0
    if sub(record, at + 1, at + len) == failure_type then return true end
    at = at + 1 + len
  end
  return false
end

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
    local state = try('HMGET', base .. 's' .. job[2], 'a', 'l', 'cp') or {}
    states[k] = { job[1], (tonumber(state[1]) or 0), (tonumber(state[2]) or 0), state[3] or '' }
  end
  return states
end

-- Puts ids into their lanes, at the tail or one by one at the head, and tells sleepers, those of this broker too. `items` is a list of {id, flags, lane, ms};
-- at the head all have the same time. Every lane must have been touched before the first write of the script.
local function make_ready(items, at_head)
  local lanes, order, late = {}, {}, {}
  for _, item in ipairs(items) do
    local lane = item[3]
    local plan = lanes[lane]
    if not plan then
      plan = { key = base .. 'r:' .. lane, ms = item[4], entries = {} }
      local first
      first, plan.foreign = try('LINDEX', plan.key, '0')
      if at_head and first and #first == ENTRY_BYTES then plan.ms = min(plan.ms, unpack_ms(first, 2)) end
      lanes[lane], order[#order + 1] = plan, lane
    end
    plan.entries[#plan.entries + 1] = entry_of(item[2], at_head and plan.ms or item[4], item[1])
    if at_head and has(item[2], FLAG_START_BY) and tonumber(call('ZSCORE', base .. 'b', item[1]) or 0) % 1 > 0 then
      late[#late + 1], late[#late + 2] = now, item[1]
    end
  end
  if #late > 0 then call('ZADD', base .. 'b', unpack(late)) end
  for _, lane in ipairs(order) do
    local plan = lanes[lane]
    if plan.foreign then call('RENAME', plan.key, base .. 'qr:' .. lane) end
    local length = call(at_head and 'LPUSH' or 'RPUSH', plan.key, unpack(plan.entries))
    local was_empty = length == #plan.entries
    if at_head or was_empty then call('ZADD', base .. 'i', lane_score(lane, plan.ms), lane) end
    if was_empty then tell('r' .. NOBODY .. lane) end
  end
end

-- A lane as far as a look has read it: `entries` begin behind the first `from` of its list and `ends` with it; `passed` of the list are decided on, `merged` are in
-- a batch. A key of another type has no entries.
local function read_lane(plan, from, most)
  local entries = redis.pcall('LRANGE', plan.key, from, from + most)
  if entries.err then
    if not string.find(entries.err, 'WRONGTYPE', 1, true) then call('LRANGE', plan.key, from, from + most) end
    entries, plan.foreign = {}, true
  end
  plan.entries, plan.from, plan.ends = entries, from, #entries <= most
end
local function open_lane(lane, most)
  local plan = { lane = lane, key = base .. 'r:' .. lane, passed = 0, merged = 0, entries = false, from = 0, ends = false }
  touch(plan.key, base .. 'qr:' .. lane)
  read_lane(plan, 0, most)
  return plan
end

-- Up to `most` further entries of the open lanes of one priority (`group`), oldest first, and the lane of each; opens those lanes of the priority that are next
-- in age. For lease.lua, whose functions these are.
local function merge(group, following, open, most)
  local entries, plan_of, unopened, unopened_ms = {}, {}, nil, nil
  while #entries < most do
    local lane = following(byte(group[1].lane, 1))
    if lane and lane ~= unopened then
      unopened = lane
      unopened_ms = sub(try('LINDEX', base .. 'r:' .. lane, '0') or '', 2, 7)
    end
    -- The open lane whose next entry is oldest, and how far it goes before another is older.
    local oldest, oldest_ms, until_ms
    for _, plan in ipairs(group) do
      if plan.merged < plan.from or not plan.ends and plan.merged - plan.from >= #plan.entries then read_lane(plan, plan.merged, most) end
      local entry = plan.entries[plan.merged - plan.from + 1]
      if entry then
        local ms = sub(entry, 2, 7)
        if not oldest or ms < oldest_ms then
          oldest, oldest_ms, until_ms = plan, ms, oldest_ms
        elseif not until_ms or ms < until_ms then
          until_ms = ms
        end
      end
    end
    if lane and (not oldest or unopened_ms < oldest_ms) then
      open(lane)
    elseif not oldest then
      break
    else
      if lane and (not until_ms or unopened_ms < until_ms) then until_ms = unopened_ms end
      repeat
        local entry = oldest.entries[oldest.merged - oldest.from + 1]
        local ms = entry and sub(entry, 2, 7)
        if not ms or until_ms and ms ~= oldest_ms and ms >= until_ms then break end
        entries[#entries + 1] = entry
        plan_of[#entries], oldest.merged = oldest, oldest.merged + 1
      until #entries >= most
    end
  end
  return entries, plan_of
end

-- Names the keys that the end of a job may need beside those that its script names, before the first write: `ids` are those of the jobs.
local function touch_ends(ids)
  local keys = { base .. 'u', base .. 'wt', base .. 'q', base .. 'x', base .. 'f', base .. 'b' }
  for k, id in ipairs(ids) do
    for n, part in ipairs({ 'j', 's', 'qj', 'qs' }) do keys[4 * k + 2 + n] = base .. part .. id end
  end
  touch(unpack(keys))
end

-- Moves due jobs from scheduled to their lanes, at most `limit`; what a newer version wrote to where a newer broker finds it. Returns how many, and the ids of
-- those that have no readable record.
local function promote(limit)
  local due = call('ZRANGEBYSCORE', base .. 'z', '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
  local items, ids, orphans, parked = {}, {}, {}, {}
  for k = 1, #due, 2 do
    local id = due[k]
    local head, newer = read_head(id)
    if newer then
      parked[#parked + 1] = entry_of(0, tonumber(due[k + 1]), id)
    elseif head then
      local flags = entry_flags(head.flags)
      if call('EXISTS', base .. 's' .. id) == 1 and not has(flags, FLAG_STATE) then flags = flags + FLAG_STATE end
      touch(base .. 'r:' .. head.lane, base .. 'qr:' .. head.lane)
      items[#items + 1] = { id, flags, head.lane, tonumber(due[k + 1]) }
    else
      orphans[#orphans + 1] = id
    end
    ids[#ids + 1] = id
  end
  if #ids == 0 then return 0, orphans end
  touch(base .. 'i', base .. 'nv')
  if #orphans > 0 then touch_ends(orphans) end
  make_ready(items, false)
  if #parked > 0 then call('RPUSH', base .. 'nv', unpack(parked)) end
  call('ZREM', base .. 'z', unpack(ids))
  return #items + #parked, orphans
end

-- Sets a job aside whose record cannot be read: record and state are renamed, so nothing is copied and nothing is lost. Frees what the job held. A job that
-- has no record at all leaves only its id and the reason.
local function quarantine(id, why)
  local held = try('HGET', base .. 's' .. id, 'uk')
  if held and call('HGET', base .. 'u', held) == id then call('HDEL', base .. 'u', held) end
  call('ZREM', base .. 'b', id)
  call('HSET', base .. 'q', id, why)
  for _, part in ipairs({ 'j', 's' }) do
    if call('EXISTS', base .. part .. id) == 1 then call('RENAME', base .. part .. id, base .. 'q' .. part .. id) end
  end
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
  if gen and start and now - start < window_ms then
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

-- Where a job is that has a record: the letter of its state, and whether that is final. nil: there is no record.
local function state_of(id)
  if call('EXISTS', base .. 'j' .. id) == 0 then return nil end
  local settled = try('HGET', base .. 's' .. id, 'st')
  if settled then return settled, true end
  if call('HEXISTS', base .. 't', id) == 1 then return STATE_LEASED end
  return call('ZSCORE', base .. 'z', id) and STATE_SCHEDULED or STATE_READY
end

-- Forgets a settled job that was kept for its readers.
local function give_way(id)
  call('ZREM', base .. 'x', id)
  call('ZREM', base .. 'f', id)
  call('UNLINK', base .. 'j' .. id, base .. 's' .. id)
end

-- Frees what a job held beside its body. `flags` are those of its entry or lease.
local function release_unique(id, flags)
  if has(flags, FLAG_STATE) then
    local key = try('HGET', base .. 's' .. id, 'uk')
    if key and call('HGET', base .. 'u', key) == id then call('HDEL', base .. 'u', key) end
  end
end

-- Keeps a job in a final state until `until_ms`, or forgets it if that is not in the future. The caller has removed it from where
-- it was, or does so next. `fields` are further fields of the state hash.
local function keep_settled(id, state, until_ms, fields)
  if state == STATE_DEAD then
    write_state(id, 'st', state, 'at', now, unpack(fields))
    call('ZADD', base .. 'x', now, id)
  elseif until_ms > now then
    write_state(id, 'st', state, 'at', now, unpack(fields))
    call('ZADD', base .. 'f', until_ms, id)
  else
    call('UNLINK', base .. 'j' .. id, base .. 's' .. id)
  end
end

local function somebody_waits(waiting_until) return waiting_until and (tonumber(waiting_until) or 0) > now end

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
