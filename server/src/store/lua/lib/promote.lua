-- Due jobs.

-- Moves due jobs from scheduled to their lanes, at most `limit`; what a newer version wrote goes to where a newer
-- broker finds it. Returns how many, and the ids of those that have no readable record.
local function promote(limit)
  local due = call('ZRANGEBYSCORE', base .. KEY_SCHEDULED, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
  local items, ids, orphans, parked = {}, {}, {}, {}
  for k = 1, #due, 2 do
    local id, due_ms = due[k], tonumber(due[k + 1])
    local head, newer = read_head(id)
    if newer then
      parked[#parked + 1] = entry_of(0, due_ms, id)
    elseif head then
      local flags = entry_flags(head.flags)
      if call('EXISTS', base .. KEY_STATE .. id) == 1 and not has(flags, FLAG_STATE) then flags = flags + FLAG_STATE end
      touch(base .. KEY_LANE .. head.lane, base .. KEY_QUARANTINED_LANE .. head.lane)
      items[#items + 1] = { id = id, flags = flags, lane = head.lane, ms = due_ms }
    else
      orphans[#orphans + 1] = id
    end
    ids[#ids + 1] = id
  end
  if #ids == 0 then return 0, orphans end
  touch(base .. KEY_LANES, base .. KEY_NEWER)
  touch_ends(orphans)
  make_ready(items, false)
  if #parked > 0 then call('RPUSH', base .. KEY_NEWER, unpack(parked)) end
  call('ZREM', base .. KEY_SCHEDULED, unpack(ids))
  return #items + #parked, orphans
end
