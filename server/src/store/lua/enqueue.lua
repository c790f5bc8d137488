-- Stores jobs, in groups that share a lane.
-- KEYS  meta, lane index, scheduled, unique keys, start_by
-- ARGV  broker, dedupe window ms, then groups: kind, lane, flags, count and per job
--         kind 'n' (ids made by the broker) and 'p' (ids made by the caller): id, record
--         kind 'x': id, record, due ('' now, 'd<ms>' from now, 'a<ms>' absolute), start_by ms or '', unique key or '', scope ('L' until leased, 'S' until settled)
-- RETURNS {now us, {number of each job that was there already, id of the job that lives, its state}; nothing if there is none}, or {now us, {}, pause reason}
-- MOVES  - → READY, - → SCHEDULED
local broker = ARGV[1]
local meta = call('HMGET', KEYS[1], 'ep', 'dg', 'pr')
if meta[1] then return { now_us, {}, meta[3] or '' } end

-- decide
local groups, duplicates, retained, at, number = {}, nil, nil, 3, 0
local seen_keys, body_of = nil, base .. 'j'
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
  touch_all(base .. 's', ids)
  touch(base .. 'x', base .. 'f', base .. 't')
  local group = { kind, lane, flags, ids, sets, number } -- and where it was gone through one by one: the number of each, and where each begins in ARGV
  local stale
  -- After two windows nothing is remembered any more, even if upkeep has not cleared it away yet.
  if kind ~= 'n' and meta[2] and now - (tonumber(call('HGET', KEYS[1], 'ds')) or 0) < 2 * tonumber(ARGV[2]) then
    -- with: remembered
    stale = remembered(meta[2], ids)
  end
  if stale or kind == 'x' then
    -- Some are settled already, or have more to say: one by one.
    local n, kept_ids, kept_sets, numbers, from_of = 0, {}, {}, {}, {}
    group = { kind, lane, flags, kept_ids, kept_sets, number, numbers, from_of }
    seen_keys = seen_keys or {}
    -- with: state_of
    for k, id in ipairs(ids) do
      local from = at + (k - 1) * stride
      local state, settled = state_of(id)
      -- Of a settled job that is only kept for its readers the id is free again once it is not remembered any more.
      local holder = (stale and stale[k] or state and not settled) and id
      if not holder and kind == 'x' and ARGV[from + 4] ~= '' then
        holder = seen_keys[ARGV[from + 4]] or call('HGET', KEYS[4], ARGV[from + 4])
        if holder then
          state = state_of(holder)
          if seen_keys[ARGV[from + 4]] then
            state = state or STATE_READY
          elseif not state or try('HGET', base .. 's' .. holder, 'uk') ~= ARGV[from + 4] then
            -- A key that no job knows to be its own, after a restore or a manual edit, is free.
            holder, state = nil, nil
          end
        end
        seen_keys[ARGV[from + 4]] = holder or id
      end
      if holder then
        duplicates = duplicates or {}
        duplicates[#duplicates + 1], duplicates[#duplicates + 2] = number + k, holder
        duplicates[#duplicates + 1] = state or sub(stale[k], 1, 1)
      else
        if settled then
          retained = retained or {}
          retained[#retained + 1] = id
        end
        n = n + 1
        kept_ids[n], numbers[n], from_of[n] = id, number + k, from
        kept_sets[2 * n - 1], kept_sets[2 * n] = sets[2 * k - 1], sets[2 * k]
      end
    end
  end
  groups[#groups + 1] = group
  number = number + count
  at = at + count * stride
end

-- act
if retained then
  -- with: give_way
  for _, id in ipairs(retained) do give_way(id) end
end
for _, group in ipairs(groups) do
  local kind, lane, flags, ids, sets, before, numbers, from_of = unpack(group, 1, 8)
  local entries = {}
  if kind == 'p' and #ids > 0 and call('MSETNX', unpack(sets)) == 0 then
    -- Some are there already.
    -- with: state_of, give_way
    local fresh, fresh_sets = {}, {}
    for k, id in ipairs(ids) do
      local state, settled = state_of(id)
      if state and not settled then
        duplicates = duplicates or {}
        duplicates[#duplicates + 1], duplicates[#duplicates + 2], duplicates[#duplicates + 3] = numbers and numbers[k] or before + k, id, state
      else
        if state then give_way(id) end
        fresh[#fresh + 1] = id
        fresh_sets[#fresh_sets + 1] = sets[2 * k - 1]
        fresh_sets[#fresh_sets + 1] = sets[2 * k]
      end
    end
    ids, sets = fresh, fresh_sets
    if #ids > 0 then call('MSET', unpack(sets)) end
  elseif kind ~= 'p' and #ids > 0 then
    call('MSET', unpack(sets))
  end
  local prefix = char(flags) .. pack_ms(now)
  if kind ~= 'x' then
    for k = 1, #ids do entries[k] = prefix .. ids[k] end
  elseif #ids > 0 then
    -- with: tell
    local earliest = call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
    earliest = earliest and tonumber(earliest)
    for k, id in ipairs(ids) do
      local from = from_of[k]
      local due, start_by, key = ARGV[from + 2], ARGV[from + 3], ARGV[from + 4]
      if key ~= '' then
        call('HSET', KEYS[4], key, id)
        -- with: write_state
        write_state(id, 'uk', key, 'us', ARGV[from + 5])
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
    local length, foreign = try('RPUSH', base .. 'r:' .. lane, unpack(entries))
    if foreign then
      -- A key of another type is no lane.
      call('RENAME', base .. 'r:' .. lane, base .. 'qr:' .. lane)
      length = call('RPUSH', base .. 'r:' .. lane, unpack(entries))
    end
    if length == #entries then
      -- with: lane_score, tell_others
      call('ZADD', KEYS[2], lane_score(lane, now), lane)
      tell_others(broker, 'r' .. broker .. lane)
    end
  end
end
return { now_us, duplicates }
