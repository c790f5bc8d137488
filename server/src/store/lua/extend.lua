-- Prolongs (or shortens) leases and keeps progress.
-- KEYS  meta, leases, lease deadlines
-- ARGV  default attempt timeout ms, then per lease: id, nonce, duration ms, who asks ('h' its holder; 'k', the keeper (8) and '1' if the worker has the job, else '0':
--       the stream that keeps it; 't' and the new keeper (8): a stream that takes it over), progress ('' none, else percent), progress message, checkpoint
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
local remaining, cancels, scores, progress, marks, sizes, before = {}, {}, {}, {}, {}, {}, nil
for k = 1, count do
  local id, value = ids[k], values[k]
  local at = 7 * k - 5
  local who = ARGV[at + 3]
  local keeper = byte(who) ~= 104 and sub(who, 2, 9)
  if not value or #value < LEASE_BYTES or sub(value, 1, 16) ~= ARGV[at + 1] then
    if before == nil then
      -- with: remembered
      before = remembered(call('HGET', KEYS[1], 'dg'), ids) or false
    end
    -- What a stream gave back was never answered.
    local memory = before and before[k]
    local answered = memory and sub(memory, 2, 9) == sub(ARGV[at + 1], 1, 8) and sub(memory, 10, 10) ~= 'G' and sub(memory, 10, 10) ~= 'U'
    remaining[k] = answered and -4 or -1
  elseif byte(who) == 107 and sub(value, 24, 31) ~= keeper then
    remaining[k] = -3
  else
    local flags = byte(value, 23)
    local limit = default_timeout
    if has(flags, FLAG_ATTEMPT_TIMEOUT) then limit = attempt_timeout(read_head(id), default_timeout) end
    local deadline = min(now + tonumber(ARGV[at + 2]), unpack_ms(value, 17) + limit)
    if has(flags, FLAG_STATE) then
      local state = try('HMGET', base .. 's' .. id, 'cr', 'cd') or {}
      if state[1] then
        cancels[#cancels + 1] = { k, state[1] }
        deadline = min(deadline, tonumber(state[2]) or deadline)
      end
    end
    if deadline <= now then
      remaining[k] = -2
    else
      remaining[k] = deadline - now
      scores[#scores + 1] = string.format('%d', deadline)
      scores[#scores + 1] = id
      local new_flags, confirmed = flags, who == 'k' .. (keeper or '') .. '0' and sub(value, 32, 32) or '1'
      if ARGV[at + 4] ~= '' then
        local fields = { 'pp', ARGV[at + 4], 'pm', ARGV[at + 5] }
        if ARGV[at + 6] ~= '' then
          fields[5], fields[6] = 'cp', ARGV[at + 6]
        end
        progress[#progress + 1] = { id, fields }
        touch(base .. 's' .. id)
        if not has(flags, FLAG_STATE) then new_flags = flags + FLAG_STATE end
      end
      if byte(who) == 116 then
        sizes[#sizes + 1] = { k, (try('STRLEN', base .. 'j' .. id) or 0) + (has(flags, FLAG_STATE) and try('HSTRLEN', base .. 's' .. id, 'cp') or 0), sub(value, 24, 31) }
      end
      if new_flags ~= flags or confirmed ~= sub(value, 32, 32) or byte(who) == 116 then
        marks[#marks + 1] = id
        marks[#marks + 1] = sub(value, 1, 22) .. char(new_flags) .. (keeper or sub(value, 24, 31)) .. confirmed .. sub(value, 33)
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
