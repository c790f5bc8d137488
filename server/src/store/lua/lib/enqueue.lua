-- Steps of an enqueue that plain jobs do not need: for enqueue.lua.

-- What is remembered of these ids; nil: nothing. After two windows nothing is remembered any more, even if maintenance
-- has not cleared it away yet.
local function memories_in_window(meta_gen, ids, window_ms)
  local start = tonumber(call('HGET', base .. KEY_META, META_GENERATION_START)) or 0
  if now - start >= 2 * window_ms then return nil end
  return remembered(meta_gen, ids)
end

-- The reply to a call that the enqueue gate of the queue refuses; nil: it passes.
local function refused_at_gate(gate, pause_reason)
  if gate == GATE_PAUSED then return { now_us, {}, pause_reason or '' } end
  local version = gate and sub(gate, 2) or '0'
  if version ~= (ARGV[3] == ENQUEUE_WITH_POLICY and ARGV[4] or '0') then
    return { now_us, {}, '', tonumber(version) or 0 }
  end
end

-- How many jobs may wait beside those that do, if no more than `most` may.
local function room_for(most)
  local lanes = call('ZRANGE', base .. KEY_LANES, '0', LANES_PER_COUNT - 1)
  local waiting = call('ZCARD', base .. KEY_SCHEDULED)
  for _, lane in ipairs(lanes) do waiting = waiting + (try('LLEN', base .. KEY_LANE .. lane) or 0) end
  if waiting >= most and #lanes > 0 then
    -- Not those that are cancelled and still in their lane.
    for _, count in ipairs(call('HMGET', base .. KEY_TOMBSTONE_COUNTS, unpack(lanes))) do
      waiting = waiting - (tonumber(count) or 0)
    end
  end
  return most - waiting
end

-- When a job may start, in milliseconds. `start` is the argument.
local function start_ms(start)
  if start == '' then return now end
  local ms = tonumber(sub(start, 2))
  return byte(start, 1) == ENQUEUE_START_IN and now + ms or ms
end

-- What a debounce keeps with its job: when it began, and for when it has scheduled the job.
local function debounce_value(first_ms, due_ms) return pack_ms(first_ms) .. pack_ms(due_ms) end

-- A job of this call that has a unique key, as read_waiting() returns those that were there.
local function plan_of_new(holder)
  local due_ms, is_later = start_ms(ARGV[holder.from + 2]), holder.state == STATE_SCHEDULED
  return {
    id = holder.id, lane = holder.group.lane, flags = holder.group.flags, edits = 0,
    due_ms = is_later and due_ms or nil,
    debounce = byte(ARGV[holder.from + 5], 2) == CONFLICT_DEBOUNCE and debounce_value(now, due_ms) or nil,
  }
end

-- The job that waits with a unique key, as it is: {id, lane, flags, due, edits, debounce}; nil: it is not to be
-- replaced, because it does not know the key or cannot be read. The flags are those that its entry has for sure: of a
-- job whose start_by does not count any more, it may or may not say START_BY.
local function read_waiting(holder, key)
  local id, head = holder.id, read_head(holder.id)
  local state = try('HMGET', base .. KEY_STATE .. id, FIELD_UNIQUE_KEY, FIELD_EDITS, FIELD_DEBOUNCE) or {}
  if not head or state[1] ~= key then return nil end
  local flags = entry_flags(head.flags)
  if has(flags, FLAG_START_BY) and not call('ZSCORE', base .. KEY_START_BY, id) then flags = flags - FLAG_START_BY end
  return {
    id = id, lane = head.lane, flags = flags, edits = tonumber(state[2]) or 0,
    due_ms = holder.state == STATE_SCHEDULED and tonumber(call('ZSCORE', base .. KEY_SCHEDULED, id)) or nil,
    debounce = state[3] and #state[3] == DEBOUNCE_BYTES and state[3] or nil,
  }
end

-- When a waiting job is due after a job with these arguments has replaced it.
local function due_of_replaced(plan, from)
  local start, scope = ARGV[from + 2], ARGV[from + 5]
  if byte(scope, 2) ~= CONFLICT_DEBOUNCE then return start == '' and plan.due_ms or start_ms(start) end
  -- A job that waits for something else (a retry, a time of its own) keeps its time.
  if not plan.debounce or unpack_ms(plan.debounce, DEBOUNCE_DUE_AT) ~= plan.due_ms then return plan.due_ms end
  local first_ms = unpack_ms(plan.debounce, 1)
  local due_ms = min(start_ms(start), first_ms + tonumber(sub(scope, 3)))
  plan.debounce = debounce_value(first_ms, due_ms)
  return due_ms
end

-- Plans that a new job, whose arguments begin at this place, replaces the one that has its unique key. Returns what the
-- reply says behind the state; nil: the job that has the key is not to be replaced.
local function plan_replacement(known, holder, key, group, from)
  if holder.state ~= STATE_READY and holder.state ~= STATE_SCHEDULED then return nil end
  local plan = holder.plan or holder.group and plan_of_new(holder) or read_waiting(holder, key)
  if not plan then return nil end
  holder.plan = plan
  if not plan.replaced then
    plan.replaced = true
    known.replaced[#known.replaced + 1] = plan
    touch(base .. KEY_RECORD .. plan.id, base .. KEY_STATE .. plan.id, base .. KEY_QUARANTINED_STATE .. plan.id)
    touch(base .. KEY_TOMBSTONES, base .. KEY_TOMBSTONE_COUNTS)
    local meta = call('HMGET', base .. KEY_META, META_GENERATION, META_GENERATION_START)
    known.memory = known.memory or generation(meta[1], meta[2], tonumber(ARGV[2]))
  end
  touch(base .. KEY_QUARANTINED_LANE .. group.lane)
  plan.record, plan.start_by, plan.edits = ARGV[from + 1], ARGV[from + 3], plan.edits + 1
  plan.new_lane, plan.new_flags = group.lane, group.flags
  if plan.due_ms then
    local due_ms = due_of_replaced(plan, from)
    if due_ms ~= plan.due_ms then plan.due_ms, plan.is_moved = due_ms, true end
  end
  -- A repetition of this call must not replace what replaces it meanwhile.
  known.memories[#known.memories + 1] = ARGV[from]
  known.memories[#known.memories + 1] = MEMORY_REPLACING .. plan.id
  return ENQUEUE_REPLACED .. (plan.due_ms and string.format('%d', plan.due_ms) or '')
end

-- Goes through a group one by one, because some of its jobs are settled already or have options. Leaves the new jobs in
-- it, with the number of each in the call and the place of its first argument.
local function drop_duplicates(group, known, memories, at, stride)
  local ids, sets, numbers, places, n = {}, {}, {}, {}, 0
  for k, id in ipairs(group.ids) do
    local from = at + (k - 1) * stride
    local key = group.kind == ENQUEUE_WITH_OPTIONS and ARGV[from + 4] or ''
    local state, settled = state_of(id)
    local memory = memories and memories[k]
    -- The id of a settled job that is only retained is free again once it is not remembered any more.
    local holder = (memory or state and not settled) and id
    if not state and memory and sub(memory, 1, 1) == MEMORY_REPLACING then
      -- A job with this id has replaced that one, and is repeated.
      holder = sub(memory, 2)
      state = (state_of(holder) or end_of_gone(holder)) .. ENQUEUE_REPLACED
    end
    if not holder and key ~= '' then
      -- Who has the key, for the whole call; `group` and `from`: a job of this call, and where its arguments begin.
      local has_key = known.keys[key]
      if not has_key then
        has_key = {}
        has_key.id, has_key.state, has_key.window = unique_holder(key)
        known.keys[key] = has_key
      end
      holder, state = has_key.id, has_key.id and has_key.state
      if holder and group.replaces then
        state = state .. (group.replaces(known, has_key, key, group, from) or '')
      end
    end
    if not holder and known.room then
      if known.room > 0 then
        known.room = known.room - 1
      else
        holder, state, known.is_full = id, ENQUEUE_FULL, true
      end
    end
    if not holder and key ~= '' then
      local has_key, is_later = known.keys[key], start_ms(ARGV[from + 2]) > now
      has_key.id, has_key.state = id, is_later and STATE_SCHEDULED or STATE_READY
      has_key.group, has_key.from = group, from
    end
    if holder then
      local duplicates = known.duplicates
      duplicates[#duplicates + 1] = group.before + k
      duplicates[#duplicates + 1] = holder
      duplicates[#duplicates + 1] = state or sub(memory, 1, 1)
    else
      if settled then known.retained[#known.retained + 1] = id end
      n = n + 1
      ids[n], numbers[n], places[n] = id, group.before + k, from
      sets[2 * n - 1], sets[2 * n] = group.sets[2 * k - 1], group.sets[2 * k]
    end
  end
  group.ids, group.sets, group.numbers, group.places = ids, sets, numbers, places
end

-- Stores those jobs of a group whose ids are new; leaves only them in it. The others are duplicates.
local function store_new_ones(group, duplicates)
  local ids, sets = {}, {}
  for k, id in ipairs(group.ids) do
    local state, settled = state_of(id)
    if state and not settled then
      duplicates[#duplicates + 1] = group.numbers and group.numbers[k] or group.before + k
      duplicates[#duplicates + 1] = id
      duplicates[#duplicates + 1] = state
    else
      if state then forget_settled(id) end
      ids[#ids + 1] = id
      sets[#sets + 1] = group.sets[2 * k - 1]
      sets[#sets + 1] = group.sets[2 * k]
    end
  end
  group.ids, group.sets = ids, sets
  if #ids > 0 then call('MSET', unpack(sets)) end
end

-- Writes the options of a group's jobs; schedules those that start later, and adds the others to `entries`.
local function place_with_options(group, known, broker, prefix, entries)
  local earliest = earliest_due(base .. KEY_SCHEDULED)
  for k, id in ipairs(group.ids) do
    local from = group.places[k]
    local start_by, key, scope = ARGV[from + 3], ARGV[from + 4], ARGV[from + 5]
    local due_ms = start_ms(ARGV[from + 2])
    if key ~= '' then
      local until_ms = sub(scope, 1, 1) == SCOPE_WINDOW and now + tonumber(sub(scope, 3)) or nil
      take_unique(key, id, until_ms, known.keys[key].window)
      if byte(scope, 2) == CONFLICT_DEBOUNCE then
        local debounce = pack_ms(now) .. pack_ms(due_ms)
        write_state(id, FIELD_UNIQUE_KEY, key, FIELD_UNIQUE_SCOPE, sub(scope, 1, 1), FIELD_DEBOUNCE, debounce)
      else
        write_state(id, FIELD_UNIQUE_KEY, key, FIELD_UNIQUE_SCOPE, sub(scope, 1, 1))
      end
    end
    if start_by ~= '' then call('ZADD', base .. KEY_START_BY, start_by, id) end
    if due_ms > now then
      earliest = schedule(base .. KEY_SCHEDULED, earliest, broker, id, due_ms)
    else
      entries[#entries + 1] = prefix .. id
    end
  end
end

-- Replaces waiting jobs as planned. A ready job keeps its place if its lane and the flags of its entry are the same
-- (but for LARGE, which may be said of a small record).
local function replace_waiting(known, broker)
  local earliest, items, left = nil, {}, {}
  for _, plan in ipairs(known.replaced) do
    local id, flags = plan.id, plan.new_flags
    call('SET', base .. KEY_RECORD .. id, plan.record)
    if plan.debounce then
      write_state(id, FIELD_EDITS, plan.edits, FIELD_DEBOUNCE, plan.debounce)
    else
      write_state(id, FIELD_EDITS, plan.edits)
    end
    if plan.start_by ~= '' then
      call('ZADD', base .. KEY_START_BY, plan.start_by, id)
    elseif has(plan.flags, FLAG_START_BY) then
      call('ZREM', base .. KEY_START_BY, id)
    end
    if plan.is_moved then
      earliest = earliest or earliest_due(base .. KEY_SCHEDULED)
      earliest = schedule(base .. KEY_SCHEDULED, earliest, broker, id, plan.due_ms)
    elseif not plan.due_ms
      and (plan.new_lane ~= plan.lane or flags ~= plan.flags and flags + FLAG_LARGE ~= plan.flags) then
      items[#items + 1] = { id = id, flags = flags, lane = plan.new_lane, ms = now }
      left[#left + 1] = plan
    end
  end
  make_ready(items, false)
  for _, plan in ipairs(left) do add_tombstone(plan.id, plan.lane) end
  call('HSET', begin(known.memory), unpack(known.memories))
end
