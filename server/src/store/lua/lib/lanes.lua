-- Jobs that become ready.

-- Puts jobs into their lanes, at the tail or one by one at the head, and notifies the brokers, this one too. `items` is
-- a list of {id, flags, lane, ms}; at the head all have the same time. Every lane must have been touched before the
-- first write of the script.
local function make_ready(items, at_head)
  local lanes, order, late = {}, {}, {}
  for _, item in ipairs(items) do
    local lane = item.lane
    local plan = lanes[lane]
    if not plan then
      plan = { key = base .. KEY_LANE .. lane, ms = item.ms, entries = {} }
      local first
      first, plan.foreign = try('LINDEX', plan.key, '0')
      if at_head and first and #first == ENTRY_BYTES then plan.ms = min(plan.ms, unpack_ms(first, ENTRY_TIME_AT)) end
      lanes[lane], order[#order + 1] = plan, lane
    end
    plan.entries[#plan.entries + 1] = entry_of(item.flags, at_head and plan.ms or item.ms, item.id)
    -- A half behind the time: it passed while a worker held the job, which expires now.
    if at_head and has(item.flags, FLAG_START_BY) then
      local start_by = tonumber(call('ZSCORE', base .. KEY_START_BY, item.id) or 0)
      if start_by % 1 > 0 then late[#late + 1], late[#late + 2] = now, item.id end
    end
  end
  if #late > 0 then call('ZADD', base .. KEY_START_BY, unpack(late)) end
  for _, lane in ipairs(order) do
    local plan = lanes[lane]
    if plan.foreign then call('RENAME', plan.key, base .. KEY_QUARANTINED_LANE .. lane) end
    local length = call(at_head and 'LPUSH' or 'RPUSH', plan.key, unpack(plan.entries))
    local was_empty = length == #plan.entries
    if at_head or was_empty then call('ZADD', base .. KEY_LANES, lane_score(lane, plan.ms), lane) end
    if was_empty then notify(NOTIFY_LANE_READY .. NOBODY .. lane) end
  end
end
