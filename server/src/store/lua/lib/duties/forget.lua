-- Duty: say when the next run is due, and remove the last keys of a queue in which nothing is left.

-- The earliest time at which something is to be done in the queue, or -1.
local function next_run(run)
  local next_ms = -1
  local function sooner(part, delay_ms)
    local first = call('ZRANGE', base .. part, '0', '0', 'WITHSCORES')[2]
    if first and first ~= 'inf' then
      local ms = tonumber(first) + delay_ms
      if next_ms < 0 or ms < next_ms then next_ms = ms end
    end
  end
  sooner(KEY_SCHEDULED, 0)
  sooner(KEY_DEADLINES, 0)
  sooner(KEY_START_BY, 0)
  -- What is only pruned may wait for others.
  sooner(KEY_DEAD, run.dead_retention + TIDY_MS)
  sooner(KEY_SETTLED, TIDY_MS)
  sooner(KEY_WAITERS, TIDY_MS)
  sooner(KEY_UNIQUE_WINDOWS, TIDY_MS)
  return next_ms
end

-- Whether no key of the queue is left but the meta, as far as it holds nothing but the memory, and the deadlines.
local function is_empty()
  return call(
    'EXISTS', base .. KEY_START_BY, base .. KEY_DEAD, base .. KEY_SETTLED, base .. KEY_TOMBSTONES,
    base .. KEY_TOMBSTONE_COUNTS, base .. KEY_UNIQUE, base .. KEY_UNIQUE_WINDOWS, base .. KEY_QUARANTINE,
    base .. KEY_NEWER, base .. KEY_WAITERS, base .. KEY_OPERATIONS
  ) == 0
end

-- Forgets a queue of which nothing is left, not even the memory of settled ids, if that is asked. Returns 1 if it is
-- forgotten, else 0; and the time from which it may be, or -1.
local function forget_empty(run, is_asked)
  if not is_empty() then return 0, -1 end
  local meta = call('HMGET', base .. KEY_META, META_GENERATION, META_GENERATION_START, META_WAITED_UNTIL)
  local fields = (meta[1] and 1 or 0) + (meta[2] and 1 or 0) + (meta[3] and 1 or 0)
  if call('HLEN', base .. KEY_META) ~= fields then return 0, -1 end
  local gen, start = tonumber(meta[1]) or 0, tonumber(meta[2]) or 0
  if call('EXISTS', base .. KEY_MEMORY .. gen, base .. KEY_MEMORY .. (gen - 1)) > 0 then
    return 0, start + 2 * run.window_ms
  end
  if not is_asked then return 0, now end
  touch(base .. KEY_DEADLINES)
  call('UNLINK', base .. KEY_META, base .. KEY_DEADLINES)
  return 1, now
end
