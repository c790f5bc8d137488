-- Duty: remove entries at the heads of lanes whose jobs have ended. Where no worker comes, no fetch skips them.

-- How many entries at the head of a lane are tombstoned, at most `left`: a trim, or nil.
local function tombstoned_head(lane, left)
  local key, fields = base .. KEY_LANE .. lane, {}
  local entries = try('LRANGE', key, '0', left) or {}
  for n = 1, min(left, #entries) do fields[n] = sub(entries[n], ENTRY_ID_AT) .. lane end
  local counts = #fields > 0 and call('HMGET', base .. KEY_TOMBSTONES, unpack(fields)) or {}
  local left_of, tombstoned = {}, 0
  for n, field in ipairs(fields) do
    local count = left_of[field] or (tonumber(counts[n]) or 0)
    if count <= 0 then break end
    left_of[field], tombstoned = count - 1, n
  end
  if tombstoned == 0 then return nil end
  return { lane = lane, key = key, count = tombstoned, left_of = left_of, following = entries[tombstoned + 1] }
end

local function trim_lane(trim)
  call('LTRIM', trim.key, trim.count, '-1')
  local gone = {}
  for field, count in pairs(trim.left_of) do
    if count > 0 then call('HSET', base .. KEY_TOMBSTONES, field, count) else gone[#gone + 1] = field end
  end
  if #gone > 0 then call('HDEL', base .. KEY_TOMBSTONES, unpack(gone)) end
  local counts = base .. KEY_TOMBSTONE_COUNTS
  if add(counts, trim.lane, -trim.count) <= 0 then call('HDEL', counts, trim.lane) end
  if not trim.following then
    call('ZREM', base .. KEY_LANES, trim.lane)
  elseif #trim.following == ENTRY_BYTES then
    call('ZADD', base .. KEY_LANES, lane_score(trim.lane, unpack_ms(trim.following, ENTRY_TIME_AT)), trim.lane)
  end
end

local function trim_lanes(run)
  if call('EXISTS', base .. KEY_TOMBSTONES) == 0 then return end
  local lanes = call('ZRANGE', base .. KEY_LANES, '0', LANES_PER_FETCH)
  local tombstones = #lanes > 0 and call('HMGET', base .. KEY_TOMBSTONE_COUNTS, unpack(lanes)) or {}
  local trims, left = {}, run.limit
  for k, lane in ipairs(lanes) do
    local trim = tombstones[k] and left > 0 and tombstoned_head(lane, left)
    if trim then
      trims[#trims + 1] = trim
      left = left - trim.count
    end
  end
  if left == 0 then run.more = 1 end
  touch(base .. KEY_LANES, base .. KEY_TOMBSTONES, base .. KEY_TOMBSTONE_COUNTS)
  for _, trim in ipairs(trims) do trim_lane(trim) end
end
