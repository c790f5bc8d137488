-- Hands out ready jobs: priority first, then the lane whose head is oldest, first in first out inside a lane.
-- KEYS  meta, lane index, scheduled, leases, lease deadlines, tombstones, start_by, lane tombstone counts
-- ARGV  nonce, lease ms, default attempt timeout ms, priorities as digits ('' all), request id ('' none), fingerprint of the request,
--       failure retention ms, number of job types, job types..., then per claim: holder, jobs, bytes of room
--       (negative: a job larger than the room does not come alone, because the holder holds others)
-- RETURNS {now us, next due ms or -1, 1 paused or 2 look again at once or 0, lease ms, jobs, claims, terms, extras, quarantined}
--         jobs: per lane a list of entries and one of their records (there may be one entry more); claims: number of the claim of each job, if there are several; terms: number of a job, its own lease ms;
--         extras: {number of a job, attempts, losses, checkpoint}...; numbers of jobs count from 0
--         a request id that was used before: the nonce of then at the end; with another fingerprint: {now us, -2}
-- MOVES  READY → LEASED, READY → EXPIRED, SCHEDULED → READY
local nonce = ARGV[1]
local lease_ms, default_timeout = tonumber(ARGV[2]), tonumber(ARGV[3])
local priorities, request_id, fingerprint = ARGV[4], ARGV[5], ARGV[6]
local failure_retention = tonumber(ARGV[7])
local types, type_count = {}, tonumber(ARGV[8])
for k = 1, type_count do types[ARGV[8 + k]] = true end
local claims, total = {}, 0
for at = 9 + type_count, #ARGV, 3 do
  local room = tonumber(ARGV[at + 2])
  local claim = { holder = ARGV[at], jobs = tonumber(ARGV[at + 1]), bytes = math.abs(room), alone = room >= 0, taken = 0 }
  claims[#claims + 1] = claim
  total = total + claim.jobs
end

local usual_term = min(lease_ms, default_timeout)
local found, taken, claim_of, own_terms, extras = {}, 0, {}, {}, {}
local function add_state(id) -- adds what the state hash of the newest job says to the answer
  if #extras == 0 then touch(base .. 'u') end
  local state = call('HMGET', base .. 's' .. id, 'a', 'l', 'cp')
  extras[#extras + 1] = { taken - 1, tonumber(state[1] or 0), tonumber(state[2] or 0), state[3] or '' }
end

-- The same request again gets the same leases, as of when they began.
local request_key = base .. 'rq:' .. request_id
if request_id ~= '' then
  local known = call('HGETALL', request_key)
  if #known > 0 then
    local ids, old, entries, records = {}, nil, {}, {}
    for k = 1, #known, 2 do
      if known[k] == 'f' then
        if known[k + 1] ~= fingerprint then return { now_us, -2 } end
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
        if has(flags, FLAG_STATE) then add_state(id) end
      end
    end
    return { now_us, -1, 0, usual_term, { entries, records }, {}, own_terms, extras, {}, old }
  end
end

local meta = call('HGET', KEYS[1], 'pa')
if meta then return { now_us, -1, 1, usual_term, {}, {}, {}, {}, {} } end

local next_due = call('ZRANGE', KEYS[3], '0', '0', 'WITHSCORES')[2]
local orphans = {}
if next_due and tonumber(next_due) <= now then
  orphans = select(2, promote(100))
  next_due = call('ZRANGE', KEYS[3], '0', '0', 'WITHSCORES')[2]
end

-- Which lanes, in order. The index is small as a rule; where it is not, look the wanted lanes up instead of walking it.
local function wanted(lane)
  return (priorities == '' or string.find(priorities, sub(lane, 1, 1), 1, true))
    and (type_count == 0 or types[sub(lane, 3)])
end
local lanes = call('ZRANGE', KEYS[2], '0', LANES_PER_LOOK)
if #lanes > LANES_PER_LOOK and (priorities ~= '' or type_count > 0) then
  lanes = {}
  for digit = 57, 49, -1 do
    local priority = char(digit)
    if priorities == '' or string.find(priorities, priority, 1, true) then
      if type_count > 0 then
        local names, found = {}, {}
        for k = 1, type_count do names[k] = priority .. ':' .. ARGV[8 + k] end
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
touch(KEYS[4], KEYS[5], KEYS[7], KEYS[8], request_key)

-- decide
local plans, expired, quarantined, turn = {}, {}, {}, 0
local leases, deadlines, values, special = {}, {}, {}, {}
-- A comparison costs a fourth of taking a byte out: no flags, and a record of our version.
local NO_FLAGS, VERSION, NEXT_VERSION = char(1), char(RECORD_VERSION), char(RECORD_VERSION + 1)
-- A number would be written out with seventeen digits, each time.
local usual_deadline = string.format('%d', now + usual_term)
local body_of, stop = base .. 'j', false
for _, lane in ipairs(lanes) do
  if taken >= total or stop then break end
  if wanted(lane) then
    local key = base .. 'r:' .. lane
    local want = total - taken
    local entries = call('LRANGE', key, '0', want)
    local look = min(want, #entries)
    local plan = { lane = lane, consumed = 0, next = nil, buried = 0, graves = {} }
    local ids, bodies, graves = {}, {}, {}
    for k = 1, look do
      local id = sub(entries[k], 8)
      ids[k], bodies[k] = id, body_of .. id
      if tombstones then graves[k] = id .. lane end
    end
    local records = look > 0 and call('MGET', unpack(bodies)) or {}
    local dead = tombstones and look > 0 and call('HMGET', KEYS[6], unpack(graves)) or nil
    local passed -- entries that are not handed out, if there are any
    for k = 1, look do
      local entry, record, id = entries[k], records[k], ids[k]
      local flags = entry < NO_FLAGS and 0 or byte(entry, 1)
      -- An id that was used again has a dead entry in front of its living one: only as many are dead as were buried.
      local buried = dead and (plan.graves[graves[k]] or tonumber(dead[k] or 0)) or 0
      local start_by = flags > 0 and has(flags, FLAG_START_BY) and call('ZSCORE', KEYS[7], id)
      if buried > 0 then
        plan.buried = plan.buried + 1
        plan.graves[graves[k]] = buried - 1
        passed = passed or {}
        passed[k] = true
      elseif not record or record < VERSION or record >= NEXT_VERSION then
        quarantined[#quarantined + 1] = { id, record }
        passed = passed or {}
        passed[k] = true
      elseif start_by and tonumber(start_by) <= now then
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
        if #claims > 1 then claim_of[taken] = turn end
        local deadline = usual_deadline
        if flags > 0 then
          special[#special + 1] = { id, flags }
          if has(flags, FLAG_STATE) then add_state(id) end
          if has(flags, FLAG_ATTEMPT_TIMEOUT) then
            local term = min(lease_ms, attempt_timeout(head_of(record), default_timeout))
            deadline = string.format('%d', now + term)
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
      plan.consumed = k
    end
    plan.next = entries[plan.consumed + 1]
    if passed or plan.consumed < look then
      local given, given_records = {}, {}
      for k = 1, plan.consumed do
        if not (passed and passed[k]) then
          given[#given + 1] = entries[k]
          given_records[#given] = records[k]
        end
      end
      entries, records = given, given_records
    end
    found[#found + 1] = entries
    found[#found + 1] = records
    plans[#plans + 1] = plan
  end
end

for _, id in ipairs(orphans) do quarantined[#quarantined + 1] = { id, call('GET', base .. 'j' .. id) } end
local meta_ends, memories, ends = nil, nil, {}
if #expired + #quarantined > 0 then
  for k, item in ipairs(expired) do ends[k] = item[1] end
  for _, item in ipairs(quarantined) do ends[#ends + 1] = item[1] end
  touch_ends(ends)
  meta_ends = call('HMGET', KEYS[1], 'dg', 'ds', 'w')
  memories = generation(meta_ends[1], meta_ends[2], math.huge)
end

-- act
if #leases > 0 then
  call('HSET', KEYS[4], unpack(leases))
  -- The last member keeps the set out of Redis's list encoding, which is walked from its head for every new deadline.
  local n = #deadlines
  deadlines[n + 1], deadlines[n + 2] = '+inf', NO_JOB
  call('ZADD', KEYS[5], unpack(deadlines))
  for _, item in ipairs(special) do
    local id, flags = item[1], item[2]
    if has(flags, FLAG_START_BY) then call('ZREM', KEYS[7], id) end
    if has(flags, FLAG_STATE) and call('HGET', base .. 's' .. id, 'us') == 'L' then release_unique(id, flags) end
  end
  if request_id ~= '' then
    local known = { 'f', fingerprint, 'n', nonce, 'u', string.format('%d', now_us) }
    for k = 1, #leases, 2 do
      known[#known + 1] = leases[k]
      known[#known + 1] = ''
    end
    call('HSET', request_key, unpack(known))
    call('PEXPIRE', request_key, REQUEST_ID_MS)
  end
end
for k, item in ipairs(expired) do
  if k == 1 then begin(memories) end
  call('HSET', memories.key, item[1], STATE_EXPIRED)
  release_unique(item[1], item[2])
  keep_settled(item[1], STATE_EXPIRED, now + retention(read_head(item[1]), failure_retention), {})
  call('ZREM', KEYS[7], item[1])
end
local lost = {}
for k, item in ipairs(quarantined) do
  quarantine(item[1], item[2], item[2] and 'unreadable record' or 'no record')
  lost[k] = item[1]
end
for _, plan in ipairs(plans) do
  if plan.consumed > 0 then
    call('LTRIM', base .. 'r:' .. plan.lane, plan.consumed, '-1')
    if plan.buried > 0 then
      for grave, left in pairs(plan.graves) do
        if left > 0 then call('HSET', KEYS[6], grave, left) else call('HDEL', KEYS[6], grave) end
      end
      if call('HINCRBY', KEYS[8], plan.lane, -plan.buried) <= 0 then call('HDEL', KEYS[8], plan.lane) end
    end
    if plan.next then
      call('ZADD', KEYS[2], string.format('%d', lane_score(plan.lane, unpack_ms(plan.next, 2))), plan.lane)
    else
      call('ZREM', KEYS[2], plan.lane)
    end
  end
end
if #expired > 0 then tell_waiters(meta_ends[3], ends) end
local consumed = 0
for _, plan in ipairs(plans) do consumed = consumed + plan.consumed end
local more = #lanes > LANES_PER_LOOK and consumed > 0
for _, plan in ipairs(plans) do more = more or plan.next and taken < total end
return { now_us, next_due and tonumber(next_due) or -1, more and 2 or 0, usual_term, found, claim_of, own_terms, extras, lost }
