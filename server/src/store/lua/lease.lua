-- Hands out ready jobs: priority first, then age; first in first out inside a lane, and between the lanes of a priority the older entry first.
-- KEYS  meta, lane index, scheduled, leases, lease deadlines, tombstones, start_by, lane tombstone counts
-- ARGV  nonce, lease ms, default attempt timeout ms, priorities as digits ('' all), failure retention ms, number of job types, number of requests
--       (none or as many as claims), order of the claims as bytes ('' there is one), job types..., per request: id ('' none), fingerprint, then per claim: keeper (8) and
--       confirmed (1) and holder, jobs, bytes of room (with a minus: a job larger than the room does not come alone, because the holder holds others)
-- RETURNS {now us, next due ms or -1, verdict, lease ms (without jobs: ms until the first lease of the queue ends, or 0), jobs, claims, terms, extras, {set aside, newer}},
--         without the empty ones at the end
--         verdict: 1 paused, 2 look again at once, 3 the next job is too large for everybody who has room, or is to be alone in the answer of a call, 4 the last job is to
--         be alone, look again for others, else 0
--         jobs: pairs of a list of entries and one of their records (there may be more entries than records); claims: number of the claim of each job, if there are several;
--         terms: number of a job, its own lease ms; extras: {number of a job, attempts, losses, checkpoint}...; numbers of jobs count from 0; set aside, newer: jobs that cannot be read, jobs that a newer version wrote
--         a request id that was used before: the nonce of then at the end; with another fingerprint: {now us, -2}; among several requests: {now us, -3}
-- MOVES  READY → LEASED, READY → EXPIRED, SCHEDULED → READY
local nonce = ARGV[1]
local lease_ms, default_timeout = tonumber(ARGV[2]), tonumber(ARGV[3])
local priorities, failure_retention = ARGV[4], tonumber(ARGV[5])
local type_count, request_count, turns = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local claims, total = {}, 0
for at = 9 + type_count + 2 * request_count, #ARGV, 3 do
  local room = ARGV[at + 2]
  local claim = { holder = ARGV[at], jobs = tonumber(ARGV[at + 1]), bytes = math.abs(tonumber(room)), alone = byte(room) ~= 45, taken = 0 }
  claims[#claims + 1] = claim
  total = total + claim.jobs
end
total = min(total, JOBS_PER_LOOK)

local usual_term = min(lease_ms, default_timeout)
local found, taken, claim_of, own_terms = {}, 0, #claims > 1 and {}, nil
-- The same request again gets the same leases, as of when they began.
local request_keys, fingerprints, forgets
if request_count > 0 then
  local known_keys = {}
  request_keys, fingerprints = {}, {}
  for k = 1, request_count do
    local at = 7 + type_count + 2 * k
    if ARGV[at] ~= '' then
      request_keys[k], fingerprints[k] = base .. 'rq:' .. ARGV[at], ARGV[at + 1]
      known_keys[#known_keys + 1] = request_keys[k]
    end
  end
  if #known_keys > 0 and call('EXISTS', unpack(known_keys)) > 0 then
    -- They were made together only by chance: who asks again asks alone.
    if request_count > 1 then return { now_us, -3 } end
    -- with: states_of, remembered
    local known = call('HGETALL', request_keys[1])
    local ids, old, began, entries, records, stateful = {}, '', now_us, {}, {}, {}
    own_terms = {}
    for k = 1, #known, 2 do
      if known[k] == 'f' then
        if known[k + 1] ~= fingerprints[1] then return { now_us, -2 } end
      elseif known[k] == 'n' then
        old = known[k + 1]
      elseif known[k] == 'u' then
        began = tonumber(known[k + 1]) or began
      else
        ids[#ids + 1] = known[k]
      end
    end
    for _, id in ipairs(ids) do
      local lease = call('HGET', KEYS[4], id)
      local record = call('MGET', base .. 'j' .. id)[1]
      local deadline = call('ZSCORE', KEYS[5], id)
      if lease and #lease >= LEASE_BYTES and record and deadline and sub(lease, 1, 16) == old then
        local flags = byte(lease, 23)
        taken = taken + 1
        entries[taken], records[taken] = char(flags) .. sub(lease, 17, 22) .. id, record
        own_terms[2 * taken - 1], own_terms[2 * taken] = taken - 1, max(1, tonumber(deadline) - now)
        if flags % 2 == FLAG_STATE then stateful[#stateful + 1] = { taken - 1, id } end
      end
    end
    -- Leases that were given back, or ran out, are as if the request had never been made; those that were settled had reached the caller.
    local answered = taken > 0
    for _, memory in pairs(not answered and #old == 16 and remembered(call('HGET', KEYS[1], 'dg'), ids) or {}) do
      answered = answered or memory and sub(memory, 2, 9) == sub(old, 1, 8) and sub(memory, 10, 10) ~= 'G' and sub(memory, 10, 10) ~= 'U'
    end
    if answered then return { began, -1, 0, usual_term, { entries, records }, {}, own_terms, states_of(stateful), {}, old } end
    own_terms, forgets = nil, true
  end
end

local meta = call('HGET', KEYS[1], 'pa')
if meta then return { now_us, -1, 1, 0, {} } end

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
  for k = 1, type_count do types[ARGV[8 + k]] = true end
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
        local names, ranked = {}, {}
        for k = 1, type_count do names[k] = priority .. ':' .. ARGV[8 + k] end
        for k, score in ipairs(call('ZMSCORE', KEYS[2], unpack(names))) do
          if score then ranked[#ranked + 1] = { names[k], tonumber(score) } end
        end
        table.sort(ranked, function(a, b) return a[2] < b[2] end)
        for _, lane in ipairs(ranked) do lanes[#lanes + 1] = lane[1] end
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
touch(KEYS[4], KEYS[5], KEYS[7], KEYS[8], base .. 'u', base .. 'nv')
if request_keys and IN_CLUSTER then
  for _, key in pairs(request_keys) do
    touch(key)
  end
end

-- decide
local expired, aside, strays, newer, special, extras = nil, nil, nil, nil, nil, nil
local leases, deadlines = {}, {}
-- A number would be written out with seventeen digits, each time.
local usual_deadline = string.format('%d', now + usual_term)
local body_of, verdict, looked_at, bytes_left = base .. 'j', 0, 0, BYTES_PER_LOOK

local plans, group, next_lane, following = {}, {}, 1, nil
if wanted or lanes[2] then
  -- The next lane that is wanted; with a priority, only if it is of that one.
  following = function(priority)
    while wanted and lanes[next_lane] and not wanted(lanes[next_lane]) do next_lane = next_lane + 1 end
    local lane = lanes[next_lane]
    return lane and (not priority or byte(lane, 1) == priority) and lane
  end
end

while taken < total and verdict == 0 do
  local want = total - taken
  if looked_at >= ENTRIES_PER_LOOK then
    verdict = 2
    break
  end
  -- Where some are dead, more are looked at together.
  local most = tombstones and max(want, looked_at > 0 and JOBS_PER_LOOK or 64) or want
  local plan = group[1]
  if not plan then
    local lane = lanes[next_lane]
    if following then lane = following() end
    if not lane then break end
    plan = open_lane(lane, most)
    plans[#plans + 1] = plan
    group[1] = plan
    next_lane = next_lane + 1
  end
  -- The next entries: of the one lane of this priority, or of several by age.
  local entries, plan_of
  if following and (group[2] or following(byte(plan.lane, 1))) then
    local function open(lane)
      local another = open_lane(lane, most)
      plans[#plans + 1] = another
      group[#group + 1] = another
      next_lane = next_lane + 1
    end
    -- with: merge
    entries, plan_of = merge(group, following, open, most)
  else
    if plan.passed > plan.from then read_lane(plan, plan.passed, most) end
    entries = plan.entries
  end
  local last = min(#entries, most)
  if last == 0 then group = {} end

  -- Their bodies, but for those that are large or may be dead: each of these is read when its turn comes.
  local ids, bodies, graves, dead = {}, {}, nil, nil
  if tombstones and last > 0 then
    graves = {}
    for k = 1, last do graves[k] = sub(entries[k], 8) .. (plan_of and plan_of[k] or plan).lane end
    dead = call('HMGET', KEYS[6], unpack(graves))
  end
  local living = 0
  for k = 1, last do
    local entry = entries[k]
    local id = sub(entry, 8)
    if dead and not dead[k] then
      if living == want then
        last = k - 1
        break
      end
      living = living + 1
    end
    ids[k] = id
    bodies[k] = (entry >= LARGE_BYTE or dead and dead[k]) and body_of or body_of .. id
  end
  local records = last > 0 and call('MGET', unpack(bodies)) or {}
  looked_at = looked_at + last

  local skipped, done = nil, last
  for k = 1, last do
    if dead and taken == total then
      done = k - 1
      break
    end
    local entry, id, record, taken_before = entries[k], ids[k], records[k], taken
    -- A comparison costs a fourth of taking a byte out.
    local flags, buried, start_by, state, checkpoint, suspect = entry < FLAGS_BYTE and 0 or byte(entry, 1), nil, nil, nil, nil, nil
    -- An id that was used again has a dead entry in front of its living one: only as many are dead as were buried.
    if dead and dead[k] then
      local at = plan_of and plan_of[k] or plan
      at.graves = at.graves or {}
      buried = at.graves[graves[k]] or tonumber(dead[k]) or 0
      if buried > 0 then at.buried, at.graves[graves[k]] = (at.buried or 0) + 1, buried - 1 end
    end
    if flags > 0 and flags % (2 * FLAG_START_BY) >= FLAG_START_BY then start_by = call('ZSCORE', KEYS[7], id) end
    if #entry ~= ENTRY_BYTES then
      aside = aside or {}
      aside[#aside + 1] = { entry, 'no lane entry' }
    elseif buried and buried > 0 then
      -- Cancelled.
    elseif start_by and (tonumber(start_by) <= now or tonumber(start_by) % 1 > 0) then
      expired = expired or {}
      expired[#expired + 1] = { id, flags }
    else
      local size = record and #record
      if not size then
        -- with: try
        size = try('STRLEN', body_of .. id) or 0
      end
      if flags > 0 and flags % 2 == FLAG_STATE then
        -- with: try
        local foreign
        state, foreign = try('HMGET', base .. 's' .. id, 'a', 'l', 'un', 'us')
        if foreign then
          strays, state = strays or {}, {}
          strays[#strays + 1] = id
          touch(base .. 'qs' .. id)
        end
        checkpoint = try('HSTRLEN', base .. 's' .. id, 'cp') or 0
        size = size + checkpoint
        -- A job that several workers did not live to confirm is handed out alone, so that it does not take others along. On a stream that is a frame of its own.
        suspect = (tonumber(state[3]) or 0) >= SUSPECT_AFTER
      end
      -- Whose turn it is; if that one has no room for it, the first who has.
      local turn = claim_of and byte(turns, taken + 1) or 1
      local claim = claims[turn]
      local empty = claim.alone and claim.taken == 0
      if claim.taken >= claim.jobs or not empty and (size > claim.bytes or suspect and sub(claim.holder, 1, 8) == NOBODY) then
        claim = nil
        for other, candidate in ipairs(claims) do
          empty = candidate.alone and candidate.taken == 0
          local fits = size <= candidate.bytes and not (suspect and sub(candidate.holder, 1, 8) == NOBODY)
          if candidate.taken < candidate.jobs and (empty or fits) then
            claim, turn = candidate, other
            break
          end
        end
      end
      if not claim or taken > 0 and (suspect or size > bytes_left) then
        verdict, done = claim and 2 or 3, k - 1
        break
      end
      if not record and size > 0 then
        record = call('MGET', body_of .. id)[1]
        records[k] = record
      end
      if not record or #record < 11 or record < VERSION_BYTE or record >= NEXT_VERSION_BYTE then
        -- with: is_newer
        if is_newer(record) then
          newer = newer or {}
          newer[#newer + 1] = entry
        else
          aside = aside or {}
          aside[#aside + 1] = { id, record and 'unreadable record' or 'no record' }
        end
      else
        claim.taken = claim.taken + 1
        claim.bytes = claim.bytes - size
        bytes_left = bytes_left - size
        taken = taken + 1
        if claim_of then claim_of[taken] = turn end
        local deadline = usual_deadline
        if flags > 0 then
          special = special or {}
          special[#special + 1] = { id, flags, state }
          if state then
            -- with: try
            extras = extras or {}
            extras[#extras + 1] = {
              taken - 1, (tonumber(state[1]) or 0), (tonumber(state[2]) or 0), checkpoint > 0 and (try('HGET', base .. 's' .. id, 'cp')) or '',
            }
          end
          if flags % (2 * FLAG_ATTEMPT_TIMEOUT) >= FLAG_ATTEMPT_TIMEOUT then
            -- with: head_of, attempt_timeout
            local term = min(lease_ms, attempt_timeout(head_of(record), default_timeout))
            deadline = string.format('%d', now + term)
            own_terms = own_terms or {}
            own_terms[#own_terms + 1], own_terms[#own_terms + 2] = taken - 1, term
          end
        end
        -- The leases of a claim have the same value, but for the flags.
        local value = claim[flags]
        if not value then
          value = nonce .. pack_ms(now) .. char(flags) .. claim.holder
          claim[flags] = value
        end
        local of, before = 2 * taken, 2 * taken - 1
        leases[before] = id
        leases[of] = value
        deadlines[before] = deadline
        deadlines[of] = id
      end
      if suspect then verdict, done = 4, k end
    end
    if taken == taken_before then
      skipped = skipped or {}
      skipped[k] = true
    end
    if plan_of then plan_of[k].passed = plan_of[k].passed + 1 end
    if verdict ~= 0 then break end
  end
  if plan_of then
    -- What was cut off comes again.
    for _, open_lane in ipairs(group) do open_lane.merged = open_lane.passed end
  else
    plan.passed = plan.passed + done
    if plan.ends and done == #entries then group = {} end
  end
  if skipped or done < last then
    local given, given_records = {}, {}
    for k = 1, done do
      if not (skipped and skipped[k]) then
        given[#given + 1] = entries[k]
        given_records[#given] = records[k]
      end
    end
    entries, records = given, given_records
  end
  if #records > 0 then found[#found + 1], found[#found + 2] = entries, records end
end
if orphans and #orphans > 0 then
  aside = aside or {}
  for _, id in ipairs(orphans) do aside[#aside + 1] = { id, 'scheduled without a readable record' } end
end

-- act, first on what no worker gets: that needs reads of its own
if expired or aside then
  -- with: touch_ends, generation, begin, release_unique, retention, read_head, keep_settled, quarantine, tell_waiters
  local ends = {}
  for k, item in ipairs(expired or {}) do ends[k] = item[1] end
  for _, item in ipairs(aside or {}) do ends[#ends + 1] = item[1] end
  touch_ends(ends)
  if expired then
    local meta_ends = call('HMGET', KEYS[1], 'dg', 'ds', 'w')
    local memory = begin(generation(meta_ends[1], meta_ends[2], math.huge))
    for _, item in ipairs(expired) do
      call('HSET', memory, item[1], STATE_EXPIRED)
      release_unique(item[1], item[2])
      keep_settled(item[1], STATE_EXPIRED, now + retention(read_head(item[1]), failure_retention), {})
      call('ZREM', KEYS[7], item[1])
    end
    tell_waiters(meta_ends[3], ends)
  end
  for _, item in ipairs(aside or {}) do quarantine(item[1], item[2]) end
end
if strays then
  for _, id in ipairs(strays) do
    -- Unless it went with its job.
    if call('EXISTS', base .. 's' .. id) == 1 then call('RENAME', base .. 's' .. id, base .. 'qs' .. id) end
  end
end
if newer then call('RPUSH', base .. 'nv', unpack(newer)) end
if taken > 0 then
  call('HSET', KEYS[4], unpack(leases))
  -- The last member keeps the set out of Redis's list encoding, which is walked from its head for every new deadline.
  local n = #deadlines
  deadlines[n + 1], deadlines[n + 2] = '+inf', NO_JOB
  call('ZADD', KEYS[5], unpack(deadlines))
  if special then
    -- with: has, release_unique
    for _, item in ipairs(special) do
      if item[3] and item[3][4] == 'L' then release_unique(item[1], item[2]) end
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
      local m = #known
      known[m + 1], known[m + 2] = leases[2 * k - 1], ''
    end
    if forgets then call('UNLINK', request_keys[1]) end
    for of, known in pairs(given) do
      if request_keys[of] then
        call('HSET', request_keys[of], unpack(known))
        call('PEXPIRE', request_keys[of], REQUEST_ID_MS)
      end
    end
  end
end
for _, plan in ipairs(plans) do
  local passed = plan.passed
  -- What comes behind was read as a rule; or a merge has read on beyond it.
  local entry = passed >= plan.from and plan.entries[passed - plan.from + 1]
  if not entry and (passed < plan.from or not plan.ends) then entry = call('LINDEX', plan.key, passed) end
  if passed > 0 then
    call('LTRIM', plan.key, passed, '-1')
    if plan.buried then
      for grave, left in pairs(plan.graves) do
        if left > 0 then call('HSET', KEYS[6], grave, left) else call('HDEL', KEYS[6], grave) end
      end
      -- with: add
      if add(KEYS[8], plan.lane, -plan.buried) <= 0 then call('HDEL', KEYS[8], plan.lane) end
    end
  end
  if not entry then
    -- A key of another type is no lane: it is set aside.
    if plan.foreign then call('RENAME', plan.key, base .. 'qr:' .. plan.lane) end
    call('ZREM', KEYS[2], plan.lane)
  elseif passed > 0 then
    -- with: lane_score
    call('ZADD', KEYS[2], string.format('%d', lane_score(plan.lane, #entry == ENTRY_BYTES and struct.unpack('>I6', entry, 2) or 0)), plan.lane)
  end
end
if verdict == 0 and walks_on and #plans > 0 and taken < total then verdict = 2 end
-- Who leased here and died may not have told the list of queues: who waits for those jobs does.
local term = usual_term
if taken == 0 then
  local first = call('ZRANGE', KEYS[5], '0', '0', 'WITHSCORES')[2]
  term = first and first ~= 'inf' and max(1, tonumber(first) - now) or 0
end
-- Empty lists at the end are left out: each costs as much as a small command.
local answer = { now_us, next_due and tonumber(next_due) or -1, verdict, term, found }
local set_aside = (aside or newer) and { #(aside or {}), #(newer or {}) }
if claim_of or own_terms or extras or set_aside then answer[6] = claim_of or {} end
if own_terms or extras or set_aside then answer[7], answer[8], answer[9] = own_terms or {}, extras or {}, set_aside or {} end
return answer
