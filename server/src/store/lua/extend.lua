-- Prolongs leases and keeps progress. No lease becomes shorter, but for a stream that ends and for a holder whose lease no stream keeps.
-- KEYS  meta, leases, lease deadlines
-- ARGV  default attempt timeout ms, then per lease: id, nonce, duration ms, who asks ('h' its holder, 's' its holder, for exactly this duration; 'k' or, when it
--       ends, 'e', the keeper (8) and '1' if the worker has the job, else '0': the stream that keeps it, for 'e' with its own term in ms; 't' and the new
--       keeper (8): a stream that takes it over), progress ('' none, else percent), progress message, checkpoint
-- RETURNS {now ms, per lease: remaining ms, or -1 lost, or -2 attempt timeout reached, or -3 another stream keeps it, or -4 this lease was settled;
--         {number of the lease, cancel reason}...; {number of a lease that was taken over, bytes of its job, who kept it}...}
-- MOVES  -
local default_timeout = tonumber(ARGV[1])
local count = (#ARGV - 1) / 7
local ids = {}
for k = 1, count do ids[k] = ARGV[7 * k - 5] end

-- decide
local values = call('HMGET', KEYS[2], unpack(ids))
touch(KEYS[3])
local remaining, cancels, scores, progress, marks, sizes = {}, {}, {}, {}, {}, {}
local before, olds
-- Leases of one look begin, and mostly end, together: both times are made once.
local leased, leased_ms, written, score
for k = 1, count do
  local id, value = ids[k], values[k]
  local at = 7 * k - 5
  local who = ARGV[at + 3]
  local kind, keeper = byte(who), sub(who, 2, 9)
  if not value or #value < LEASE_BYTES or sub(value, 1, 16) ~= ARGV[at + 1] then
    if before == nil then
      -- with: remembered
      before = remembered(call('HGET', KEYS[1], 'dg'), ids) or false
    end
    -- What a stream gave back was never answered.
    local memory = before and before[k]
    local answered = memory and sub(memory, 2, 9) == sub(ARGV[at + 1], 1, 8) and sub(memory, 10, 10) ~= 'G' and sub(memory, 10, 10) ~= 'U'
    remaining[k] = answered and -4 or -1
  elseif (kind == 107 or kind == 101) and sub(value, 24, 31) ~= keeper then
    remaining[k] = -3
  else
    local flags = byte(value, 23)
    local limit, cancel_by = default_timeout, nil
    if flags ~= 0 then
      if has(flags, FLAG_ATTEMPT_TIMEOUT) then limit = attempt_timeout(read_head(id), default_timeout) end
      if has(flags, FLAG_STATE) then
        local state = try('HMGET', base .. 's' .. id, 'cr', 'cd') or {}
        if state[1] then
          cancels[#cancels + 1] = { k, state[1] }
          cancel_by = tonumber(state[2])
        end
      end
    end
    local since = sub(value, 17, 22)
    if since ~= leased then leased, leased_ms = since, unpack_ms(since, 1) end
    local deadline = min(now + ARGV[at + 2], leased_ms + limit)
    if cancel_by then deadline = min(deadline, cancel_by) end
    if deadline <= now then
      remaining[k] = -2
    else
      if kind ~= 115 or sub(value, 24, 31) ~= NOBODY then
        olds = olds or call('ZMSCORE', KEYS[3], unpack(ids))
        local old = tonumber(olds[k] or 0)
        -- A stream that ends leaves alone what is longer than its own term: the worker has asked for it.
        if kind ~= 101 or old > now + tonumber(sub(who, 11)) then deadline = max(deadline, old) end
        if cancel_by then deadline = min(deadline, cancel_by) end
      end
      remaining[k] = deadline - now
      if deadline ~= written then written, score = deadline, string.format('%d', deadline) end
      scores[#scores + 1] = score
      scores[#scores + 1] = id
      local new_flags, confirmed = flags, '1'
      if (kind == 107 or kind == 101) and byte(who, 10) == 48 then confirmed = sub(value, 32, 32) end
      if ARGV[at + 4] ~= '' then
        local fields = { 'pp', ARGV[at + 4], 'pm', ARGV[at + 5] }
        if ARGV[at + 6] ~= '' then
          fields[5], fields[6] = 'cp', ARGV[at + 6]
        end
        progress[#progress + 1] = { id, fields }
        touch(base .. 's' .. id)
        if not has(flags, FLAG_STATE) then new_flags = flags + FLAG_STATE end
      end
      if kind == 116 then
        sizes[#sizes + 1] = { k, (try('STRLEN', base .. 'j' .. id) or 0) + (has(flags, FLAG_STATE) and try('HSTRLEN', base .. 's' .. id, 'cp') or 0), sub(value, 24, 31) }
      end
      if new_flags ~= flags or kind == 116 or confirmed ~= sub(value, 32, 32) then
        marks[#marks + 1] = id
        marks[#marks + 1] = sub(value, 1, 22) .. char(new_flags) .. (keeper ~= '' and keeper or sub(value, 24, 31)) .. confirmed .. sub(value, 33)
      end
    end
  end
end

-- act
if #scores > 0 then call('ZADD', KEYS[3], unpack(scores)) end
if #progress > 0 then
  -- with: write_state
  for _, item in ipairs(progress) do write_state(item[1], unpack(item[2])) end
end
if #marks > 0 then call('HSET', KEYS[2], unpack(marks)) end
return { now, remaining, cancels, sizes }
