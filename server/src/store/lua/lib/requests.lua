-- Request ids of Lease calls: the same request again gets the same leases. For lease.lua.

-- The requests of a fetch, one for each demand: `keys` and `fingerprints` by number of the demand (none where a demand
-- has no request id), and the list of all keys.
local function read_requests(first, count)
  local requests = { keys = {}, fingerprints = {}, all = {} }
  for k = 1, count do
    local at = first + 2 * (k - 1)
    if ARGV[at] ~= '' then
      local key = base .. KEY_REQUEST .. ARGV[at]
      requests.keys[k], requests.fingerprints[k] = key, ARGV[at + 1]
      requests.all[#requests.all + 1] = key
    end
  end
  return requests
end

-- What was noted of a request.
local function read_request(key)
  local known = call('HGETALL', key)
  local request = { ids = {}, nonce = '', began_us = now_us }
  for k = 1, #known, 2 do
    local field, value = known[k], known[k + 1]
    if field == REQUEST_FINGERPRINT then
      request.fingerprint = value
    elseif field == REQUEST_NONCE then
      request.nonce = value
    elseif field == REQUEST_BEGAN_US then
      request.began_us = tonumber(value) or now_us
    else
      request.ids[#request.ids + 1] = field
    end
  end
  return request
end

-- The reply to a request that was made before: its leases, as of when they began. nil if none of them is left and its
-- caller cannot have had them: leases that were released or ran out are as if the request had never been made.
local function replay(request, usual_term)
  local entries, records, terms, stateful = {}, {}, {}, {}
  for _, id in ipairs(request.ids) do
    local lease = call('HGET', base .. KEY_LEASES, id)
    local record = call('MGET', base .. KEY_RECORD .. id)[1]
    local deadline = call('ZSCORE', base .. KEY_DEADLINES, id)
    if lease and #lease >= LEASE_BYTES and record and deadline and sub(lease, 1, LEASE_NONCE_END) == request.nonce then
      local flags, number = byte(lease, LEASE_FLAGS_AT), #entries
      entries[number + 1] = char(flags) .. sub(lease, LEASE_TIME_AT, LEASE_TIME_END) .. id
      records[number + 1] = record
      terms[#terms + 1] = number
      terms[#terms + 1] = max(1, tonumber(deadline) - now)
      if has(flags, FLAG_STATE) then stateful[#stateful + 1] = { number, id } end
    end
  end
  local is_answered = #entries > 0
  if not is_answered and #request.nonce == LEASE_NONCE_END then
    for _, memory in pairs(remembered(call('HGET', base .. KEY_META, META_GENERATION), request.ids) or {}) do
      is_answered = is_answered or was_settled(memory, request.nonce)
    end
  end
  if not is_answered then return nil end
  return {
    request.began_us, NEXT_DUE_NONE, VERDICT_DONE, usual_term, { entries, records }, {}, terms, states_of(stateful), {},
    request.nonce,
  }
end

-- Notes what each request got. `demand_of` says which demand each lease is for; none: there is one demand.
local function note_requests(requests, nonce, leases, taken, demand_of)
  local noted, began_us = {}, string.format('%d', now_us)
  for k = 1, taken do
    local number = demand_of and demand_of[k] or 1
    local fields = noted[number]
    if not fields then
      fields = { REQUEST_FINGERPRINT, requests.fingerprints[number], REQUEST_NONCE, nonce, REQUEST_BEGAN_US, began_us }
      noted[number] = fields
    end
    fields[#fields + 1] = leases[2 * k - 1]
    fields[#fields + 1] = ''
  end
  if requests.forgets then call('UNLINK', requests.keys[1]) end
  for number, fields in pairs(noted) do
    local key = requests.keys[number]
    if key then
      call('HSET', key, unpack(fields))
      call('PEXPIRE', key, REQUEST_ID_MS)
    end
  end
end
