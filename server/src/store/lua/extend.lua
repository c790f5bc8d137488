-- Moves the deadlines of leases and keeps progress. No lease becomes shorter, except for a stream that ends and for the
-- holder of a lease that no stream owns.
-- KEYS  meta, leases, lease deadlines
-- ARGV  default attempt timeout ms, then per lease: id, nonce, duration ms, who asks (EXTEND_; for a stream followed by
--       its tag as owner (8), then '1' if the worker has the job, else '0'; for one that ends followed by its own term
--       in ms), progress ('' none, else percent, and log lines behind an EXTEND_LOG_MARK), progress message, checkpoint
-- RETURNS {now ms, per lease: remaining ms or an EXTEND_ code, {number of the lease, cancel reason}..., {number of a
--         lease that was taken over, bytes of its job, its owner before}...}
-- MOVES  -
local default_timeout = tonumber(ARGV[1])
local count = (#ARGV - 1) / EXTEND_STRIDE
local ids = {}
for k = 1, count do ids[k] = ARGV[EXTEND_STRIDE * (k - 1) + 2] end

-- Decide. One piece, with positions in place of names: a stream renews hundreds of leases in a call.
local values = call('HMGET', KEYS[2], unpack(ids))
touch(KEYS[3])
local remaining, cancels, scores, progress, changed, taken_over = {}, {}, {}, {}, {}, {}
local memories, old_deadlines
-- Leases of one fetch begin, and mostly end, together: both times are made once.
local leased, leased_ms, written, score
for k = 1, count do
  local id, value = ids[k], values[k]
  local at = EXTEND_STRIDE * (k - 1) + 2
  local who = ARGV[at + 3]
  local kind, owner = byte(who), sub(who, 2, 1 + LEASE_OWNER_BYTES)
  local is_owner = kind == EXTEND_OWNER or kind == EXTEND_LEAVING
  if not value or #value < LEASE_BYTES or sub(value, 1, LEASE_NONCE_END) ~= ARGV[at + 1] then
    if memories == nil then
      --@ define remembered
      memories = remembered(call('HGET', KEYS[1], META_GENERATION), ids) or false
    end
    --@ define was_settled
    remaining[k] = memories and was_settled(memories[k], ARGV[at + 1]) and EXTEND_SETTLED or EXTEND_LEASE_LOST
  elseif is_owner and sub(value, LEASE_OWNER_AT, LEASE_OWNER_END) ~= owner then
    remaining[k] = EXTEND_OTHER_OWNER
  else
    local flags = byte(value, LEASE_FLAGS_AT)
    local timeout_ms, cancel_by = default_timeout, nil
    if flags ~= 0 then
      if has(flags, FLAG_ATTEMPT_TIMEOUT) then timeout_ms = attempt_timeout(read_head(id), default_timeout) end
      if has(flags, FLAG_STATE) then
        local state = try('HMGET', base .. KEY_STATE .. id, FIELD_CANCEL_REASON, FIELD_CANCEL_DEADLINE) or {}
        if state[1] then
          cancels[#cancels + 1] = { k, state[1] }
          cancel_by = tonumber(state[2])
        end
      end
    end
    local since = sub(value, LEASE_TIME_AT, LEASE_TIME_END)
    if since ~= leased then leased, leased_ms = since, unpack_ms(since, 1) end
    local deadline = min(now + ARGV[at + 2], leased_ms + timeout_ms)
    if cancel_by then deadline = min(deadline, cancel_by) end
    if deadline <= now then
      remaining[k] = EXTEND_TIMEOUT_REACHED
    else
      if kind ~= EXTEND_EXACTLY or sub(value, LEASE_OWNER_AT, LEASE_OWNER_END) ~= NOBODY then
        old_deadlines = old_deadlines or call('ZMSCORE', KEYS[3], unpack(ids))
        local old = tonumber(old_deadlines[k] or 0)
        -- A stream that ends leaves alone what is longer than its own term: the worker has asked for it.
        if kind ~= EXTEND_LEAVING or old > now + tonumber(sub(who, 3 + LEASE_OWNER_BYTES)) then
          deadline = max(deadline, old)
        end
        if cancel_by then deadline = min(deadline, cancel_by) end
      end
      remaining[k] = deadline - now
      if deadline ~= written then written, score = deadline, string.format('%d', deadline) end
      scores[#scores + 1] = score
      scores[#scores + 1] = id
      local new_flags, confirmed = flags, '1'
      local was_confirmed = sub(value, LEASE_CONFIRMED_AT, LEASE_CONFIRMED_AT)
      if is_owner and byte(who, 2 + LEASE_OWNER_BYTES) == DIGIT_0 then confirmed = was_confirmed end
      if ARGV[at + 4] ~= '' then
        --@ define progress_fields
        local fields, lines = progress_fields(at)
        progress[#progress + 1] = { id = id, fields = fields, lines = lines }
        touch(base .. KEY_STATE .. id, base .. KEY_QUARANTINED_STATE .. id, base .. KEY_LOG .. id)
        if not has(flags, FLAG_STATE) then new_flags = flags + FLAG_STATE end
      end
      if kind == EXTEND_TAKING then
        --@ define job_bytes
        taken_over[#taken_over + 1] = { k, job_bytes(id, flags), sub(value, LEASE_OWNER_AT, LEASE_OWNER_END) }
      end
      if new_flags ~= flags or kind == EXTEND_TAKING or confirmed ~= was_confirmed then
        local new_owner = owner ~= '' and owner or sub(value, LEASE_OWNER_AT, LEASE_OWNER_END)
        changed[#changed + 1] = id
        local holder = sub(value, LEASE_HOLDER_AT)
        changed[#changed + 1] = sub(value, 1, LEASE_TIME_END) .. char(new_flags) .. new_owner .. confirmed .. holder
      end
    end
  end
end

-- Act.
if #scores > 0 then call('ZADD', KEYS[3], unpack(scores)) end
if #progress > 0 then
  --@ define write_state
  for _, item in ipairs(progress) do
    if #item.fields > 0 then write_state(item.id, unpack(item.fields)) end
    if item.lines then
      --@ define append_log
      append_log(item.id, item.lines)
    end
  end
end
if #changed > 0 then call('HSET', KEYS[2], unpack(changed)) end
return { now, remaining, cancels, taken_over }
