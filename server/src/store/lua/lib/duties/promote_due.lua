-- Duty: promote due jobs.

-- Returns how many. Jobs without a readable record are set aside.
local function promote_due(run)
  local promoted, orphans = promote(run.limit)
  if promoted + #orphans >= run.limit then run.more = 1 end
  for _, id in ipairs(orphans) do
    quarantine(id, 'scheduled without a readable record')
    run.quarantined[#run.quarantined + 1] = id
  end
  return promoted
end
