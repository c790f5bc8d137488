-- Which lanes a fetch reads: for lease.lua.

-- A function that says whether a lane is wanted. `priorities` are digits, '' all; no types: all.
local function lane_filter(priorities, types)
  local wanted_types = {}
  for _, name in ipairs(types) do wanted_types[name] = true end
  return function(lane)
    return (priorities == '' or string.find(priorities, sub(lane, 1, 1), 1, true))
      and (#types == 0 or wanted_types[sub(lane, 3)])
  end
end

-- The lanes of these types and one priority, by the age of their head.
local function lanes_of_types(priority, types)
  local names, ranked, lanes = {}, {}, {}
  for k, name in ipairs(types) do names[k] = priority .. ':' .. name end
  for k, score in ipairs(call('ZMSCORE', base .. KEY_LANES, unpack(names))) do
    if score then ranked[#ranked + 1] = { name = names[k], score = tonumber(score) } end
  end
  table.sort(ranked, function(a, b) return a.score < b.score end)
  for k, lane in ipairs(ranked) do lanes[k] = lane.name end
  return lanes
end

-- The lanes of one priority, by the age of their head.
local function lanes_of_priority(priority)
  local low = lane_score(priority, 0)
  return call('ZRANGEBYSCORE', base .. KEY_LANES, low, low + (PRIORITY_SPAN - 1), 'LIMIT', 0, LANES_PER_FETCH + 1)
end

-- The wanted lanes, in order, found without walking through an index of many lanes.
local function find_lanes(priorities, types)
  local lanes = {}
  for digit = DIGIT_9, DIGIT_1, -1 do
    local priority = char(digit)
    if priorities == '' or string.find(priorities, priority, 1, true) then
      local found = #types > 0 and lanes_of_types(priority, types) or lanes_of_priority(priority)
      for _, lane in ipairs(found) do lanes[#lanes + 1] = lane end
    end
  end
  return lanes
end
