-- Stores jobs, in groups that share a lane.
-- KEYS  meta, lane index, scheduled, unique keys, start_by
-- ARGV  broker, deduplication window ms, if the broker knows a policy of the queue ENQUEUE_WITH_POLICY and its two
--       arguments, then groups: kind (ENQUEUE_), lane, flags, count and per job: id, record; with
--       options also: start ('' now, else ENQUEUE_START_ and ms), start_by ms or '', unique key or '', its scope
--       (SCOPE_), if need be with what a second job does (CONFLICT_) and ms: those of the window, or the longest wait
--       of a debounce
-- RETURNS {now us, {number of each job that was there already, id of the job that exists, its state ('' not known) and,
--         if the new job has replaced it, ENQUEUE_REPLACED and its due ms or ''}; nothing if there is none},
--         or {now us, {}, pause reason}, or {now us, {}, '', version of the policy}: the broker knows another one (0
--         none). Nothing was stored then, nor if one of the states is ENQUEUE_FULL in a call that stores all or none
-- MOVES  - → READY, - → SCHEDULED, READY → READY, SCHEDULED → SCHEDULED
local broker = ARGV[1]
local meta = call('HMGET', KEYS[1], META_ENQUEUE_GATE, META_GENERATION, META_PAUSE_REASON)
local groups, at, number, room = {}, 3, 0, nil
if meta[1] or ARGV[3] == ENQUEUE_WITH_POLICY then
  --@ define refused_at_gate, room_for
  local refused = refused_at_gate(meta[1], meta[3])
  if refused then return refused end
  room = ARGV[5] ~= '' and room_for(math.abs(tonumber(ARGV[5]))) or nil
  at = 6
end

-- Decide.
local record_key = base .. KEY_RECORD
-- Of all groups: the jobs that were there already, the settled ones that make way, the unique keys that were asked for.
local known
while ARGV[at] do
  local group = {
    kind = ARGV[at], lane = ARGV[at + 1], flags = tonumber(ARGV[at + 2]), before = number,
    ids = {}, sets = {},
  }
  local replaces = group.kind == ENQUEUE_REPLACING
  if replaces then group.kind = ENQUEUE_WITH_OPTIONS end
  local count, ids, sets = tonumber(ARGV[at + 3]), group.ids, group.sets
  local stride = group.kind == ENQUEUE_WITH_OPTIONS and ENQUEUE_OPTIONS_STRIDE or ENQUEUE_STRIDE
  at = at + 4
  for k = 1, count do
    local from = at + (k - 1) * stride
    local id = ARGV[from]
    ids[k], sets[2 * k - 1], sets[2 * k] = id, record_key .. id, ARGV[from + 1]
  end
  touch(KEYS[2], KEYS[3], KEYS[5], base .. KEY_UNIQUE_WINDOWS, base .. KEY_LANE .. group.lane)
  touch_all(record_key, ids)
  touch_all(base .. KEY_STATE, ids)
  touch_all(base .. KEY_LOG, ids)
  touch(base .. KEY_DEAD, base .. KEY_SETTLED, base .. KEY_LEASES)
  local memories
  if group.kind ~= ENQUEUE_NEW_IDS and meta[2] then
    --@ define memories_in_window
    memories = memories_in_window(meta[2], ids, tonumber(ARGV[2]))
  end
  if memories or room or group.kind == ENQUEUE_WITH_OPTIONS then
    --@ define drop_duplicates
    known = known or { duplicates = {}, retained = {}, keys = {}, replaced = {}, memories = {}, room = room }
    if replaces then
      --@ define plan_replacement
      group.replaces = plan_replacement
    end
    drop_duplicates(group, known, memories, at, stride)
  end
  groups[#groups + 1] = group
  number = number + count
  at = at + count * stride
end

if known and known.is_full and byte(ARGV[5]) == MINUS then return { now_us, known.duplicates } end

-- Act.
if known and #known.retained > 0 then
  --@ define forget_settled
  for _, id in ipairs(known.retained) do forget_settled(id) end
end
local duplicates = known and #known.duplicates > 0 and known.duplicates or nil
for _, group in ipairs(groups) do
  local lane = group.lane
  if group.kind == ENQUEUE_GIVEN_IDS and #group.ids > 0 and call('MSETNX', unpack(group.sets)) == 0 then
    -- Some are there already.
    --@ define store_new_ones
    duplicates = duplicates or {}
    store_new_ones(group, duplicates)
  elseif group.kind ~= ENQUEUE_GIVEN_IDS and #group.ids > 0 then
    call('MSET', unpack(group.sets))
  end
  local ids, entries = group.ids, {}
  local prefix = char(group.flags) .. pack_ms(now)
  if group.kind ~= ENQUEUE_WITH_OPTIONS then
    for k = 1, #ids do entries[k] = prefix .. ids[k] end
  elseif #ids > 0 then
    --@ define place_with_options
    place_with_options(group, known, broker, prefix, entries)
  end
  if #entries > 0 then
    local length, foreign = try('RPUSH', base .. KEY_LANE .. lane, unpack(entries))
    if foreign then
      -- A key of another type is no lane.
      call('RENAME', base .. KEY_LANE .. lane, base .. KEY_QUARANTINED_LANE .. lane)
      length = call('RPUSH', base .. KEY_LANE .. lane, unpack(entries))
    end
    if length == #entries then
      --@ define lane_score, notify_others
      call('ZADD', KEYS[2], lane_score(lane, now), lane)
      notify_others(broker, NOTIFY_LANE_READY .. broker .. lane)
    end
  end
end
if known and #known.replaced > 0 then
  --@ define replace_waiting
  replace_waiting(known, broker)
end
return { now_us, duplicates }
