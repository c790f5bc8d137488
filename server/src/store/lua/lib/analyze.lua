-- AnalyzeJobs: counts jobs in groups of job type, failure type and message (store/operation/group.rs).

-- Counts a job in `groups`, which holds the groups of this step in order.
local function count_in_group(groups, id, job_type, ms)
  local failure = try('HMGET', base .. KEY_STATE .. id, FIELD_FAILURE_TYPE, FIELD_FAILURE_MESSAGE) or {}
  local message = string.gsub(sub(failure[2] or '', 1, GROUP_MESSAGE_BYTES), '%d+', '#')
  local name = job_type .. '\0' .. (failure[1] or '') .. '\0' .. message
  local group = groups[name]
  if not group then
    group = { name = name, jobs = 0, first = ms, last = ms, sample = id, hours = {} }
    groups[name], groups[#groups + 1] = group, group
  end
  local hour = floor(ms / HOUR_MS)
  group.jobs, group.first, group.last = group.jobs + 1, min(group.first, ms), max(group.last, ms)
  group.hours[hour] = (group.hours[hour] or 0) + 1
end

-- Adds what is stored of a group to what was counted.
local function add_stored(group, stored)
  local jobs, first, last = struct.unpack('>I6I6I6', stored)
  group.jobs, group.first, group.last = group.jobs + jobs, min(group.first, first), max(group.last, last)
  group.sample = sub(stored, 19, 34)
  for at = 35, #stored, 8 do
    local hour, count = struct.unpack('>I4I4', stored, at)
    group.hours[hour] = (group.hours[hour] or 0) + count
  end
end

-- Adds the groups of a step to those of the operation. Jobs that find no room go to the group without names.
local function store_groups(op_key, groups, start_ms)
  local known = tonumber(call('HGET', op_key, OPERATION_GROUPS)) or 0
  local start_hour = floor(start_ms / HOUR_MS)
  local first_hour, last_hour = start_hour - GROUP_HOURS_BEFORE, start_hour + GROUP_HOURS_AFTER
  for _, group in ipairs(groups) do
    local field = OPERATION_GROUP .. group.name
    local stored = call('HGET', op_key, field)
    if not stored then
      if known < GROUPS_KEPT then
        known = known + 1
      else
        field = OPERATION_GROUP .. '\0\0'
        stored = call('HGET', op_key, field)
      end
    end
    if stored then add_stored(group, stored) end
    local value = struct.pack('>I6I6I6', group.jobs, group.first, group.last) .. group.sample
    for hour, count in pairs(group.hours) do
      if hour >= first_hour and hour <= last_hour then value = value .. struct.pack('>I4I4', hour, count) end
    end
    call('HSET', op_key, field, value)
  end
  call('HSET', op_key, OPERATION_GROUPS, known)
end
