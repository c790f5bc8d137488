-- Hands out ready jobs: priority first, then the lane whose head is oldest, first in first out inside a lane.
-- KEYS  meta, lane index, scheduled, leases, lease deadlines, tombstones, start_by, lane tombstone counts
-- ARGV  nonce, lease ms, default attempt timeout ms, priorities as digits ('' all), failure retention ms, number of job types, number of requests
--       (none or as many as claims), job types..., per request: id, fingerprint, then per claim: keeper (8) and confirmed (1) and holder, jobs, bytes of room
--       (negative: a job larger than the room does not come alone, because the holder holds others)
-- RETURNS {now us, next due ms or -1, 1 paused or 2 look again at once or 0, lease ms, jobs, claims, terms, extras, quarantined}, without the empty ones at the end
--         jobs: per lane a list of entries and one of their records (there may be one entry more); claims: number of the claim of each job, if there are several; terms: number of a job, its own lease ms;
--         extras: {number of a job, attempts, losses, checkpoint}...; numbers of jobs count from 0
--         a request id that was used before: the nonce of then at the end; with another fingerprint: {now us, -2}; among several requests: {now us, -3}
-- MOVES  READY → LEASED, READY → EXPIRED, SCHEDULED → READY
local nonce = ARGV[1]
local lease_ms, default_timeout = tonumber(ARGV[2]), tonumber(ARGV[3])
local priorities, failure_retention = ARGV[4], tonumber(ARGV[5])
local type_count, request_count = tonumber(ARGV[6]), tonumber(ARGV[7])
local claims, total = {}, 0
for at = 8 + type_count + 2 * request_count, #ARGV, 3 do
  local room = tonumber(ARGV[at + 2])
  local claim = { holder = ARGV[at], jobs = tonumber(ARGV[at + 1]), bytes = math.abs(room), alone = room >= 0, taken = 0 }
  claims[#claims + 1] = claim
  total = total + claim.jobs
end

local usual_term = min(lease_ms, default_timeout)
local found, taken, claim_of, own_terms, stateful = {}, 0, #claims > 1 and {}, nil, nil
-- The same request again gets the same leases, as of when they began.
local request_keys, fingerprints
if request_count > 0 then
  request_keys, fingerprints = {}, {}
  for k = 1, request_count do
    local at = 6 + type_count + 2 * k
    request_keys[k], fingerprints[k] = base .. 'rq:' .. ARGV[at], ARGV[at + 1]
  end
end
if request_count > 1 then
  -- They were made together only by chance: who asks again asks alone.
  if call('EXISTS', unpack(request_keys)) > 0 then return { now_us, -3 } end
elseif request_count == 1 then
  local known = call('HGETALL', request_keys[1])
  if #known > 0 then
    -- with: states_of
    local ids, old, entries, records = {}, nil, {}, {}
    own_terms, stateful = {}, {}
    for k = 1, #known, 2 do
      if known[k] == 'f' then
        if known[k + 1] ~= fingerprints[1] then return { now_us, -2 } end
      elseif known[k] == 'n' then
        old = known[k + 1]
      elseif known[k] == 'u' then
        now_us = tonumber(known[k + 1])
      else
        ids[#ids + 1] = known[k]
      end
    end
    for _, id in ipairs(ids) do
      local lease = call('HGET', KEYS[4], id)
      local record = call('GET', base .. 'j' .. id)
      local deadline = call('ZSCORE', KEYS[5], id)
      if lease and record and deadline and sub(lease, 1, 16) == old then
        local flags = byte(lease, 23)
        taken = taken + 1
        entries[taken], records[taken] = char(flags) .. sub(lease, 17, 22) .. id, record
        own_terms[2 * taken - 1], own_terms[2 * taken] = taken - 1, max(1, tonumber(deadline) - now)
        if flags % 2 == FLAG_STATE then stateful[#stateful + 1] = { taken - 1, id } end
      end
    end
    return { now_us, -1, 0, usual_term, { entries, records }, {}, own_terms, states_of(stateful), {}, old }
  end
end

local meta = call('HGET', KEYS[1], 'pa')
if meta then return { now_us, -1, 1, usual_term, {} } end

local next_due = call('ZRANGE', KEYS[3], '0', '0', 'WITHSCORES')[2]
local orphans
if next_due and tonumber(next_due) <= now then
  -- with: promote
  orphans = select(2, promote(100))
  next_due = call('ZRANGE', KEYS[3], '0', '0', 'WITHSCORES')[2]
end

-- Which lanes, in order. The index is small as a rule; where it is not, look the wanted lanes up instead of walking it.
local lanes = call('ZRANGE', KEYS[2], '0', LANES_PER_LOOK)
local wanted, walks_on = nil, #lanes > LANES_PER_LOOK
if priorities ~= '' or type_count > 0 then
  local types = {}
  for k = 1, type_count do types[ARGV[7 + k]] = true end
  wanted = function(lane)
    return (priorities == '' or string.find(priorities, sub(lane, 1, 1), 1, true))
      and (type_count == 0 or types[sub(lane, 3)])
  end
end
if walks_on and wanted then
  -- with: lane_score
  lanes = {}
  for digit = 57, 49, -1 do
    local priority = char(digit)
    if priorities == '' or string.find(priorities, priority, 1, true) then
      if type_count > 0 then
        local names, found = {}, {}
        for k = 1, type_count do names[k] = priority .. ':' .. ARGV[7 + k] end
        for k, score in ipairs(call('ZMSCORE', KEYS[2], unpack(names))) do
          if score then found[#found + 1] = { names[k], tonumber(score) } end
        end
        table.sort(found, function(a, b) return a[2] < b[2] end)
        for _, lane in ipairs(found) do lanes[#lanes + 1] = lane[1] end
      else
        local low = lane_score(priority, 0)
        for _, lane in ipairs(call('ZRANGEBYSCORE', KEYS[2], low, low + 4398046511103, 'LIMIT', 0, LANES_PER_LOOK + 1)) do
          lanes[#lanes + 1] = lane
        end
      end
    end
  end
end

local tombstones = call('EXISTS', KEYS[6]) == 1
touch(KEYS[4], KEYS[5], KEYS[7], KEYS[8], base .. 'u', unpack(request_keys or KEYS))

-- decide
local plans, expired, quarantined, special, turn = {}, nil, nil, nil, 0
local leases, deadlines, values = {}, {}, {}
-- A comparison costs a fourth of taking a byte out: no flags, and a record of our version.
local NO_FLAGS, VERSION, NEXT_VERSION = char(1), char(RECORD_VERSION), char(RECORD_VERSION + 1)
-- A number would be written out with seventeen digits, each time.
local usual_deadline = string.format('%d', now + usual_term)
local body_of, stop = base .. 'j', false
for _, lane in ipairs(lanes) do
  if taken >= total or stop then break end
  if not wanted or wanted(lane) then
    local key = base .. 'r:' .. lane
    local want = total - taken
    local entries = call('LRANGE', key, '0', want)
    local look = min(want, #entries)
    local ids, bodies = {}, {}
    local graves, left_of, buried_here = tombstones and {}, tombstones and {}, 0
    for k = 1, look do
      local id = sub(entries[k], 8)
      ids[k], bodies[k] = id, body_of .. id
      if tombstones then graves[k] = id .. lane end
    end
    local records = look > 0 and call('MGET', unpack(bodies)) or {}
    local dead = tombstones and look > 0 and call('HMGET', KEYS[6], unpack(graves)) or nil
    local passed, consumed -- entries that are not handed out, if there are any
    for k = 1, look do
      local entry, record, id = entries[k], records[k], ids[k]
      local flags = entry < NO_FLAGS and 0 or byte(entry, 1)
      -- An id that was used again has a dead entry in front of its living one: only as many are dead as were buried.
      local buried = dead and (left_of[graves[k]] or tonumber(dead[k] or 0)) or 0
      local start_by = flags > 0 and flags % (2 * FLAG_START_BY) >= FLAG_START_BY and call('ZSCORE', KEYS[7], id)
      if buried > 0 then
        buried_here = buried_here + 1
        left_of[graves[k]] = buried - 1
        passed = passed or {}
        passed[k] = true
      elseif not record or record < VERSION or record >= NEXT_VERSION then
        quarantined = quarantined or {}
        quarantined[#quarantined + 1] = { id, record }
        passed = passed or {}
        passed[k] = true
      elseif start_by and tonumber(start_by) <= now then
        expired = expired or {}
        expired[#expired + 1] = { id, flags }
        passed = passed or {}
        passed[k] = true
      else
        -- The next claim in turn that has room.
        local claim, size = nil, #record
        for _ = 1, #claims do
          turn = turn % #claims + 1
          local candidate = claims[turn]
          if candidate.taken < candidate.jobs and (size <= candidate.bytes or candidate.alone and candidate.taken == 0) then
            claim = candidate
            break
          end
        end
        if not claim then
          stop = true
          break
        end
        claim.taken = claim.taken + 1
        claim.bytes = claim.bytes - size
        taken = taken + 1
        if claim_of then claim_of[taken] = turn end
        local deadline = usual_deadline
        if flags > 0 then
          special = special or {}
          special[#special + 1] = { id, flags, taken - 1 }
          if flags % (2 * FLAG_ATTEMPT_TIMEOUT) >= FLAG_ATTEMPT_TIMEOUT then
            -- with: head_of, attempt_timeout
            local term = min(lease_ms, attempt_timeout(head_of(record), default_timeout))
            deadline = string.format('%d', now + term)
            own_terms = own_terms or {}
            own_terms[#own_terms + 1] = taken - 1
            own_terms[#own_terms + 1] = term
          end
        end
        local value = values[turn * 256 + flags]
        if not value then
          value = nonce .. pack_ms(now) .. char(flags) .. claim.holder
          values[turn * 256 + flags] = value
        end
        local n = 2 * taken
        leases[n - 1], leases[n] = id, value
        deadlines[n - 1], deadlines[n] = deadline, id
      end
      consumed = k
    end
    consumed = consumed or 0
    local following = entries[consumed + 1]
    if passed or consumed < look then
      local given, given_records = {}, {}
      for k = 1, consumed do
        if not (passed and passed[k]) then
          given[#given + 1] = entries[k]
          given_records[#given] = records[k]
        end
      end
      entries, records = given, given_records
    end
    found[#found + 1] = entries
    found[#found + 1] = records
    plans[#plans + 1] = { lane, consumed, following, buried_here, left_of }
  end
end

if orphans and #orphans > 0 then
  quarantined = quarantined or {}
  for _, id in ipairs(orphans) do quarantined[#quarantined + 1] = { id, call('GET', base .. 'j' .. id) } end
end
local extras
if special then
  for _, item in ipairs(special) do
    if item[2] % 2 == FLAG_STATE then
      stateful = stateful or {}
      stateful[#stateful + 1] = { item[3], item[1] }
    end
  end
  if stateful then
    -- with: states_of
    extras = states_of(stateful)
  end
end

-- act, on what does not go to a worker before all else: its own reads come first
local lost
if expired or quarantined then
  -- with: touch_ends, generation, begin, release_unique, retention, read_head, keep_settled, quarantine, tell_waiters
  expired, quarantined = expired or {}, quarantined or {}
  local ends = {}
  for k, item in ipairs(expired) do ends[k] = item[1] end
  for _, item in ipairs(quarantined) do ends[#ends + 1] = item[1] end
  touch_ends(ends)
  local meta_ends = call('HMGET', KEYS[1], 'dg', 'ds', 'w')
  local memories = generation(meta_ends[1], meta_ends[2], math.huge)
  for k, item in ipairs(expired) do
    if k == 1 then begin(memories) end
    call('HSET', memories.key, item[1], STATE_EXPIRED)
    release_unique(item[1], item[2])
    keep_settled(item[1], STATE_EXPIRED, now + retention(read_head(item[1]), failure_retention), {})
    call('ZREM', KEYS[7], item[1])
  end
  lost = #quarantined > 0 and {}
  for k, item in ipairs(quarantined) do
    quarantine(item[1], item[2], item[2] and 'unreadable record' or 'no record')
    lost[k] = item[1]
  end
  if #expired > 0 then tell_waiters(meta_ends[3], ends) end
end
if taken > 0 then
  call('HSET', KEYS[4], unpack(leases))
  -- The last member keeps the set out of Redis's list encoding, which is walked from its head for every new deadline.
  local n = #deadlines
  deadlines[n + 1], deadlines[n + 2] = '+inf', NO_JOB
  call('ZADD', KEYS[5], unpack(deadlines))
  if special then
    -- with: has, release_unique
    for _, item in ipairs(special) do
      local id, flags = item[1], item[2]
      if has(flags, FLAG_START_BY) then call('ZREM', KEYS[7], id) end
      if has(flags, FLAG_STATE) and call('HGET', base .. 's' .. id, 'us') == 'L' then release_unique(id, flags) end
    end
  end
  if request_keys then
    local given, at = {}, string.format('%d', now_us)
    for k = 1, taken do
      local of = claim_of and claim_of[k] or 1
      local known = given[of]
      if not known then
        known = { 'f', fingerprints[of], 'n', nonce, 'u', at }
        given[of] = known
      end
      local n = #known
      known[n + 1], known[n + 2] = leases[2 * k - 1], ''
    end
    for of, known in pairs(given) do
      call('HSET', request_keys[of], unpack(known))
      call('PEXPIRE', request_keys[of], REQUEST_ID_MS)
    end
  end
end
local more, consumed_any = false, false
for _, plan in ipairs(plans) do
  local lane, consumed, following, buried_here, left_of = unpack(plan, 1, 5)
  if consumed > 0 then
    consumed_any = true
    call('LTRIM', base .. 'r:' .. lane, consumed, '-1')
    if buried_here > 0 then
      for grave, left in pairs(left_of) do
        if left > 0 then call('HSET', KEYS[6], grave, left) else call('HDEL', KEYS[6], grave) end
      end
      if call('HINCRBY', KEYS[8], lane, -buried_here) <= 0 then call('HDEL', KEYS[8], lane) end
    end
    if following then
      -- with: unpack_ms, lane_score
      call('ZADD', KEYS[2], string.format('%d', lane_score(lane, unpack_ms(following, 2))), lane)
    else
      call('ZREM', KEYS[2], lane)
    end
  end
  more = more or following and taken < total
end
more = more or consumed_any and #lanes > LANES_PER_LOOK
-- Empty lists at the end are left out: each costs as much as a small command.
local answer = { now_us, next_due and tonumber(next_due) or -1, more and 2 or 0, usual_term, found }
if claim_of or own_terms or extras or lost then answer[6] = claim_of or {} end
if own_terms or extras or lost then answer[7], answer[8], answer[9] = own_terms or {}, extras or {}, lost or {} end
return answer
