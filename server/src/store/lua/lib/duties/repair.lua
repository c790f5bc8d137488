-- Duty: end leases without a deadline, for example after manual edits in Redis.

-- Gives a deadline to those that have none, so that the next run ends them. Returns how many, and the next cursor.
local function repair_leases(run, cursor)
  local repaired = 0
  local scan = call('HSCAN', base .. KEY_LEASES, cursor, 'COUNT', '20')
  for k = 1, #scan[2], 2 do
    local id = scan[2][k]
    if not call('ZSCORE', base .. KEY_DEADLINES, id) then
      repaired, run.more = repaired + 1, 1
      call('ZADD', base .. KEY_DEADLINES, now, id)
    end
  end
  return repaired, scan[1]
end
