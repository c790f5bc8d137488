-- Duty: expire jobs that were not started in time.

-- Returns how many.
local function expire_late(run)
  local late = call('ZRANGEBYSCORE', base .. KEY_START_BY, '-inf', now, 'LIMIT', 0, run.limit)
  if #late >= run.limit then run.more = 1 end
  if #late == 0 then return 0 end
  local expired, held, over = {}, {}, {}
  for _, id in ipairs(late) do
    local head, newer = read_head(id)
    local final = try('HGET', base .. KEY_STATE .. id, FIELD_FINAL_STATE)
    if newer or head and not final and call('HEXISTS', base .. KEY_LEASES, id) == 1 then
      -- A worker holds it. The half says that the moment has passed: if the job comes back unstarted, it expires.
      local deadline = tonumber(call('ZSCORE', base .. KEY_DEADLINES, id) or 0)
      held[#held + 1] = string.format('%d.5', max(now + 1000, deadline))
      held[#held + 1] = id
    else
      over[#over + 1] = id
      if head and not final then
        expired[#expired + 1] = { id = id, head = head, scheduled = call('ZSCORE', base .. KEY_SCHEDULED, id) }
      end
    end
  end
  local memories, memory, ids = generation(run.generation, run.generation_start, run.window_ms), {}, {}
  touch_ends({})
  for k, job in ipairs(expired) do
    local id, head = job.id, job.head
    ids[k], memory[2 * k - 1], memory[2 * k] = id, id, STATE_EXPIRED
    release_unique(id, head.flags)
    if not job.scheduled then add_tombstone(id, head.lane) end
    keep_settled(id, STATE_EXPIRED, now + retention(head, run.failure_retention), {})
    call('ZREM', base .. KEY_SCHEDULED, id)
  end
  if #ids > 0 then call('HSET', begin(memories), unpack(memory)) end
  if #over > 0 then call('ZREM', base .. KEY_START_BY, unpack(over)) end
  if #held > 0 then call('ZADD', base .. KEY_START_BY, unpack(held)) end
  notify_waiters(run.waited_until, ids)
  return #expired
end
