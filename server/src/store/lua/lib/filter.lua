-- Which jobs match a filter: for scripts that list jobs or go through them. store/filter.rs encodes it.

-- The filter that begins at this place of ARGV, and the place behind it. What a filter does not ask for is nil.
local function read_filter(at)
  local function text(k) return ARGV[at + k] ~= '' and ARGV[at + k] or nil end
  local filter = {
    states = ARGV[at], priorities = text(1), created_from = tonumber(ARGV[at + 2]),
    created_until = tonumber(ARGV[at + 3]), from = tonumber(ARGV[at + 4]), until_ms = tonumber(ARGV[at + 5]),
    worker = text(6), attempts = tonumber(ARGV[at + 7]), is_late = ARGV[at + 8] == '1', message = text(9), ids = {},
  }
  at = at + 10
  local function set()
    local count, found = tonumber(ARGV[at]), nil
    for k = 1, count do
      found = found or {}
      found[ARGV[at + k]] = true
    end
    at = at + 1 + count
    return found, count
  end
  filter.types = set()
  filter.failures = set()
  filter.labels, filter.label_count = set()
  local count = tonumber(ARGV[at])
  for k = 1, count do filter.ids[k] = ARGV[at + k] end
  -- The set of settled jobs holds three states, by the end of their retention.
  local first = sub(filter.states, 1, 1)
  if first == STATE_SUCCEEDED or first == STATE_CANCELLED or first == STATE_EXPIRED then
    filter.some_settled = #filter.states < 3
    filter.settled_from, filter.settled_until = filter.from, filter.until_ms
  end
  filter.needs_hash = filter.failures or filter.message or filter.attempts or filter.some_settled
    or filter.settled_from or filter.settled_until
  return filter, at + 1 + count
end

-- Whether the fields of a record, which begin at this place, have all the labels of a filter: they come first, each
-- once and encoded in one way (domain/record/fields.rs). nil: the record ends before that is clear.
local function has_labels(filter, record, at)
  local left = filter.label_count
  while byte(record, at) == LABEL_TAG do
    local length, first = byte(record, at + 1) or 0, at + 2
    if length >= 128 then length, first = length - 128 + 128 * (byte(record, at + 2) or 0), at + 3 end
    at = first + length
    if filter.labels[sub(record, first, at - 1)] then left = left - 1 end
    if left == 0 then return true end
  end
  if at > #record then return nil end
  return false
end

-- Where the fields of a record begin, behind its head.
local function fields_at(record)
  local at = RECORD_FIXED_BYTES + 1 + byte(record, 4)
  if has(byte(record, 2), FLAG_POLICY) then
    at = at + POLICY_BYTES
    for _ = 1, byte(record, at - 1) or 0 do at = at + 1 + (byte(record, at) or 0) end
  end
  return at
end

-- Whether a record matches, of which these are the first bytes. A record that cannot be read matches no filter.
local function record_matches(filter, id, record)
  local type_len = byte(record, 4)
  if byte(record, 1) ~= RECORD_VERSION or #record < RECORD_FIXED_BYTES + type_len then return false end
  if filter.types and not filter.types[sub(record, 5, 4 + type_len)] then return false end
  if filter.priorities and not string.find(filter.priorities, byte(record, 3), 1, true) then return false end
  if filter.created_from or filter.created_until then
    local created = unpack_ms(record, 5 + type_len)
    if filter.created_from and created < filter.created_from then return false end
    if filter.created_until and created >= filter.created_until then return false end
  end
  if filter.labels then
    local found = has_labels(filter, record, fields_at(record))
    if found == nil and #record > FILTER_RECORD_END then
      record = try('GETRANGE', base .. KEY_RECORD .. id, '0', RECORD_LABELS_BYTES) or ''
      found = has_labels(filter, record, fields_at(record))
    end
    return found
  end
  return true
end

-- Whether what the state hash of a job says matches.
local function hash_matches(filter, id)
  local hash = try(
    'HMGET', base .. KEY_STATE .. id, FIELD_ATTEMPTS, FIELD_FAILURE_TYPE, FIELD_FAILURE_MESSAGE, FIELD_FINAL_STATE,
    FIELD_FINAL_AT
  ) or {}
  if filter.attempts and (tonumber(hash[1]) or 0) < filter.attempts then return false end
  if filter.failures and not filter.failures[hash[2]] then return false end
  if filter.message and not string.find(sub(hash[3] or '', 1, FILTER_MESSAGE_BYTES), filter.message, 1, true) then
    return false
  end
  if filter.some_settled and not string.find(filter.states, hash[4] or '-', 1, true) then return false end
  local at = tonumber(hash[5]) or 0
  return (not filter.settled_from or at >= filter.settled_from)
    and (not filter.settled_until or at < filter.settled_until)
end

-- The first bytes of the record of a job that matches and is in the place of a filter; else false. `lease`: its lease,
-- in LEASED. Bounds of the place's own scores are not checked here: a walk keeps them.
local function matches(filter, id, lease)
  if filter.worker then
    local holder = lease and sub(lease, LEASE_HOLDER_AT) or ''
    -- The holder is padded.
    local length = #filter.worker
    if sub(holder, 1, length) ~= filter.worker or string.find(holder, '[^ ]', length + 1) then return false end
  end
  local record = try('GETRANGE', base .. KEY_RECORD .. id, '0', filter.labels and FILTER_RECORD_END or RECORD_START_END)
  if not record or #record <= RECORD_FIXED_BYTES or not record_matches(filter, id, record) then return false end
  return (not filter.needs_hash or hash_matches(filter, id)) and record
end
