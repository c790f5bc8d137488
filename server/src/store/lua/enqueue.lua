-- Stores jobs, in groups that share a lane.
-- KEYS  meta, lane index, scheduled, unique keys, start_by
-- ARGV  broker, then groups: kind, lane, flags, count and per job
--         kind 'n' (ids made by the broker) and 'p' (ids made by the caller): id, record
--         kind 'x': id, record, due ('' now, 'd<ms>' from now, 'a<ms>' absolute), start_by ms or '', unique key or '', scope ('L' until leased, 'S' until settled)
-- RETURNS {now ms, {number of each job that was there already, id of the job that lives}, pause reason or false}
-- MOVES  - → READY, - → SCHEDULED
local broker = ARGV[1]
local meta = call('HMGET', KEYS[1], 'ep', 'dg', 'pr')
if meta[1] then return { now, {}, meta[3] or '' } end

-- decide
local groups, duplicates, at, number = {}, {}, 2, 0
local seen_keys, body_of = {}, base .. 'j'
while ARGV[at] do
  local kind, lane, flags, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local stride = kind == 'x' and 6 or 2
  at = at + 4
  local ids, bodies, taken = {}, {}, nil
  for k = 1, count do
    local id = ARGV[at + (k - 1) * stride]
    ids[k] = id
    bodies[k] = body_of .. id
  end
  if kind == 'n' then
    touch(KEYS[2], KEYS[3], KEYS[5], base .. 'r:' .. lane, unpack(bodies))
  else
    touch(KEYS[2], KEYS[3], KEYS[5], base .. 'r:' .. lane)
    if call('EXISTS', unpack(bodies)) > 0 then
      taken = {}
      for k = 1, count do taken[k] = call('EXISTS', bodies[k]) == 1 end
    end
    local settled = remembered(meta[2], ids)
    if settled then
      for k = 1, count do
        if settled[k] then
          taken = taken or {}
          taken[k] = true
        end
      end
    end
  end
  local group = { kind = kind, lane = lane, flags = flags, items = {} }
  local pairs_to_set, n = {}, 0
  for k = 1, count do
    number = number + 1
    local from = at + (k - 1) * stride
    local fresh = not (taken and taken[k])
    if not fresh then
      duplicates[#duplicates + 1] = number
      duplicates[#duplicates + 1] = ids[k]
    elseif kind == 'x' and ARGV[from + 4] ~= '' then
      local key = ARGV[from + 4]
      touch(base .. 's' .. ids[k])
      local holder = seen_keys[key] or call('HGET', KEYS[4], key)
      if holder then
        fresh = false
        duplicates[#duplicates + 1] = number
        duplicates[#duplicates + 1] = holder
      else
        seen_keys[key] = ids[k]
      end
    end
    if fresh then
      pairs_to_set[2 * n + 1], pairs_to_set[2 * n + 2] = bodies[k], ARGV[from + 1]
      n = n + 1
      group.items[n] = from
    end
  end
  group.sets, group.count = pairs_to_set, n
  groups[#groups + 1] = group
  at = at + count * stride
end

-- act
for _, group in ipairs(groups) do
  if group.count > 0 then
    local entries = {}
    call('MSET', unpack(group.sets))
    local prefix = char(group.flags) .. pack_ms(now)
    if group.kind ~= 'x' then
      for k = 1, group.count do entries[k] = prefix .. ARGV[group.items[k]] end
    else
      local earliest = call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
      earliest = earliest and tonumber(earliest)
      for k = 1, group.count do
        local from = group.items[k]
        local id, due, start_by, key = ARGV[from], ARGV[from + 2], ARGV[from + 3], ARGV[from + 4]
        if key ~= '' then
          call('HSET', KEYS[4], key, id)
          call('HSET', base .. 's' .. id, 'uk', key, 'us', ARGV[from + 5])
        end
        if start_by ~= '' then call('ZADD', KEYS[5], start_by, id) end
        local due_ms = now
        if due ~= '' then
          due_ms = tonumber(sub(due, 2))
          if byte(due, 1) == 100 then due_ms = now + due_ms end
        end
        if due_ms > now then
          call('ZADD', KEYS[3], due_ms, id)
          if not earliest or due_ms < earliest then
            earliest = due_ms
            tell('z' .. broker .. string.format('%d', due_ms))
          end
        else
          entries[#entries + 1] = prefix .. id
        end
      end
    end
    if #entries > 0 then
      local length = call('RPUSH', base .. 'r:' .. group.lane, unpack(entries))
      if length == #entries then
        call('ZADD', KEYS[2], lane_score(group.lane, now), group.lane)
        tell('r' .. broker .. group.lane)
      end
    end
  end
end
return { now, duplicates, false }
