-- Unique keys. The value of a key is the id of the job that holds it; of a window that holds it, the id of its job and
-- the time at which the window ends (store/layout.rs).

-- How a job ended of which only the id is left; '' if nothing is remembered of it. As remembered_end(), in one piece:
-- each function that an enqueue makes costs time.
local function end_of_gone(id)
  local gen = tonumber(call('HGET', base .. KEY_META, META_GENERATION))
  if not gen then return '' end
  local memory = call('HGET', base .. KEY_MEMORY .. gen, id) or call('HGET', base .. KEY_MEMORY .. (gen - 1), id)
  local letter = memory and sub(memory, 1, 1) or ''
  local is_final = letter == STATE_SUCCEEDED or letter == STATE_DEAD or letter == STATE_CANCELLED
    or letter == STATE_EXPIRED
  return is_final and letter or ''
end

-- The job that has a unique key, its state, and when the window ends that holds the key (nil: the job itself holds it).
-- nil: the key is free; then also when a window ended that is not swept yet. The state is '' if a window holds the key
-- and nothing is known of its job any more.
local function unique_holder(key)
  local value = call('HGET', base .. KEY_UNIQUE, key)
  if not value then return nil end
  local id = sub(value, 1, UNIQUE_ID_END)
  local until_ms = #value == UNIQUE_WINDOW_BYTES and unpack_ms(value, UNIQUE_UNTIL_AT) or nil
  if until_ms and until_ms <= now then return nil, nil, until_ms end
  local state = state_of(id)
  if until_ms then return id, state or end_of_gone(id), until_ms end
  -- A key that no job knows to be its own, after a restore or a manual edit, is free.
  if not state or try('HGET', base .. KEY_STATE .. id, FIELD_UNIQUE_KEY) ~= key then return nil end
  return id, state
end

-- Gives a unique key to a job; with `until_ms` to a window that ends then. `ended`: a window had it that is over.
local function take_unique(key, id, until_ms, ended)
  call('HSET', base .. KEY_UNIQUE, key, until_ms and id .. pack_ms(until_ms) or id)
  if until_ms then
    call('ZADD', base .. KEY_UNIQUE_WINDOWS, until_ms, key)
  elseif ended then
    call('ZREM', base .. KEY_UNIQUE_WINDOWS, key)
  end
end

-- Whether another job, or a window of one, has the unique key of this job, which is about to come back: its id.
local function unique_taken_from(id)
  local key = try('HGET', base .. KEY_STATE .. id, FIELD_UNIQUE_KEY)
  local holder = key and unique_holder(key)
  return holder ~= id and holder or nil
end

-- Takes the unique key of a job again, which comes back and has unique_taken_from() of nobody. A window is not begun
-- again: it holds the key still, or it is over.
local function retake_unique(id)
  local state = try('HMGET', base .. KEY_STATE .. id, FIELD_UNIQUE_KEY, FIELD_UNIQUE_SCOPE) or {}
  if state[1] and state[2] ~= SCOPE_WINDOW then take_unique(state[1], id, nil, true) end
end

-- Frees the unique key of a job that has ended, or that was leased if it holds the key until then. A window goes on.
-- `flags` are those of its entry or lease.
local function release_unique(id, flags)
  if has(flags, FLAG_STATE) then
    local key = try('HGET', base .. KEY_STATE .. id, FIELD_UNIQUE_KEY)
    if key and call('HGET', base .. KEY_UNIQUE, key) == id then call('HDEL', base .. KEY_UNIQUE, key) end
  end
end

-- Frees the unique key of a job that is deleted, also where a window holds it.
local function drop_unique(id)
  local key = try('HGET', base .. KEY_STATE .. id, FIELD_UNIQUE_KEY)
  local value = key and call('HGET', base .. KEY_UNIQUE, key)
  if value and sub(value, 1, UNIQUE_ID_END) == id then
    call('HDEL', base .. KEY_UNIQUE, key)
    call('ZREM', base .. KEY_UNIQUE_WINDOWS, key)
  end
end
