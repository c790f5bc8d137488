-- Goes through the jobs of a filter and counts those that match.
-- KEYS  meta
-- ARGV  cursor ('' from the start), jobs to examine at most, ids to return at most, filter (lib/filter.lua)
-- RETURNS {now ms, jobs examined (-1: too many lanes), cursor ('' at the end), jobs that match, id of the first...}
-- MOVES  -
local reply, most_ids = { now, 0, '', 0 }, tonumber(ARGV[3])
local filter = read_filter(4)
local examined, cursor = walk(filter, ARGV[1], false, tonumber(ARGV[2]), function(job)
  reply[4] = reply[4] + 1
  if #reply < 4 + most_ids then reply[#reply + 1] = job.id end
  return false
end)
reply[2], reply[3] = examined or -1, cursor or ''
return reply
