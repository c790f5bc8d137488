-- Lanes as a fetch reads them: for lease.lua.

-- Reads on in an open lane. A key of another type has no entries.
local function read_lane(plan, from, most)
  local entries = redis.pcall('LRANGE', plan.key, from, from + most)
  if entries.err then
    if not string.find(entries.err, 'WRONGTYPE', 1, true) then call('LRANGE', plan.key, from, from + most) end
    entries, plan.foreign = {}, true
  end
  plan.entries, plan.from, plan.ends = entries, from, #entries <= most
end

-- Opens a lane: `entries` begin behind the first `from` of its list and `ends` says that the list ends with them;
-- `passed` of the list are decided on, `merged` of it are in a batch.
local function open_lane(lane, most)
  local plan = {
    lane = lane, key = base .. KEY_LANE .. lane, passed = 0, merged = 0, entries = false, from = 0, ends = false,
  }
  touch(plan.key, base .. KEY_QUARANTINED_LANE .. lane)
  read_lane(plan, 0, most)
  return plan
end

-- The open lane of a group whose next entry is oldest, the time of that entry, and the time at which another lane is
-- older.
local function oldest_of(group, most)
  local oldest, oldest_ms, until_ms
  for _, plan in ipairs(group) do
    if plan.merged < plan.from or not plan.ends and plan.merged - plan.from >= #plan.entries then
      read_lane(plan, plan.merged, most)
    end
    local entry = plan.entries[plan.merged - plan.from + 1]
    if entry then
      local ms = sub(entry, ENTRY_TIME_AT, ENTRY_TIME_END)
      if not oldest or ms < oldest_ms then
        oldest, oldest_ms, until_ms = plan, ms, oldest_ms
      elseif not until_ms or ms < until_ms then
        until_ms = ms
      end
    end
  end
  return oldest, oldest_ms, until_ms
end

-- Up to `most` further entries of the open lanes of one priority (`group`), oldest first, and the lane of each; opens
-- the next lanes of the priority, by age, as it comes to them.
local function merge(group, following, open, most)
  local entries, plan_of, unopened, unopened_ms = {}, {}, nil, nil
  while #entries < most do
    local lane = following(byte(group[1].lane, 1))
    if lane and lane ~= unopened then
      unopened = lane
      unopened_ms = sub(try('LINDEX', base .. KEY_LANE .. lane, '0') or '', ENTRY_TIME_AT, ENTRY_TIME_END)
    end
    local oldest, oldest_ms, until_ms = oldest_of(group, most)
    if lane and (not oldest or unopened_ms < oldest_ms) then
      open(lane)
    elseif not oldest then
      break
    else
      if lane and (not until_ms or unopened_ms < until_ms) then until_ms = unopened_ms end
      repeat
        local entry = oldest.entries[oldest.merged - oldest.from + 1]
        local ms = entry and sub(entry, ENTRY_TIME_AT, ENTRY_TIME_END)
        if not ms or until_ms and ms ~= oldest_ms and ms >= until_ms then break end
        entries[#entries + 1] = entry
        plan_of[#entries], oldest.merged = oldest, oldest.merged + 1
      until #entries >= most
    end
  end
  return entries, plan_of
end

-- Takes what was decided on out of a lane, and writes its new place among the lanes.
local function leave_lane(plan)
  local passed = plan.passed
  -- The entry behind it was mostly read; or a merge has read on beyond it.
  local entry = passed >= plan.from and plan.entries[passed - plan.from + 1]
  if not entry and (passed < plan.from or not plan.ends) then entry = call('LINDEX', plan.key, passed) end
  if passed > 0 then
    call('LTRIM', plan.key, passed, '-1')
  end
  if not entry then
    -- A key of another type is no lane: it is set aside.
    if plan.foreign then call('RENAME', plan.key, base .. KEY_QUARANTINED_LANE .. plan.lane) end
    call('ZREM', base .. KEY_LANES, plan.lane)
  elseif passed > 0 then
    local ms = #entry == ENTRY_BYTES and unpack_ms(entry, ENTRY_TIME_AT) or 0
    call('ZADD', base .. KEY_LANES, string.format('%d', lane_score(plan.lane, ms)), plan.lane)
  end
end
