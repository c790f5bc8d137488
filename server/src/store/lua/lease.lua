-- Leases ready jobs: by priority, then by age; first in, first out inside a lane, and between the lanes of one priority
-- the older entry first.
-- KEYS  meta, lane index, scheduled, leases, lease deadlines, tombstones, start_by, lane tombstone counts
-- ARGV  nonce, lease ms, default attempt timeout ms, priorities as digits ('' all), failure retention ms, number of job
--       types, number of requests (none, or one for each demand), order of the demands as bytes ('' there is one),
--       job types..., per request: id ('' none), fingerprint, then per demand: end of its leases (layout.rs), jobs,
--       bytes (with a minus: no job larger than that, because the consumer holds others)
-- RETURNS {now us, next due ms or NEXT_DUE_NONE, verdict, lease ms (without jobs: ms until the first lease of the queue
--         ends, or 0), jobs, demands, terms, extras, {unreadable, newer}}, without the empty ones at the end
--         jobs: pairs of a list of entries and one of their records (there may be more entries than records)
--         demands: number of the demand of each job, if there are several; terms: number of a job, its own lease ms
--         extras: {number of a job, attempts, losses, checkpoint}...; numbers of jobs count from 0
--         unreadable, newer: how many jobs cannot be read, and how many a newer version wrote
--         a request id that was used before: the same with the nonce of then at the end; with another request, or among
--         several: {now us, a NEXT_DUE_ code}
-- MOVES  READY → LEASED, READY → EXPIRED, SCHEDULED → READY
local nonce = ARGV[1]
local lease_ms, default_timeout = tonumber(ARGV[2]), tonumber(ARGV[3])
local priorities, failure_retention = ARGV[4], tonumber(ARGV[5])
local type_count, request_count, turns = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local demands, total = {}, 0
for at = 9 + type_count + 2 * request_count, #ARGV, 3 do
  local bytes = ARGV[at + 2]
  local demand = {
    lease_end = ARGV[at], jobs = tonumber(ARGV[at + 1]), bytes = math.abs(tonumber(bytes)),
    allow_oversized = byte(bytes) ~= MINUS, taken = 0,
  }
  demands[#demands + 1] = demand
  total = total + demand.jobs
end
total = min(total, JOBS_PER_FETCH)
local usual_term = min(lease_ms, default_timeout)

-- A request that was made before gets the leases of then.
local requests
if request_count > 0 then
  --@ define read_requests
  requests = read_requests(9 + type_count, request_count)
  if #requests.all > 0 and call('EXISTS', unpack(requests.all)) > 0 then
    -- They came together only by chance: each is to be repeated alone.
    if request_count > 1 then return { now_us, NEXT_DUE_AMONG_REPEATED } end
    --@ define read_request, replay
    local request = read_request(requests.keys[1])
    if request.fingerprint and request.fingerprint ~= requests.fingerprints[1] then
      return { now_us, NEXT_DUE_REQUEST_ID_REUSED }
    end
    local reply = replay(request, usual_term)
    if reply then return reply end
    requests.forgets = true
  end
end

if call('HGET', KEYS[1], META_PAUSED) then return { now_us, NEXT_DUE_NONE, VERDICT_PAUSED, 0, {} } end

-- Promote due jobs: a move of its own.
local next_due = call('ZRANGE', KEYS[3], '0', '0', 'WITHSCORES')[2]
local orphans
if next_due and tonumber(next_due) <= now then
  --@ define promote
  orphans = select(2, promote(PROMOTED_PER_FETCH))
  next_due = call('ZRANGE', KEYS[3], '0', '0', 'WITHSCORES')[2]
end

-- Choose the lanes. The index is mostly small; where it is not, the wanted lanes are looked up in it.
local lanes = call('ZRANGE', KEYS[2], '0', LANES_PER_FETCH)
local wanted, walks_on = nil, #lanes > LANES_PER_FETCH
if priorities ~= '' or type_count > 0 then
  --@ define lane_filter
  local types = { unpack(ARGV, 9, 8 + type_count) }
  wanted = lane_filter(priorities, types)
  if walks_on then
    --@ define find_lanes
    lanes = find_lanes(priorities, types)
  end
end
local next_lane, following = 1, nil
if wanted or lanes[2] then
  -- The next lane that is wanted; with a priority, only if it is of that one.
  following = function(priority)
    while wanted and lanes[next_lane] and not wanted(lanes[next_lane]) do next_lane = next_lane + 1 end
    local lane = lanes[next_lane]
    return lane and (not priority or byte(lane, 1) == priority) and lane
  end
end

local has_tombstones = call('EXISTS', KEYS[6]) == 1
touch(KEYS[4], KEYS[5], KEYS[7], KEYS[8], base .. KEY_UNIQUE, base .. KEY_NEWER)
touch(unpack(requests and #requests.all > 0 and requests.all or { KEYS[1] }))

-- Decide. This loop runs for every job of every fetch. It is one piece, with positions in place of names, because each
-- function call and each table for a job costs time.
local record_key = base .. KEY_RECORD
local found, taken, demand_of, own_terms, extras = {}, 0, #demands > 1 and {}, nil, nil
local expired, unreadable, strays, newer, special = nil, nil, nil, nil, nil
local leases, deadlines = {}, {}
-- A number would be written out with 17 digits, each time.
local usual_deadline = string.format('%d', now + usual_term)
local verdict, entries_read, bytes_left = VERDICT_DONE, 0, BYTES_PER_FETCH
local plans, group = {}, {}

while taken < total and verdict == VERDICT_DONE do
  local want = total - taken
  if entries_read >= ENTRIES_PER_FETCH then
    verdict = VERDICT_AGAIN
    break
  end
  -- If some are tombstoned, more are read together.
  local most = has_tombstones and max(want, entries_read > 0 and JOBS_PER_FETCH or ENTRIES_READ_AT_FIRST) or want
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
    --@ define merge
    entries, plan_of = merge(group, following, open, most)
  else
    if plan.passed > plan.from then read_lane(plan, plan.passed, most) end
    entries = plan.entries
  end
  local last = min(#entries, most)
  if last == 0 then group = {} end

  -- Their records, but for those that are large or may be tombstoned: each of these is read when its turn comes.
  local ids, record_keys, tombstone_fields, tombstones = {}, {}, nil, nil
  if has_tombstones and last > 0 then
    tombstone_fields = {}
    for k = 1, last do tombstone_fields[k] = sub(entries[k], ENTRY_ID_AT) .. (plan_of and plan_of[k] or plan).lane end
    tombstones = call('HMGET', KEYS[6], unpack(tombstone_fields))
  end
  local living = 0
  for k = 1, last do
    local entry = entries[k]
    local id = sub(entry, ENTRY_ID_AT)
    if tombstones and not tombstones[k] then
      if living == want then
        last = k - 1
        break
      end
      living = living + 1
    end
    ids[k] = id
    record_keys[k] = (entry >= LARGE_BYTE or tombstones and tombstones[k]) and record_key or record_key .. id
  end
  local records = last > 0 and call('MGET', unpack(record_keys)) or {}
  entries_read = entries_read + last

  local skipped, done = nil, last
  for k = 1, last do
    if tombstones and taken == total then
      done = k - 1
      break
    end
    local entry, id, record, taken_before = entries[k], ids[k], records[k], taken
    -- A comparison costs a fourth of taking a byte out.
    local flags, start_by, state, checkpoint, suspect = entry < FLAGS_BYTE and 0 or byte(entry, 1), nil, nil, nil, nil
    local skips
    if tombstones and tombstones[k] then
      --@ define is_tombstoned
      skips = is_tombstoned(plan_of and plan_of[k] or plan, tombstone_fields[k], tombstones[k])
    end
    if flags > 0 and flags % (2 * FLAG_START_BY) >= FLAG_START_BY then start_by = call('ZSCORE', KEYS[7], id) end
    if #entry ~= ENTRY_BYTES then
      unreadable = unreadable or {}
      unreadable[#unreadable + 1] = { id = entry, why = 'no lane entry' }
    elseif skips then
      -- Cancelled.
    elseif start_by and (tonumber(start_by) <= now or tonumber(start_by) % 1 > 0) then
      expired = expired or {}
      expired[#expired + 1] = { id = id, flags = flags }
    else
      local size = record and #record
      if not size then
        --@ define try
        size = try('STRLEN', record_key .. id) or 0
      end
      if flags > 0 and flags % (2 * FLAG_STATE) == FLAG_STATE then
        --@ define try
        local foreign
        state, foreign = try(
          'HMGET', base .. KEY_STATE .. id,
          FIELD_ATTEMPTS, FIELD_LOSSES, FIELD_UNCONFIRMED, FIELD_UNIQUE_SCOPE
        )
        if foreign then
          strays, state = strays or {}, {}
          strays[#strays + 1] = id
          touch(base .. KEY_QUARANTINED_STATE .. id)
        end
        checkpoint = try('HSTRLEN', base .. KEY_STATE .. id, FIELD_CHECKPOINT) or 0
        size = size + checkpoint
        -- Several workers did not live to confirm this job: it goes alone, so that it does not take others along. On a
        -- stream that is a frame of its own.
        suspect = (tonumber(state[3]) or 0) >= SUSPECT_AFTER
      end
      -- Whose turn it is; if that demand cannot take the job, the first that can.
      local number = demand_of and byte(turns, taken + 1) or 1
      local demand = demands[number]
      local takes_any = demand.allow_oversized and demand.taken == 0
      if demand.taken >= demand.jobs
        or not takes_any
          and (size > demand.bytes or suspect and sub(demand.lease_end, 1, LEASE_OWNER_BYTES) == NOBODY) then
        --@ define demand_for
        demand, number = demand_for(demands, size, suspect)
      end
      if not demand or taken > 0 and (suspect or size > bytes_left) then
        verdict, done = demand and VERDICT_AGAIN or VERDICT_BLOCKED_BY_SIZE, k - 1
        break
      end
      if not record and size > 0 then
        record = call('MGET', record_key .. id)[1]
        records[k] = record
      end
      if not record or #record <= RECORD_FIXED_BYTES or record < VERSION_BYTE or record >= NEXT_VERSION_BYTE then
        --@ define is_newer
        if is_newer(record) then
          newer = newer or {}
          newer[#newer + 1] = entry
        else
          unreadable = unreadable or {}
          unreadable[#unreadable + 1] = { id = id, why = record and 'unreadable record' or 'no record' }
        end
      else
        demand.taken = demand.taken + 1
        demand.bytes = demand.bytes - size
        bytes_left = bytes_left - size
        taken = taken + 1
        if demand_of then demand_of[taken] = number end
        local deadline = usual_deadline
        if flags > 0 then
          special = special or {}
          special[#special + 1] = { id = id, flags = flags, scope = state and state[4] }
          if state then
            --@ define try
            extras = extras or {}
            extras[#extras + 1] = {
              taken - 1, (tonumber(state[1]) or 0), (tonumber(state[2]) or 0),
              checkpoint > 0 and (try('HGET', base .. KEY_STATE .. id, FIELD_CHECKPOINT)) or '',
            }
          end
          if flags % (2 * FLAG_ATTEMPT_TIMEOUT) >= FLAG_ATTEMPT_TIMEOUT then
            --@ define head_of, attempt_timeout
            local term = min(lease_ms, attempt_timeout(head_of(record), default_timeout))
            deadline = string.format('%d', now + term)
            own_terms = own_terms or {}
            own_terms[#own_terms + 1], own_terms[#own_terms + 2] = taken - 1, term
          end
        end
        -- The leases of a demand have the same value, but for the flags.
        local value = demand[flags]
        if not value then
          value = nonce .. pack_ms(now) .. char(flags) .. demand.lease_end
          demand[flags] = value
        end
        local even, odd = 2 * taken, 2 * taken - 1
        leases[odd] = id
        leases[even] = value
        deadlines[odd] = deadline
        deadlines[even] = id
      end
      if suspect then verdict, done = VERDICT_LAST_IS_ALONE, k end
    end
    if taken == taken_before then
      skipped = skipped or {}
      skipped[k] = true
    end
    if plan_of then plan_of[k].passed = plan_of[k].passed + 1 end
    if verdict ~= VERDICT_DONE then break end
  end

  if plan_of then
    -- What was cut off comes again.
    for _, open_plan in ipairs(group) do open_plan.merged = open_plan.passed end
  else
    plan.passed = plan.passed + done
    if plan.ends and done == #entries then group = {} end
  end
  if skipped or done < last then
    --@ define without_skipped
    entries, records = without_skipped(entries, records, skipped, done)
  end
  if #records > 0 then found[#found + 1], found[#found + 2] = entries, records end
end

-- Act. First end the jobs that no worker gets, because that needs reads.
if orphans and #orphans > 0 then
  unreadable = unreadable or {}
  for _, id in ipairs(orphans) do
    unreadable[#unreadable + 1] = { id = id, why = 'scheduled without a readable record' }
  end
end
if expired or unreadable or strays then
  --@ define touch_unleased, end_unleased
  touch_unleased(expired or {}, unreadable or {})
  end_unleased(expired or {}, unreadable or {}, strays or {}, failure_retention)
end
if newer then call('RPUSH', base .. KEY_NEWER, unpack(newer)) end
if taken > 0 then
  call('HSET', KEYS[4], unpack(leases))
  -- The last member keeps the set out of Redis's list encoding, which is walked from its head for every new deadline.
  local n = #deadlines
  deadlines[n + 1], deadlines[n + 2] = '+inf', NO_JOB
  call('ZADD', KEYS[5], unpack(deadlines))
  if special then
    --@ define release_unique
    for _, job in ipairs(special) do
      if job.scope == SCOPE_LEASED then release_unique(job.id, job.flags) end
    end
  end
  if requests then
    --@ define note_requests
    note_requests(requests, nonce, leases, taken, demand_of)
  end
end
for _, plan in ipairs(plans) do
  leave_lane(plan)
  if plan.tombstoned then
    --@ define drop_tombstones
    drop_tombstones(plan)
  end
end
if verdict == VERDICT_DONE and walks_on and #plans > 0 and taken < total then verdict = VERDICT_AGAIN end

-- Without jobs: when the first lease ends. A broker that died may not have written that into the due index; the
-- consumers that wait for those jobs do.
local term = usual_term
if taken == 0 then
  local first = call('ZRANGE', KEYS[5], '0', '0', 'WITHSCORES')[2]
  term = first and first ~= 'inf' and max(1, tonumber(first) - now) or 0
end
-- Each list in a reply costs as much as a small command.
local reply = { now_us, next_due and tonumber(next_due) or NEXT_DUE_NONE, verdict, term, found }
local set_aside = (unreadable or newer) and { #(unreadable or {}), #(newer or {}) }
if demand_of or own_terms or extras or set_aside then reply[6] = demand_of or {} end
if own_terms or extras or set_aside then
  reply[7], reply[8], reply[9] = own_terms or {}, extras or {}, set_aside or {}
end
return reply
