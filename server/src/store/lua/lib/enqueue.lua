-- Steps of an enqueue that plain jobs do not need: for enqueue.lua.

-- What is remembered of these ids; nil: nothing. After two windows nothing is remembered any more, even if maintenance
-- has not cleared it away yet.
local function memories_in_window(meta_gen, ids, window_ms)
  local start = tonumber(call('HGET', base .. KEY_META, META_GENERATION_START)) or 0
  if now - start >= 2 * window_ms then return nil end
  return remembered(meta_gen, ids)
end

-- The job that has a unique key, and its state; nil: the key is free.
local function key_holder(known, key)
  local holder = known.keys[key]
  if holder then return holder, state_of(holder) or STATE_READY end
  holder = call('HGET', base .. KEY_UNIQUE, key)
  if not holder then return nil end
  local state = state_of(holder)
  -- A key that no job knows to be its own, after a restore or a manual edit, is free.
  if not state or try('HGET', base .. KEY_STATE .. holder, FIELD_UNIQUE_KEY) ~= key then return nil end
  return holder, state
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
    if not holder and key ~= '' then
      local key_state
      holder, key_state = key_holder(known, key)
      state = holder and key_state
      known.keys[key] = holder or id
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

-- When a job may start, in milliseconds. `start` is the argument.
local function start_ms(start)
  if start == '' then return now end
  local ms = tonumber(sub(start, 2))
  return byte(start, 1) == ENQUEUE_START_IN and now + ms or ms
end

-- Writes the options of a group's jobs; schedules those that start later, and adds the others to `entries`.
local function place_with_options(group, broker, prefix, entries)
  local earliest = earliest_due(base .. KEY_SCHEDULED)
  for k, id in ipairs(group.ids) do
    local from = group.places[k]
    local start_by, key = ARGV[from + 3], ARGV[from + 4]
    if key ~= '' then
      call('HSET', base .. KEY_UNIQUE, key, id)
      write_state(id, FIELD_UNIQUE_KEY, key, FIELD_UNIQUE_SCOPE, ARGV[from + 5])
    end
    if start_by ~= '' then call('ZADD', base .. KEY_START_BY, start_by, id) end
    local due_ms = start_ms(ARGV[from + 2])
    if due_ms > now then
      earliest = schedule(base .. KEY_SCHEDULED, earliest, broker, id, due_ms)
    else
      entries[#entries + 1] = prefix .. id
    end
  end
end
