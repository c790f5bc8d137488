-- Goes through the jobs of a filter, part by part: for scripts that list jobs or change many of them.
--
--   looked, cursor = walk(filter, cursor, newest_first, most, on_match)
--
-- examines up to `most` jobs from `cursor` on ('' from the start) and calls on_match(job) for each that matches; if
-- that returns true, the walk stops behind this job. `looked`: how many jobs it examined. `cursor`: where to go on, ''
-- at the end; opaque, and no longer than 200 bytes. nil, nil: READY, and there are more lanes than a walk chooses
-- among.
--
-- job: `id`; `record`, the first bytes of its record, with all before its fields but the policy; `ms`, the time by
-- which its place sorts it (nil where the filter names ids): due, ready, deadline, death, end of retention; `lane` and
-- `entry` in READY; `lease` in LEASED.
--
-- A job that stays where it is throughout the walk comes exactly once, whatever else comes, goes, or is moved by
-- on_match. One whose time changes in between (a renewed lease, a debounced job), or that leaves and comes back, may
-- come twice or, newest first, not at all. Order: oldest first or newest first; READY lane by lane, highest priority
-- first, then by job type; named ids as they are named.

-- Whether bytes are before others. (`<` compares as the locale of Redis does.)
local function is_before(a, b)
  for k = 1, min(#a, #b) do
    local x, y = byte(a, k), byte(b, k)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- How many members of a sorted set are before this one, and whether it is there with this score. If it is not, halving
-- finds the place where it would be.
local function rank_of(key, score, member)
  if call('ZSCORE', key, member) == score then return call('ZRANK', key, member), true end
  local low, high, wanted = 0, call('ZCARD', key), tonumber(score)
  while low < high do
    local middle = floor((low + high) / 2)
    local at = call('ZRANGE', key, middle, middle, 'WITHSCORES')
    local found = tonumber(at[2])
    if found < wanted or found == wanted and is_before(at[1], member) then low = middle + 1 else high = middle end
  end
  return low, false
end

-- The sorted set of a filter's place, and the times that it asks for there: from (inclusive) and until (exclusive) in
-- milliseconds, nil for open.
local function place_of(filter)
  local letter = sub(filter.states, 1, 1)
  if letter == STATE_SCHEDULED then
    return KEY_SCHEDULED, filter.from, filter.is_late and min(filter.until_ms or now + 1, now + 1) or filter.until_ms
  elseif letter == STATE_LEASED then
    return KEY_DEADLINES, nil, filter.is_late and now + 1 or nil
  elseif letter == STATE_DEAD then
    return KEY_DEAD, filter.from, filter.until_ms
  end
  return KEY_SETTLED, nil, nil
end

local function walk_sorted(filter, cursor, newest_first, most, on_match)
  local part, from_ms, until_ms = place_of(filter)
  local key = base .. part
  local first = from_ms and call('ZCOUNT', key, '-inf', '(' .. from_ms) or 0
  local behind = until_ms and call('ZCOUNT', key, '-inf', '(' .. until_ms) or call('ZCARD', key)
  if cursor ~= '' then
    local space = string.find(cursor, ' ', 1, true)
    local rank, is_there = rank_of(key, sub(cursor, 1, space - 1), sub(cursor, space + 1))
    if newest_first then behind = min(behind, rank) else first = max(first, is_there and rank + 1 or rank) end
  end
  local from = newest_first and max(first, behind - most) or first
  local some = from < behind and call('ZRANGE', key, from, min(behind, from + most) - 1, 'WITHSCORES') or {}
  local count = #some / 2
  local at_end = newest_first and from <= first or not newest_first and from + count >= behind
  local ids, leases = {}, {}
  if part == KEY_DEADLINES and count > 0 then
    for k = 1, count do ids[k] = some[2 * k - 1] end
    leases = call('HMGET', base .. KEY_LEASES, unpack(ids))
  end
  for looked = 1, count do
    local k = newest_first and count + 1 - looked or looked
    local id, score, lease = some[2 * k - 1], some[2 * k], leases[k]
    local is_job = #id == JOB_ID_BYTES and (part ~= KEY_DEADLINES or lease and #lease >= LEASE_BYTES)
    local record = is_job and matches(filter, id, lease)
    if record and on_match({ id = id, record = record, ms = tonumber(score), lease = lease }) then
      return looked, looked == count and at_end and '' or score .. ' ' .. id
    end
    if looked == count and not at_end then return looked, score .. ' ' .. id end
  end
  return count, ''
end

-- Puts those of some lanes of one priority that come after `after` behind the lanes that are chosen already, in order,
-- as long as there is room.
local function choose_lanes_after(chosen, names, after)
  local others = #chosen
  for _, name in ipairs(names) do
    if name > after and (#chosen < LANES_PER_WALK or name < chosen[#chosen]) then
      local at = #chosen
      while at > others and name < chosen[at] do at = at - 1 end
      if at < LANES_PER_WALK then table.insert(chosen, at + 1, name) end
      chosen[LANES_PER_WALK + 1] = nil
    end
  end
end

-- The next lanes of a filter after this one ('' the first ones); nil: there are too many to choose among.
local function lanes_after(filter, after)
  local chosen = {}
  for digit = after == '' and DIGIT_9 or byte(after, 1), DIGIT_1, -1 do
    local priority = char(digit)
    if #chosen < LANES_PER_WALK and (not filter.priorities or string.find(filter.priorities, priority, 1, true)) then
      local names = {}
      if filter.types then
        local wanted = {}
        for name in pairs(filter.types) do wanted[#wanted + 1] = priority .. ':' .. name end
        for k, score in ipairs(call('ZMSCORE', base .. KEY_LANES, unpack(wanted))) do
          if score then names[#names + 1] = wanted[k] end
        end
      else
        local low = lane_score(priority, 0)
        local high = low + (PRIORITY_SPAN - 1)
        names = call('ZRANGEBYSCORE', base .. KEY_LANES, low, high, 'LIMIT', 0, MOST_LANES_OF_WALK + 1)
        if #names > MOST_LANES_OF_WALK then return nil end
      end
      choose_lanes_after(chosen, names, sub(after, 1, 1) == priority and after or '')
    end
  end
  return chosen
end

-- Where an entry is in the part of a lane from `first` to `last`; nil: not there. Flags may have changed.
local function find_entry(key, first, last, entry)
  first = max(first, 0)
  if last < first then return nil end
  local some, wanted = call('LRANGE', key, first, last), sub(entry, ENTRY_TIME_AT)
  for k = #some, 1, -1 do
    if sub(some[k], ENTRY_TIME_AT) == wanted then return first + k - 1 end
  end
  return nil
end

-- Where an entry of a lane is that was at `index`. Entries leave a lane only at its head, so nil says: it left, and
-- what was before it, too. It is near its index or near the entries of its time; entries are not always in the order of
-- time (promoted jobs), so one that is not there and whose job still waits is searched for from the head.
local function place_in_lane(key, index, entry)
  local found = find_entry(key, index - ENTRIES_SEARCHED, index, entry)
  if found then return found end
  local low, high, ms = 0, call('LLEN', key), unpack_ms(entry, ENTRY_TIME_AT)
  while low < high do
    local middle = floor((low + high) / 2)
    local at = call('LINDEX', key, middle)
    if #at == ENTRY_BYTES and unpack_ms(at, ENTRY_TIME_AT) > ms then high = middle else low = middle + 1 end
  end
  found = find_entry(key, low - ENTRIES_SEARCHED, low + ENTRIES_SEARCHED, entry)
  if found or state_of(sub(entry, ENTRY_ID_AT)) ~= STATE_READY then return found end
  return call('LPOS', key, entry) or nil
end

-- Which of some entries of a lane are of jobs that are READY there, by place among them. As many entries of a job are
-- tombstoned as there are tombstones, those nearest the head.
local function living_entries(lane, entries)
  local living, ids = {}, {}
  for k, entry in ipairs(entries) do living[k] = #entry == ENTRY_BYTES end
  if not call('HGET', base .. KEY_TOMBSTONE_COUNTS, lane) then return living end
  for k, entry in ipairs(entries) do ids[k] = sub(entry, ENTRY_ID_AT) .. lane end
  local counts, behind = call('HMGET', base .. KEY_TOMBSTONES, unpack(ids)), {}
  for k = #entries, 1, -1 do
    if counts[k] then
      local id = sub(entries[k], ENTRY_ID_AT)
      local is_here = living[k] and not behind[id] and state_of(id) == STATE_READY
      if is_here then
        local head = read_head(id)
        is_here = head ~= nil and head.lane == lane
      end
      living[k], behind[id] = is_here, true
    end
  end
  return living
end

-- Examines up to `most` entries of a lane from an index on. Returns how many, the index and bytes of the last of them,
-- and whether on_match stopped.
local function walk_lane(filter, lane, from, newest_first, most, on_match)
  local key = base .. KEY_LANE .. lane
  local first = newest_first and max(0, from + 1 - most) or from
  local last = newest_first and from or from + most - 1
  local entries = last >= first and try('LRANGE', key, first, last) or {}
  local living = #entries > 0 and living_entries(lane, entries) or {}
  for looked = 1, #entries do
    local k = newest_first and #entries + 1 - looked or looked
    local entry = entries[k]
    local id = sub(entry, ENTRY_ID_AT)
    local record = living[k] and matches(filter, id)
    if record then
      local job = { id = id, record = record, ms = unpack_ms(entry, ENTRY_TIME_AT), lane = lane, entry = entry }
      if on_match(job) then return looked, first + k - 1, entry, true end
    end
    if looked == #entries then return looked, first + k - 1, entry, false end
  end
  return 0, -1, nil, false
end

local function lane_cursor(lane, index, entry)
  return index .. ' ' .. (entry and #entry == ENTRY_BYTES and entry or string.rep('-', ENTRY_BYTES)) .. lane
end

local function walk_lanes(filter, cursor, newest_first, most, on_match)
  local looked, from, after = 0, nil, ''
  if cursor ~= '' then
    local space = string.find(cursor, ' ', 1, true)
    local index, entry = tonumber(sub(cursor, 1, space - 1)), sub(cursor, space + 1, space + ENTRY_BYTES)
    after = sub(cursor, space + ENTRY_BYTES + 1)
    local key = base .. KEY_LANE .. after
    -- A walk is done with a lane whose index is not given.
    if index >= 0 then
      local place = try('LLEN', key) and place_in_lane(key, index, entry)
      if newest_first then from = place and place - 1 or -1 else from = place and place + 1 or 0 end
    end
  end
  local lanes = lanes_after(filter, after)
  if not lanes then return nil, nil end
  if from then table.insert(lanes, 1, after) end
  for k, lane in ipairs(lanes) do
    if k > 1 or not from then from = newest_first and (try('LLEN', base .. KEY_LANE .. lane) or 0) - 1 or 0 end
    local some, index, entry, stopped = walk_lane(filter, lane, from, newest_first, most - looked, on_match)
    looked = looked + some
    if stopped or looked >= most then return looked, lane_cursor(lane, index, entry) end
    after = lane
  end
  return looked, #lanes >= LANES_PER_WALK and lane_cursor(after, -1, nil) or ''
end

local function walk_ids(filter, cursor, most, on_match)
  local first, states = tonumber(cursor) or 0, filter.states
  local part, from_ms, until_ms = place_of(filter)
  for k = first + 1, min(#filter.ids, first + most) do
    local id = filter.ids[k]
    local state = states ~= '' and state_of(id)
    local fits = not state or string.find(states, state, 1, true)
    if fits and (from_ms or until_ms) then
      local ms = tonumber(call('ZSCORE', base .. part, id) or nil)
      fits = ms and (not from_ms or ms >= from_ms) and (not until_ms or ms < until_ms)
    end
    local lease = fits and state == STATE_LEASED and call('HGET', base .. KEY_LEASES, id) or nil
    local record = fits and matches(filter, id, lease)
    if record and on_match({ id = id, record = record, lease = lease }) then
      return k - first, k < #filter.ids and tostring(k) or ''
    end
  end
  local last = min(#filter.ids, first + most)
  return last - first, last < #filter.ids and tostring(last) or ''
end

local function walk(filter, cursor, newest_first, most, on_match)
  if #filter.ids > 0 then return walk_ids(filter, cursor, most, on_match) end
  if filter.states == STATE_READY then return walk_lanes(filter, cursor, newest_first, most, on_match) end
  return walk_sorted(filter, cursor, newest_first, most, on_match)
end
