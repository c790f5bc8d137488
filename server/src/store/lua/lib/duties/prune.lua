-- Duty: delete what is past its time: waits, windows of unique keys, retained jobs, memories of settled ids.

local function prune_waits(run)
  local over = call('ZRANGEBYSCORE', base .. KEY_WAITERS, '-inf', now, 'LIMIT', 0, run.limit)
  if #over >= run.limit then run.more = 1 end
  if #over > 0 then call('ZREM', base .. KEY_WAITERS, unpack(over)) end
end

-- Frees the unique keys of windows that are over.
local function end_windows(run)
  local over = call('ZRANGEBYSCORE', base .. KEY_UNIQUE_WINDOWS, '-inf', now, 'LIMIT', 0, run.limit)
  if #over >= run.limit then run.more = 1 end
  if #over == 0 then return end
  local free = {}
  for k, value in ipairs(call('HMGET', base .. KEY_UNIQUE, unpack(over))) do
    local is_window = value and #value == UNIQUE_WINDOW_BYTES
    if is_window and unpack_ms(value, UNIQUE_UNTIL_AT) <= now then free[#free + 1] = over[k] end
  end
  if #free > 0 then call('HDEL', base .. KEY_UNIQUE, unpack(free)) end
  call('ZREM', base .. KEY_UNIQUE_WINDOWS, unpack(over))
end

-- Deletes jobs that are retained in this set: by age, then by count, oldest first. Returns how many.
local function prune_retained(run, key, age_limit, most)
  local limit = run.limit
  local old = call('ZRANGEBYSCORE', key, '-inf', age_limit, 'LIMIT', 0, limit)
  if #old < limit then
    local excess = min(limit - #old, call('ZCARD', key) - #old - most)
    if excess > 0 then
      for _, id in ipairs(call('ZRANGE', key, #old, #old + excess - 1)) do old[#old + 1] = id end
    end
  end
  if #old > 0 then
    touch_ends(old)
    for _, id in ipairs(old) do delete_job(id) end
    call('ZREM', key, unpack(old))
  end
  if #old >= limit then run.more = 1 end
  return #old
end

-- Begins a new generation of the memory if the current one is too old or too large.
local function rotate_memory(run)
  if not run.generation then return end
  local gen, start = tonumber(run.generation) or 0, tonumber(run.generation_start) or 0
  local current, before = base .. KEY_MEMORY .. gen, base .. KEY_MEMORY .. (gen - 1)
  local is_too_old = now - start >= run.window_ms and call('EXISTS', current, before) > 0
  local held = call('HLEN', current)
  if is_too_old or held > 0 and held >= run.max_ids then begin(next_generation(gen, start, run.window_ms)) end
end
