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
local function duplicate(of, id)
  duplicates[#duplicates + 1] = of
  duplicates[#duplicates + 1] = id
end
while ARGV[at] do
  local kind, lane, flags, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local stride = kind == 'x' and 6 or 2
  local ids, sets = {}, {}
  at = at + 4
  for k = 1, count do
    local from = at + (k - 1) * stride
    local id = ARGV[from]
    ids[k], sets[2 * k - 1], sets[2 * k] = id, body_of .. id, ARGV[from + 1]
  end
  touch(KEYS[2], KEYS[3], KEYS[5], base .. 'r:' .. lane)
  touch_all(body_of, ids)
  local group = { kind = kind, lane = lane, flags = flags, ids = ids, sets = sets, before = number, from = {} }
  local stale = kind ~= 'n' and remembered(meta[2], ids)
  if stale or kind == 'x' then
    -- Some are settled already, or have more to say: one by one.
    local n = 0
    group.ids, group.sets, group.numbers = {}, {}, {}
    for k, id in ipairs(ids) do
      local from = at + (k - 1) * stride
      local holder = (stale and stale[k] or kind == 'x' and call('EXISTS', sets[2 * k - 1]) == 1) and id
      if not holder and kind == 'x' and ARGV[from + 4] ~= '' then
        touch(base .. 's' .. id)
        holder = seen_keys[ARGV[from + 4]] or call('HGET', KEYS[4], ARGV[from + 4])
        seen_keys[ARGV[from + 4]] = holder or id
      end
      if holder then
        duplicate(number + k, holder)
      else
        n = n + 1
        group.ids[n], group.numbers[n], group.from[n] = id, number + k, from
        group.sets[2 * n - 1], group.sets[2 * n] = sets[2 * k - 1], sets[2 * k]
      end
    end
  end
  groups[#groups + 1] = group
  number = number + count
  at = at + count * stride
end

-- act
for _, group in ipairs(groups) do
  local ids, sets, entries = group.ids, group.sets, {}
  if group.kind == 'p' and #ids > 0 and call('MSETNX', unpack(sets)) == 0 then
    -- Some are alive already.
    local fresh, fresh_sets = {}, {}
    for k, id in ipairs(ids) do
      if call('EXISTS', sets[2 * k - 1]) == 1 then
        duplicate(group.numbers and group.numbers[k] or group.before + k, id)
      else
        fresh[#fresh + 1] = id
        fresh_sets[#fresh_sets + 1] = sets[2 * k - 1]
        fresh_sets[#fresh_sets + 1] = sets[2 * k]
      end
    end
    ids, sets = fresh, fresh_sets
    if #ids > 0 then call('MSET', unpack(sets)) end
  elseif group.kind ~= 'p' and #ids > 0 then
    call('MSET', unpack(sets))
  end
  local prefix = char(group.flags) .. pack_ms(now)
  if group.kind ~= 'x' then
    for k = 1, #ids do entries[k] = prefix .. ids[k] end
  elseif #ids > 0 then
    local earliest = call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
    earliest = earliest and tonumber(earliest)
    for k, id in ipairs(ids) do
      local from = group.from[k]
      local due, start_by, key = ARGV[from + 2], ARGV[from + 3], ARGV[from + 4]
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
      tell_others(broker, 'r' .. broker .. group.lane)
    end
  end
end
return { now, duplicates, false }
